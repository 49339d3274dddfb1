"""The models' log files: one thread writes them all, so that a slow disk blocks neither loop nor child."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO
from urllib.parse import quote

logger = logging.getLogger(__name__)

TAIL_BYTES = 64 * 1024
TAIL_LINES = 200
QUEUE_BYTES = 1024 * 1024  # of one model, waiting for the disk
FOLLOWER_LINES = 1000
MAX_LINE = 16 * 1024  # a follower gets longer lines in pieces
MAX_NAME = 150  # file systems allow 255 bytes, rotation and quoting need some
CLOSE_S = 5.0
PAUSE_S = 0.2

_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # for what is a pipe without a reader
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
_FOLDS_CASE = sys.platform in ("darwin", "win32")


class LogServer:
    """Hands out one `ModelLog` per alias. `start` before the first feed, `close` at the end."""

    def __init__(self, log_dir: Path | str, *, max_bytes: int = 10_000_000, backups: int = 3) -> None:
        self._dir = Path(log_dir)
        self._max_bytes, self._backups = max_bytes, backups
        self._logs: dict[str, ModelLog] = {}
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> str | None:
        """Begin to write. A text says why the folder cannot be written to."""
        error = _prepare(self._dir)
        self._thread = threading.Thread(target=self._write_all, name="model-logs", daemon=True)
        self._thread.start()
        return error

    def open(self, alias: str) -> ModelLog:
        """The log of this model, the same one at each start of its process."""
        if alias not in self._logs:
            file = _RotatingFile(self._path(alias), self._max_bytes, self._backups)
            self._logs[alias] = ModelLog(alias, file, self._jobs)
        return self._logs[alias]

    def check(self, alias: str) -> str | None:
        """Why the log of this model cannot be opened. A full disk is no reason: it may have room later.

        Blocking. The folder may have been removed since the start; it is made again.
        """
        path = self._path(alias)
        try:
            _make(self._dir)
            os.close(_private(str(path), os.O_WRONLY | os.O_APPEND | os.O_CREAT | _NO_WAIT))
        except OSError as error:
            if error.errno not in _FULL:
                return f"{path} cannot be written: {error.strerror}"
        return None

    def read_tail(self, alias: str, lines: int) -> list[str]:
        """The end of the file, as after a restart. Blocking; reads no more than the end."""
        try:
            with self._path(alias).open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                start = max(0, size - max(TAIL_BYTES, lines * 200))
                file.seek(start)
                return _last_lines(file.read(), lines, cut=start > 0)
        except OSError:
            return []

    def close(self) -> None:
        """Write what is queued and end the thread; a disk that hangs is not waited for."""
        self.end_followers()
        if self._thread is not None:
            self._closing.set()
            self._jobs.put(None)
            self._thread.join(CLOSE_S)
            self._thread = None

    def end_followers(self) -> None:
        """Nobody follows any more: the router stops."""
        for log in self._logs.values():
            log.end()

    def _path(self, alias: str) -> Path:
        return self._dir / file_name(alias)

    def _write_all(self) -> None:
        files: set[_RotatingFile] = set()
        for log, data in iter(self._jobs.get, None):
            if self._jobs.empty():  # what comes meanwhile wakes nobody: waking costs more than writing
                self._closing.wait(PAUSE_S)
            if data:
                files.add(log.file)
                log.file.write(data)
                log.written += len(data)
            else:
                log.file.close()
                files.discard(log.file)
        for file in files:
            file.close()


class ModelLog:
    """One model's output: the last of it in memory, all of it on its way to the file. For the loop only."""

    def __init__(self, alias: str, file: _RotatingFile, jobs: SimpleQueue[_Job | None]) -> None:
        self.file = file
        self.position = 0  # bytes ever fed: a mark for `tail`
        self.written = 0  # by the thread; `_queued` by the loop: two counters need no lock
        self._queued = 0
        self._dropped = 0
        self._alias = alias
        self._jobs = jobs
        self._chunks: deque[bytes] = deque()
        self._kept = 0
        self._followers: set[Follower] = set()

    def feed(self, data: bytes) -> None:
        """Take a chunk of output. Never blocks and never fails."""
        self._keep(data)
        self._enqueue(data)
        for follower in tuple(self._followers):
            follower.push(data)

    def release(self) -> None:
        """The process has gone: let its file be closed. Feeding again opens it again."""
        self._jobs.put((self, b""))

    def tail(self, n: int = TAIL_LINES, *, since: int = 0) -> list[str]:
        """The last lines, at most 64 KB; only what came after the position `since`, if given."""
        data = b"".join(self._chunks)[-TAIL_BYTES:]
        first = self.position - len(data)
        if since > first:
            return _last_lines(data[since - first :], n, cut=False)
        return _last_lines(data, n, cut=first > 0)

    def subscribe(self) -> Follower:
        """The lines to come. Close it, or use it in a `with`, else it is fed for ever."""
        follower = Follower(self._followers.discard)
        self._followers.add(follower)
        return follower

    def end(self) -> None:
        """No more lines will come: followers end."""
        for follower in tuple(self._followers):
            follower.close()

    def _keep(self, data: bytes) -> None:
        self.position += len(data)
        self._kept += len(data)
        self._chunks.append(data)
        while self._kept - len(self._chunks[0]) >= TAIL_BYTES:
            self._kept -= len(self._chunks.popleft())

    def _enqueue(self, data: bytes) -> None:
        if self._queued - self.written + len(data) > QUEUE_BYTES:
            self._dropped += len(data)
            return
        if self._dropped:
            data = f"\n[router: {self._dropped} bytes left out, the disk was too slow]\n".encode() + data
            self._dropped = 0
        self._queued += len(data)
        self._jobs.put((self, data))


