"""A wall clock that one process alone sees jump, while the machine's goes on."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from pathlib import Path

from tests.shared_library import compile_library

SOURCE = Path(__file__).with_name("wall_clock.c")


class WallClock:
    """What a process that is started with `env` takes for the time of day; not so its children."""

    def __init__(self, folder: Path) -> None:
        self._library = compile_library(SOURCE, folder / "wall_clock.so")
        self._control = folder / "wall_clock"
        self._control.write_bytes(struct.pack("d", 0.0))
        with self._control.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 8)

    def jump_to(self, offset_s: float) -> None:
        """So far from the true time, and at once."""
        self._map[:] = struct.pack("d", offset_s)

    @property
    def env(self) -> Mapping[str, str]:
        return {"LD_PRELOAD": str(self._library), "WALL_CLOCK": str(self._control)}
