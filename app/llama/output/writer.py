"""The models' log files: one thread writes them all, so that a slow disk blocks neither loop nor child."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from queue import SimpleQueue

from app.domain.atomic_files import private
from app.llama.output.folder import file_name, prepare, unwritable
from app.llama.output.lines import last_lines
from app.llama.output.log import TAIL_BYTES, Job, ModelLog
from app.llama.output.rotating import RotatingFile

CLOSE_S = 5.0
PAUSE_S = 0.2


class LogServer:
    """Hands out one `ModelLog` per alias. `start` before the first feed, `close` at the end."""

    def __init__(self, log_dir: Path | str, *, max_bytes: int = 10_000_000, backups: int = 3) -> None:
        self._dir = Path(log_dir)
        self._max_bytes, self._backups = max_bytes, backups
        self._logs: dict[str, ModelLog] = {}
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> str | None:
        """Begin to write. A text says why the folder cannot be written to."""
        error = prepare(self._dir)
        self._thread = threading.Thread(target=self._write_all, name="model-logs", daemon=True)
        self._thread.start()
        return error

    def open(self, alias: str) -> ModelLog:
        """The log of this model, the same one at each start of its process."""
        if alias not in self._logs:
            file = RotatingFile(self._path(alias), self._max_bytes, self._backups)
            self._logs[alias] = ModelLog(alias, file, self._jobs)
        return self._logs[alias]

    def check(self, alias: str) -> str | None:
        """Why the log of this model cannot be opened. A full disk is no reason. Blocking."""
        return unwritable(self._dir, self._path(alias))

    def read_tail(self, alias: str, lines: int) -> list[str]:
        """The end of the file, as after a restart. Blocking; reads no more than the end."""
        try:
            with open(self._path(alias), "rb", opener=private) as file:
                size = file.seek(0, os.SEEK_END)
                start = max(0, size - max(TAIL_BYTES, lines * 200))
                file.seek(start)
                return last_lines(file.read(), lines, cut=start > 0)
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
        files: set[RotatingFile] = set()
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
