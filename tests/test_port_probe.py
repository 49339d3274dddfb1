"""What is asked of a process that serves, one question at a time."""

from __future__ import annotations

import asyncio
import os
import time

from app.judgement.evidence import Evidence
from app.judgement.pauses import Pauses
from app.llama.port_probe import PortProbe

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
