"""How many bytes are held for clients, and how many may be."""

from __future__ import annotations

import asyncio
from collections import deque

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


class ClientMemory:
    """A body is read only when it has a place here. On the event loop."""

    TAKES = ("api.max_memory_mb",)

    def __init__(self, config: Config, machine_mb: int) -> None:
        self.held = 0
        """Bytes, of bodies whose rest has yet to come as announced."""
        self.strangers = 0
        """Those of them that nobody has been let in with."""
        self.spooled = 0
        """Bytes of uploads in files, which may be in memory too: where the folder for them is a tmpfs."""
        self._machine_mb = machine_mb
        self._unused: deque[bytes | bytearray] = deque()
        self.apply(config)

    def apply(self, config: Config) -> None:
        """What is held already stays, also where it is more than that."""
        mb = config.api.max_memory_mb or max(min(self._machine_mb // MACHINE_PART, MOST_MB), 1)
        self.limit = mb * MIB
        self._strangers_limit = self.limit // STRANGERS_PART

    def figures(self) -> dict[str, int]:
        """Bytes, by their kind in the metrics."""
        return {"clients": self.held, "clients_limit": self.limit}

    # --- bodies

    def take(self, size: int) -> None:
        """Raises what the client is to be told, and then has taken nothing."""
        held = self.held + size
        if held > self.limit:
            raise self._refusal(size)
        self.held = held

    def give_back(self, size: int, data: bytes | bytearray) -> None:
        """`data`: what was held. It is freed by and by."""
        self.held -= size
        if len(data) >= LARGE_BYTES:
            self._unused.append(data)
            if len(self._unused) == 1:
                self._free_soon()

    def spool(self, size: int) -> None:
        """As much again as in memory. Raises what the client is to be told, and then has taken nothing."""
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
        """What a client is told for whose bytes there is no place."""
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
