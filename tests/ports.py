"""Ports that no other test has, of this run or of another one on the same machine."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

FIRST, BLOCKS, SIZE = 20000, 600, 20
"""Up to 32000: below those that the system gives to whoever connects, and may have given away by now."""


class Ports:
    """`first` and those after it, as long as this object lives: other processes see the lock on a file."""

    def __init__(self) -> None:
        number, lock = _lock_one()
        self.first = FIRST + SIZE * number
        weakref.finalize(self, os.close, lock)


def free_port() -> int:
    """One that nobody else gets while this program runs. For a server that is told its port: one that the
    system picks (bind to 0) may have been given away again before that server binds it."""
    return next(_own)


def _ports() -> Iterator[int]:
    blocks = []
    while True:
        blocks.append(Ports())
        yield from range(blocks[-1].first, blocks[-1].first + SIZE)


_own = _ports()


def _lock_one() -> tuple[int, int]:
    """A block's number, and the descriptor that holds it."""
    import fcntl  # POSIX only, as the tests are that need it

    folder = Path(tempfile.gettempdir()) / f"router-test-ports-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    for step in range(BLOCKS):
        number = (os.getpid() * 7 + step) % BLOCKS
        lock = os.open(folder / str(number), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
        else:
            return number, lock
    raise RuntimeError(f"all {BLOCKS} blocks of ports are taken: {folder}")
