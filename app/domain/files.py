"""What file is this, and writing one as a whole or not at all. All of it blocks."""

from __future__ import annotations

import contextlib
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


def write_whole(path: Path, text: str, *, mode: int = 0o666) -> None:
    """Replace the file, so that a reader finds the old text or the new one. Raises `OSError`.

    A new file gets `mode`, less what the umask takes away.
    """
    draft = path.with_suffix(".new")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        draft.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
