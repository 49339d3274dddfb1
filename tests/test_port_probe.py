"""What a look at a process does for those who wait for it."""

from __future__ import annotations

import asyncio
import os
import socket
import time

from app.judgement.evidence import Evidence
from app.judgement.pauses import Pauses
from app.llama.port_probe import PortProbe
from tests.router_process import until


async def test_a_look_that_is_stopped_with_its_process_returns_to_all_who_wait_for_it() -> None:
    """The health monitor is one of them, and a cancelled look would cancel it, with all its other looks."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        now = time.monotonic()
        evidence = Evidence(now)
        probe = PortProbe(silent.getsockname()[1], "key", evidence, Pauses(now))
        waiting = [asyncio.create_task(probe.look(os.getpid(), at_slots=False)) for _ in range(2)]
        await until(lambda: evidence.asking_since is not None)
        probe.stop()
        assert await asyncio.gather(*waiting, return_exceptions=True) == [None, None]


async def test_who_is_cancelled_while_it_waits_for_a_look_leaves_it_to_the_others() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        now = time.monotonic()
        evidence = Evidence(now)
        probe = PortProbe(silent.getsockname()[1], "key", evidence, Pauses(now))
        first, second = (asyncio.create_task(probe.look(os.getpid(), at_slots=False)) for _ in range(2))
        await until(lambda: evidence.asking_since is not None)
        first.cancel()
        assert isinstance((await asyncio.gather(first, return_exceptions=True))[0], asyncio.CancelledError)
        assert not second.done()
        probe.stop()
        await second
