"""Text of strangers, made fit to be shown."""

from __future__ import annotations


def one_line(text: str) -> str:
    """Line breaks and terminal sequences made visible; a tab stays one."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\t" else repr(c)[1:-1] for c in text)
