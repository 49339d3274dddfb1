"""A file that is appended to, and renamed when it is large."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import BinaryIO

from app.domain.atomic_files import private

logger = logging.getLogger(__name__)


class RotatingFile:
    """Appends bytes; at `max_bytes` the file becomes `.1`. Errors are logged once and otherwise swallowed."""

    def __init__(self, path: Path, max_bytes: int, backups: int) -> None:
        self._path, self._max_bytes, self._backups = path, max_bytes, backups
        self._file: BinaryIO | None = None
        self._size = 0
        self._in_line = False
        self._complained = False

    def write(self, data: bytes) -> None:
        try:
            self._append(data)
        except OSError as error:
            self.close()
            if not self._complained:
                logger.warning("%s cannot be written: %s; it is kept in memory only", self._path, error)
            self._complained = True

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()

    def _append(self, data: bytes) -> None:
        if self._file is None:
            self._open()
        if self._size and self._size + len(data) > self._max_bytes:
            data = self._turn_over(data)
        self._put(data)

    def _turn_over(self, data: bytes) -> bytes:
        """Go on in a new file, but only where a line ends. Returns what is left to write."""
        end = data.find(b"\n") + 1 if self._in_line else 0
        if end == len(data) or (self._in_line and not end and self._size < 2 * self._max_bytes):
            return data
        self._put(data[:end])
        self.close()
        self._rotate()
        self._open()
        return data[end:]

    def _open(self) -> None:
        self._file = open(self._path, "ab", buffering=0, opener=private)  # noqa: SIM115 - closed by `close`
        self._size = os.fstat(self._file.fileno()).st_size

    def _put(self, data: bytes) -> None:
        assert self._file is not None
        rest = memoryview(data)
        while rest:  # a full disk takes a part first
            written = self._file.write(rest)
            self._size += written
            rest = rest[written:]
        if data:
            self._in_line = not data.endswith(b"\n")

    def _rotate(self) -> None:
        for n in range(self._backups, 0, -1):
            older = self._path if n == 1 else self._path.with_name(f"{self._path.name}.{n - 1}")
            with contextlib.suppress(FileNotFoundError):
                older.replace(self._path.with_name(f"{self._path.name}.{n}"))
