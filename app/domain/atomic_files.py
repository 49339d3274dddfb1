"""Files of the router's own: private, and written as a whole or not at all. All of it blocks."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path


def private(path: str | Path, flags: int) -> int:
    """Open a file of the router's own, which others cannot read; an `opener` for `open`. Raises `OSError`.

    A link is followed only if this account made it: in a folder that others can write to, theirs would lead
    to any file of ours.
    """
    try:
        return os.open(path, flags | _NOT_THROUGH_LINKS, 0o600)
    except OSError as error:
        if error.errno != errno.ELOOP or os.lstat(path).st_uid != os.geteuid():
            raise
        return os.open(path, flags, 0o600)


_NOT_THROUGH_LINKS = getattr(os, "O_NOFOLLOW", 0)  # Windows has none, and its links need rights


def write_whole(path: Path, text: str) -> None:
    """Replace the file, so that a reader finds the old text or the new one. Raises `OSError`."""
    draft = path.with_suffix(".new")
    try:
        draft.unlink(missing_ok=True)  # a link, or a file with another mode
        descriptor = private(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        draft.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
