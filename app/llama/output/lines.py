"""Bytes of a log as lines of text."""

from __future__ import annotations


def last_lines(data: bytes, n: int, *, cut: bool) -> list[str]:
    """`cut`: the beginning is missing, so the first line is not a whole one."""
    lines = data.split(b"\n")
    if cut:
        del lines[0]
    if lines and not lines[-1]:
        del lines[-1]
    return [text(line) for line in lines[max(0, len(lines) - n) :]]


def text(line: bytes) -> str:
    return line.rstrip(b"\r").decode("utf-8", "replace")
