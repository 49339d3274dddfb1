"""What tells one state of a file from another. It blocks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


class FileIdentity(NamedTuple):
    """Changes when the content of a file does."""

    mtime_ns: int
    size: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileIdentity:
        return cls(status.st_mtime_ns, status.st_size)

    @classmethod
    def at(cls, path: Path) -> FileIdentity | None:
        """None where there is no file, or none that can be looked at."""
        try:
            return cls.of(path.stat())
        except OSError:
            return None
