"""The folder of the log files: their names, and whether they can be written."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
from pathlib import Path
from urllib.parse import quote

from app.domain.atomic_files import private

MAX_NAME = 150  # file systems allow 255 bytes, rotation and quoting need some

_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # for what is a pipe without a reader
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
_FOLDS_CASE = sys.platform in ("darwin", "win32")


def file_name(alias: str) -> str:
    """A name that no other alias gets, readable where the alias is harmless."""
    name = quote(alias, safe="@+")
    if len(name) > MAX_NAME or (_FOLDS_CASE and alias != alias.lower()):
        name = f"{name[:MAX_NAME]}-{hashlib.sha256(alias.encode()).hexdigest()[:12]}"
    return f"{name}.log"


def why_not_writable(folder: Path) -> str | None:
    """Why no log could be written there, as far as that can be seen without making anything."""
    try:
        place = next(path for path in (folder, *folder.parents) if path.exists())
    except OSError as error:
        return str(error)
    if not place.is_dir():
        return f"{place} is no folder"
    return None if os.access(place, os.W_OK | os.X_OK) else f"no permission to write to {place}"


def make(folder: Path) -> None:
    """What a model says may contain what its users said: owner only."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def prepare(folder: Path) -> str | None:
    """Make the folder and try it."""
    probe = folder / ".writable"
    try:
        make(folder)
        os.close(private(probe, os.O_WRONLY | os.O_CREAT))
        probe.unlink()
    except OSError as error:
        full = error.errno in _FULL
        so = "logs are kept in memory only" if full else "no model can be loaded until that is corrected"
        return f"the log folder {folder} cannot be written to: {error}; {so}"
    return None


def unwritable(folder: Path, file: Path) -> str | None:
    """Why this log file cannot be opened. A full disk is no reason: it may have room later.

    Blocking. The folder may have been removed since the start; it is made again.
    """
    try:
        make(folder)
        os.close(private(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _NO_WAIT))
    except OSError as error:
        if error.errno not in _FULL:
            return f"{file} cannot be written: {error.strerror}"
    return None
