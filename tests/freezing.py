"""One thread of a process that stands still while the others go on, as in a hang inside a driver."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SEIZE, INTERRUPT, DETACH = 0x4206, 0x4207, 17
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_LIBC.ptrace.restype = ctypes.c_long


def can_freeze_threads() -> bool:
    return sys.platform == "linux"


@contextmanager
def frozen_thread(tid: int) -> Iterator[None]:
    """Until the end of the block, or of this thread: its tracer is the thread that enters."""
    _ptrace(SEIZE, tid)
    _ptrace(INTERRUPT, tid)
    os.waitpid(tid, 0x40000000)  # __WALL: it has stopped
    try:
        yield
    finally:
        _LIBC.ptrace(DETACH, tid, None, None)  # unless it was killed


def _ptrace(request: int, tid: int) -> None:
    if _LIBC.ptrace(request, tid, None, None) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"ptrace: {os.strerror(error)}")
