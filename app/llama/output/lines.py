"""Bytes of a log as lines of text."""

from __future__ import annotations

from app.domain.printable_text import one_line


def last_lines(data: bytes, n: int, *, cut: bool) -> list[str]:
    """`cut`: the beginning is missing, so the first line is not a whole one."""
    lines = data.split(b"\n")
    if cut:
        del lines[0]
    if lines and not lines[-1]:
        del lines[-1]
    return [text(line) for line in lines[max(0, len(lines) - n) :]]


def text(line: bytes) -> str:
    return one_line(line.rstrip(b"\r").decode("utf-8", "replace"))


def harmless(data: bytes) -> bytes:
    """For a terminal: llama-server repeats what clients sent, and an escape sequence can rewrite a screen."""
    return data.translate(_HARMLESS)


_HARMLESS = bytes(b if (b >= 32 and b != 127) or b in b"\t\n\r" else b"?"[0] for b in range(256))
