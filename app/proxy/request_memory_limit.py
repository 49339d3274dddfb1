"""How many bytes are held for clients, and how many may be."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from app.core.config import Config
from app.domain.errors import Overloaded, RequestTooLarge, RouterError
from app.domain.units import MIB

MOST_MB = 2048
"""Of a limit that nobody has set."""

MACHINE_PART = 4
STRANGERS_PART = 16
"""Such a part of it is for what has come before anybody knows whose it is."""

RETRY_AFTER_S = 2
LARGE_BYTES = MIB
"""Giving so much back to the system takes a millisecond for every 16 MB: not all of it in one turn."""


def _nothing(_: int) -> None:
    """There is nothing that could be given up."""


class ClientMemory:
    """A body is read only when it has a place here. On the event loop."""

    TAKES = ("api.max_memory_mb",)

    def __init__(self, config: Config, machine_mb: int) -> None:
        self.held = 0
        """Bytes, of bodies whose rest has yet to come as announced, too."""
        self.strangers = 0
        """Those of them that wait to be dealt with, which nobody has been let in with, or some of them."""
        self.spooled = 0
        """Bytes of uploads in files, which may be in memory too: where the folder for them is a tmpfs."""
        self._machine_mb = machine_mb
        self._unused: deque[bytes | bytearray] = deque()
        self._reclaim: Callable[[int], None] = _nothing
        self.apply(config)

    def apply(self, config: Config) -> None:
        """What is held already stays, also where it is more than that."""
        mb = config.api.max_memory_mb or max(min(self._machine_mb // MACHINE_PART, MOST_MB), 1)
        self.limit = mb * MIB
        self._strangers_limit = self.limit // STRANGERS_PART

    def figures(self) -> dict[str, int]:
        """Bytes, by their kind in the metrics."""
        return {"clients": self.held, "clients_limit": self.limit}

    def reclaim_by(self, reclaim: Callable[[int], None]) -> None:
        """Is asked for so many bytes, of what clients can do without, before one is refused."""
        self._reclaim = reclaim

    # --- bodies, and what is made of them

    def take(self, size: int) -> None:
        """Raises `RequestTooLarge` or `Overloaded`, and then has taken nothing."""
        surplus = self.held + size - self.limit
        if surplus > 0:
            if size <= self.limit:
                self._reclaim(surplus)
            if self.held + size > self.limit:
                raise self._refusal(size)
        self.held += size

    def give_back(self, size: int, data: bytes | bytearray) -> None:
        """`data`: what was held. It is freed by and by."""
        self.held -= size
        if len(data) >= LARGE_BYTES:
            self._unused.append(data)
            if len(self._unused) == 1:
                self._free_soon()

    def spool(self, size: int) -> None:
        """In files: as much again as in memory. Raises `Overloaded`, and then has taken nothing."""
        if self.spooled + size > self.limit:
            raise self.full()
        self.spooled += size

    def _refusal(self, size: int) -> RouterError:
        if size > self.limit:
            mb = self.limit // MIB
            return RequestTooLarge(
                f"the body is larger than the {mb} MB that all bodies may take; raise api.max_memory_mb"
            )
        return self.full()

    def full(self) -> Overloaded:
        """For a client whose bytes there is no place for."""
        return Overloaded(
            f"the {self.limit // MIB} MB that requests may take together are taken; try again soon, or raise "
            "api.max_memory_mb",
            retry_after_s=RETRY_AFTER_S,
        )

    def _free_soon(self) -> None:
        try:
            asyncio.get_running_loop().call_soon(self._free_one)
        except RuntimeError:  # nobody is kept waiting
            self._unused.clear()

    def _free_one(self) -> None:
        self._unused.popleft()
        if self._unused:
            self._free_soon()

    # --- what waits in front of them

    def count(self, more: int) -> bool:
        """Bytes that have come unasked, or that have been taken: they are there, place or not.

        False: there is none for them.
        """
        self.held += more
        self.strangers += more
        return self.strangers <= self._strangers_limit
