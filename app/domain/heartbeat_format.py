"""What a stream gets while it waits."""

from __future__ import annotations

from enum import Enum


class Heartbeats(str, Enum):
    COMMENTS = "comments"
    """Lines that event streams ignore, and that say to people what is waited for."""
    BLANK = "blank"
    """Empty lines, for clients that take a comment for something else."""
    OFF = "off"
    """Nothing, not even the head, before the answer."""