_Job = tuple[ModelLog, bytes]


class Follower:
    """Lines as they come, for one reader. A reader that is too slow misses lines and is told how many."""

    def __init__(self, forget: Callable[[Follower], None]) -> None:
        self._forget = forget
        self._lines: deque[str] = deque()
        self._partial = b""
        self._missed = 0
        self._closed = False
        self._news = asyncio.Event()

    def push(self, data: bytes) -> None:
        *lines, self._partial = (self._partial + data).split(b"\n")
        if len(self._partial) > MAX_LINE:
            lines.append(self._partial)
            self._partial = b""
        for line in lines:
            if len(self._lines) >= FOLLOWER_LINES:
                self._lines.popleft()
                self._missed += 1
            self._lines.append(_text(line))
        if lines:
            self._news.set()

    def close(self) -> None:
        """The iteration ends after the lines that are there. Safe to call twice."""
        self._closed = True
        self._forget(self)
        self._news.set()

    def __aiter__(self) -> Follower:
        return self

    async def __anext__(self) -> str:
        while not self._lines:
            if self._closed:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        if self._missed:
            missed, self._missed = self._missed, 0
            return f"[router: {missed} lines left out, the reader was too slow]"
        return self._lines.popleft()

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _RotatingFile:
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
        self._file = open(self._path, "ab", buffering=0, opener=_private)  # noqa: SIM115 - closed by `close`
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


def file_name(alias: str) -> str:
    """A name that no other alias gets, readable where the alias is harmless."""
    name = quote(alias, safe="@+")
    if len(name) > MAX_NAME or (_FOLDS_CASE and alias != alias.lower()):
        name = f"{name[:MAX_NAME]}-{hashlib.sha256(alias.encode()).hexdigest()[:12]}"
    return f"{name}.log"


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def obstacle(folder: Path) -> str | None:
    """Why no log could be written there, as far as that can be seen without making anything."""
    try:
        place = next(path for path in (folder, *folder.parents) if path.exists())
    except OSError as error:
        return str(error)
    if not place.is_dir():
        return f"{place} is no folder"
    return None if os.access(place, os.W_OK | os.X_OK) else f"no permission to write to {place}"


def _make(folder: Path) -> None:
    """What a model says may contain what its users said: owner only."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _prepare(folder: Path) -> str | None:
    """Make the folder and try it."""
    probe = folder / ".writable"
    try:
        _make(folder)
        os.close(_private(str(probe), os.O_WRONLY | os.O_CREAT))
        probe.unlink()
    except OSError as error:
        full = error.errno in _FULL
        so = "logs are kept in memory only" if full else "no model can be loaded until that is corrected"
        return f"the log folder {folder} cannot be written to: {error}; {so}"
    return None


def _last_lines(data: bytes, n: int, *, cut: bool) -> list[str]:
    """`cut`: the beginning is missing, so the first line is not a whole one."""
    lines = data.split(b"\n")
    if cut:
        del lines[0]
    if lines and not lines[-1]:
        del lines[-1]
    return [_text(line) for line in lines[max(0, len(lines) - n) :]]


def _text(line: bytes) -> str:
    return line.rstrip(b"\r").decode("utf-8", "replace")
