"""What the operating system offers for children: groups, the parent-death signal, what a process uses."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import psutil

WINDOWS = sys.platform == "win32"
KILL = signal.SIGTERM if WINDOWS else signal.SIGKILL

SMALL_FILE = 64 << 20
FILES_OF_A_START = 8

NO_FILES_LEFT = (
    "The router has no files or connections left. Raise its limit (ulimit -n, LimitNOFILE), or lower the "
    "number of clients."
)
_LACKS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.EADDRNOTAVAIL})

_MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ ")
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def out_of_files(error: BaseException) -> bool:
    """It says nothing of the other end: the router, or the system, could not open what it takes to ask.

    uvloop tells no reason why a process could not be started: then a few files are opened to see.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _LACKS:
            return True
        if isinstance(seen, OSError) and seen.errno == -1 and not files_left():
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def files_left() -> bool:
    """As many as a process takes to start. Blocking."""
    with contextlib.ExitStack() as stack:
        try:
            for _ in range(FILES_OF_A_START):
                stack.enter_context(Path(os.devnull).open("rb"))
        except OSError:
            return False
    return True


def spawn_options() -> dict[str, Any]:
    if WINDOWS:
        return {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
    options: dict[str, Any] = {"start_new_session": True}
    if _LIBC is not None:
        options["preexec_fn"] = functools.partial(_die_with, os.getpid())
    return options


def _die_with(parent: int) -> None:
    """In the child: be killed when the thread that spawned it ends, else a killed router leaves gigabytes."""
    assert _LIBC is not None
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died in between
        os._exit(1)


def usage(pid: int) -> tuple[int, int]:
    """Bytes read so far and resident bytes; zeros where it cannot be told. Blocking."""
    try:
        process = psutil.Process(pid)
        counters = process.io_counters() if hasattr(process, "io_counters") else None
        return (counters.read_bytes if counters else 0), process.memory_info().rss
    except (psutil.Error, OSError):
        return 0, 0


def share_read(pid: int, files: Sequence[Path]) -> float | None:
    """The part of these files that a process has in its memory, or has read; None where nobody can tell.

    Pages of a mapping are counted for these files alone. Calls of `read` are counted whatever they read,
    which is lost in a model's file but not in a small one: those are left out. Blocking, and longer for a
    large mapping: the kernel walks through all of its pages.
    """
    try:
        size = sum(file.stat().st_size for file in files)
        if sys.platform != "linux" or size < SMALL_FILE:
            return None
        counters = Path(f"/proc/{pid}/io").read_text(encoding="ascii")
        read = int(counters.partition("rchar:")[2].split()[0])
        with Path(f"/proc/{pid}/smaps").open(encoding="utf-8", errors="surrogateescape") as maps:
            mapped = _mapped_bytes(maps, {os.path.realpath(file) for file in files})
    except (OSError, ValueError, IndexError):  # it has gone, or is none of ours
        return None
    return min(max(read, mapped) / size, 1.0)


def _mapped_bytes(maps: Iterable[str], paths: Collection[str]) -> int:
    total, counts = 0, False
    for line in maps:
        if _MAPPING.match(line):
            counts = line.rstrip("\n").split(maxsplit=5)[-1] in paths
        elif counts and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def processor_use(pid: int) -> tuple[float, bool]:
    """Processor time that all its threads have used so far, on Linux with the time in which they waited for a
    processor; and whether it is stopped by a signal or a debugger. Nothing where it cannot be told. Blocking.
    """
    try:
        process = psutil.Process(pid)
        times, status = process.cpu_times(), process.status()
    except (psutil.Error, OSError):
        return 0.0, False
    waited_s = _waited_for_processor_s(pid) if sys.platform == "linux" else 0.0
    stopped = status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    return times.user + times.system + waited_s, stopped


def _waited_for_processor_s(pid: int) -> float:
    """What a thread would compute if others did not: on a busy machine this is most of its time."""
    waited_ns = 0
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(
                OSError, ValueError, IndexError
            ):  # it has just ended, or nobody counts it
                waited_ns += int((thread / "schedstat").read_text(encoding="ascii").split()[1])
    return waited_ns / 1e9


def start_mark(pid: int) -> str | None:
    """When it was started, in words that no later process with its pid has; None if there is none.

    On Linux in ticks since boot: the wall-clock time that psutil makes of them moves when the clock is set.
    """
    try:
        if sys.platform != "linux":
            return f"{psutil.Process(pid).create_time():.2f}"
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return f"{boot} {stat.rpartition(')')[2].split()[19]}"  # its name, in brackets, may hold anything
    except (OSError, psutil.Error, IndexError):
        return None


def kill_group(process: psutil.Process) -> None:
    """The process and what it started, if it leads a group of its own."""
    with contextlib.suppress(OSError, psutil.Error):
        if not WINDOWS and process.is_running() and os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, KILL)
        else:
            process.kill()
