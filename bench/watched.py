"""The router with a timer inside that measures for how long its event loop stands still.

`python -m bench.watched -c CONFIG`, in place of `run.py`. The longest times go into the file that the
environment variable HOLDS names.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from pathlib import Path

import app.uvicorn_server
from app.uvicorn_server import RouterServer
from run import main

TICK_S = 0.002
KEPT = 20


class Holds:
    """The longest times between two ticks, less the tick: by the clock, and in CPU time of this thread.

    Only the second is the router's own where other programs run on the same processors.
    """

    def __init__(self) -> None:
        self.wall_ms: list[float] = []
        self.cpu_ms: list[float] = []
        self._last = time.perf_counter(), time.thread_time()

    def tick(self) -> None:
        now = time.perf_counter(), time.thread_time()
        for found, last, this in zip((self.wall_ms, self.cpu_ms), self._last, now, strict=True):
            found.append(1000 * (this - last))
            if len(found) > 2000:
                found[:] = sorted(found)[-KEPT:]
        self._last = now
        asyncio.get_running_loop().call_later(TICK_S, self.tick)

    def write(self, path: Path) -> None:
        longest = {"wall_ms": sorted(self.wall_ms)[-KEPT:], "cpu_ms": sorted(self.cpu_ms)[-KEPT:]}
        path.write_text(json.dumps(longest))


class WatchedServer(RouterServer):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._holds = Holds()
        self._holds.tick()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._holds.write(Path(os.environ["HOLDS"]))
        await super().shutdown(sockets)


if __name__ == "__main__":
    app.uvicorn_server.RouterServer = WatchedServer  # type: ignore[misc]
    sys.exit(main())
