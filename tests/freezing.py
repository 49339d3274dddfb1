"""One thread of a process that stands still while the others go on, as in a hang inside a driver."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.patience import WAIT_S

SEIZE, INTERRUPT, DETACH = 0x4206, 0x4207, 17
ALL_THREADS = 0x40000000
LOOK_S = 0.02


@contextmanager
def frozen_thread(tid: int) -> Iterator[None]:
    """Until the end of the block. The others go on until they need it."""
    if sys.platform != "linux":
        pytest.skip("ptrace is Linux's")
    tracer = _Tracer(tid)
    tracer.start()
    assert tracer.is_frozen.wait(WAIT_S), "it could not be frozen"
    try:
        yield
    finally:
        tracer.is_over.set()
        tracer.join(WAIT_S)


class _Tracer(threading.Thread):
    """Only who traces may wait for it and let it go; who does not wait keeps it from being reaped."""

    def __init__(self, tid: int) -> None:
        super().__init__(daemon=True)
        self.is_frozen, self.is_over = threading.Event(), threading.Event()
        self._tid = tid
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]

    def run(self) -> None:
        if self._ptrace(SEIZE) != 0 or self._ptrace(INTERRUPT) != 0:
            return
        os.waitpid(self._tid, ALL_THREADS)
        self.is_frozen.set()
        while not self.is_over.wait(LOOK_S):
            try:
                os.waitpid(self._tid, ALL_THREADS | os.WNOHANG)
            except ChildProcessError:
                return
        self._ptrace(DETACH)

    def _ptrace(self, request: int) -> int:
        result: int = self._libc.ptrace(request, self._tid, None, None)
        return result
