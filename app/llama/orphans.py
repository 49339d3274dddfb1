"""Which llama-servers are ours, on disk: so that the next start ends those that a killed router left behind.

On Linux the parent-death signal does that already; elsewhere an orphan would hold its gigabytes for ever.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue

import psutil

from app.domain.atomic_files import write_whole
from app.llama.os_calls import WINDOWS, kill_group, start_mark

logger = logging.getLogger(__name__)

CLOSE_S = 5.0
GONE_S = 5.0


@dataclass(frozen=True)
class Known:
    """A process that cannot be mistaken for another one that got its pid later."""

    pid: int
    started: str
    arguments: tuple[str, ...] = ()

    @classmethod
    def of(cls, pid: int, arguments: Sequence[str] = ()) -> Known | None:
        started = start_mark(pid)
        return cls(pid, started, tuple(arguments)) if started is not None else None

    def alive(self) -> psutil.Process | None:
        """The process, if it is still this one. A wrapper script may have become llama-server meanwhile:
        its start and its arguments stay, its executable does not."""
        try:
            process = psutil.Process(self.pid)
            if start_mark(self.pid) != self.started or process.status() == psutil.STATUS_ZOMBIE:
                return None
            return process if not self.arguments or self._runs_in(process) else None
        except psutil.Error:
            return None

    def remains(self) -> list[psutil.Process]:
        """The process, or where that was a wrapper script and is dead, the llama-server that it left.

        A group keeps its number from being given to anybody else.
        """
        if process := self.alive():
            return [process]
        if WINDOWS or not self.arguments or start_mark(self.pid) not in (None, self.started):
            return []
        return [process for process in psutil.process_iter() if self._left(process)]

    def _left(self, process: psutil.Process) -> bool:
        try:
            return os.getpgid(process.pid) == self.pid and self._runs_in(process)
        except (OSError, psutil.Error):
            return False

    def _runs_in(self, process: psutil.Process) -> bool:
        return tuple(process.cmdline()[-len(self.arguments) :]) == self.arguments


class PidFile:
    """The children of this router. For the event loop: its own thread writes, only the newest list counts."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / f"children-{os.getpid()}.json"
        self._children: dict[int, Known] = {}
        self._lists: SimpleQueue[tuple[Known, ...] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._write_all, name="pid-file", daemon=True)
        self._thread.start()

    def note(self, pid: int, arguments: Sequence[str]) -> None:
        if child := Known.of(pid, arguments):
            self._children[pid] = child
            self._lists.put(tuple(self._children.values()))

    def forget(self, pid: int) -> None:
        """Not one that lives on, hung inside the kernel: the next start tries again."""
        if (child := self._children.get(pid)) and not child.alive():
            del self._children[pid]
            self._lists.put(tuple(self._children.values()))

    def close(self) -> None:
        """What is queued is written; a disk that hangs is not waited for."""
        self._lists.put(None)
        self._thread.join(CLOSE_S)

    def _write_all(self) -> None:
        complained = False
        for children in iter(self._lists.get, None):
            try:
                _write(self._path, children)
            except OSError as error:
                if not complained:
                    logger.warning("%s cannot be written: %s", self._path, error)
                complained = True


def reap_orphans(folder: Path) -> int:
    """End what earlier routers with this log folder left behind; how many there were. Blocking.

    Never a stranger: pid, start and arguments must be the noted ones, and the router that owned it dead.
    """
    orphans = [orphan for file in sorted(folder.glob("children-*.json")) for orphan in _left_by(file)]
    for orphan in orphans:
        logger.warning("ending pid %d, a llama-server that an earlier run left behind", orphan.pid)
        kill_group(orphan)
    _, alive = psutil.wait_procs(orphans, timeout=GONE_S)
    for orphan in alive:
        logger.error("pid %d does not die, it hangs inside the kernel", orphan.pid)
    return len(orphans)


def _left_by(file: Path) -> list[psutil.Process]:
    """The living children of a dead router; its file has served its purpose."""
    try:
        router, children = _read(file)
    except (OSError, ValueError, TypeError, KeyError) as error:
        logger.warning("%s cannot be read: %s; it is ignored", file, error)
        return []
    if router.alive():
        return []
    try:
        file.unlink()
    except OSError as error:
        logger.warning("%s cannot be removed: %s", file, error)
    return [process for child in children for process in child.remains()]


def _read(file: Path) -> tuple[Known, list[Known]]:
    body = json.loads(file.read_text(encoding="utf-8"))
    return _known(body["router"]), [_known(child) for child in body["children"]]


def _known(fields: dict[str, object]) -> Known:
    pid, started, arguments = fields["pid"], fields["started"], fields["arguments"]
    if not (isinstance(pid, int) and pid > 1 and isinstance(started, str) and isinstance(arguments, list)):
        raise ValueError(f"no process: {fields}")
    return Known(pid, started, tuple(map(str, arguments)))


def _write(path: Path, children: Iterable[Known]) -> None:
    """No file when there are no children."""
    listed = [asdict(child) for child in children]
    router = Known.of(os.getpid())
    if not listed or router is None:
        path.unlink(missing_ok=True)
        return
    write_whole(path, json.dumps({"router": asdict(router), "children": listed}))
