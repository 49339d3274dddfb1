"""What a look at a process asks it, and does for those who wait for it."""

from __future__ import annotations

import asyncio
import os
import socket
import time

from app.judgement.evidence import Evidence
from app.judgement.router_pauses import Pauses
from app.llama.port_probe import PortProbe
from tests.router_process import until
from tests.serving import soon

SLOTS = b'[{"id_task": 3, "is_processing": true, "next_token": [{"n_decoded": 7}]}]'


class SlowHealth:
    """Answers everything but /health, which it never does."""

    def __init__(self) -> None:
        self.is_asked = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET /health "):
            self.is_asked.set()
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(SLOTS), SLOTS))
        await reader.read()
        writer.close()


async def test_a_look_at_the_slots_does_not_wait_for_an_answer_about_its_health() -> None:
    server = SlowHealth()
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listening:
        evidence = Evidence(time.monotonic())
        port = listening.sockets[0].getsockname()[1]
        probe = PortProbe(port, "key", evidence, Pauses(time.monotonic()))
        first = asyncio.create_task(probe.look(os.getpid(), at_slots=False))
        await server.is_asked.wait()
        await asyncio.gather(first, probe.look(os.getpid(), at_slots=True))
        probe.stop()
    assert evidence.slots is not None and [slot.generated for slot in evidence.slots] == [7]
    assert evidence.missed == [], "what was not waited for is no miss"
    assert evidence.asking_since is None


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


async def a_look_at_an_open_port(look_in_s: float) -> None:
    seen = asyncio.Event()
    with socket.create_server(("127.0.0.1", 0)) as port:
        probe = PortProbe(port.getsockname()[1], "key", Evidence(0.0), Pauses(0.0))
        with probe.waiting(look_in_s, seen.set):
            await soon(seen.wait())


async def test_a_port_that_is_bound_is_noticed_and_until_then_nothing_is_asked() -> None:
    evidence = Evidence(time.monotonic())
    opened = asyncio.Event()
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        probe = PortProbe(port.getsockname()[1], "key", evidence, Pauses(time.monotonic()))
        with probe.waiting(0.01, opened.set):
            await a_look_at_an_open_port(0.01)  # its time came after that of the port that is bound
            assert not opened.is_set()
            port.listen()
            await soon(opened.wait())
    assert evidence.observed == 0


async def test_a_port_that_was_open_is_looked_at_also_where_it_refuses() -> None:
    evidence = Evidence(time.monotonic())
    evidence.port_accepted(time.monotonic())
    looked = asyncio.Event()
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        probe = PortProbe(port.getsockname()[1], "key", evidence, Pauses(time.monotonic()))
        with probe.waiting(0.01, looked.set):
            await soon(looked.wait())
