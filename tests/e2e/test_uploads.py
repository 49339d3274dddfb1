"""Large recordings, through real sockets to a real llama-server: what they cost, and that none is lost.

No model of a test's size hears, so llama-server refuses what it was sent, when it has read all of it.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from app.domain.units import MIB
from tests.router_process import MakeRouter, RouterProcess, until

AUDIO = "/v1/audio/transcriptions"
SIZE = 60 * MIB
MOST_GROWTH = 20 * MIB
PIECE = 64 * 1024
BOUNDARY = "--recording"

BEGIN = (
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="model"\r\n\r\ntiny\r\n'
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n'
    "Content-Type: audio/wav\r\n\r\n"
).encode()
END = f"\r\n--{BOUNDARY}--\r\n".encode()


@pytest.fixture(scope="module")
def router(make_shared_router: MakeRouter, tiny_gguf: Path) -> RouterProcess:
    return make_shared_router({"tiny": {"model_path": tiny_gguf}})


async def recording(size: int) -> AsyncIterator[bytes]:
    yield BEGIN
    piece = os.urandom(PIECE)
    for _ in range(size // PIECE):
        yield piece
    yield END


async def upload(http: httpx.AsyncClient, size: int) -> httpx.Response:
    length = len(BEGIN) + size // PIECE * PIECE + len(END)
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}", "Content-Length": str(length)}
    return await http.post(AUDIO, content=recording(size), headers=headers, timeout=120)


class Memory:
    """Of the router's process, which may be higher for a moment than anybody looks."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")
        self._before: int = psutil.Process(pid).memory_info().rss
        with suppress(OSError):  # where it is not allowed, its start counts too
            (self._folder / "clear_refs").write_text("5")  # the highest so far is what it is now

    def growth(self) -> int:
        """Bytes, at its highest."""
        lines = (self._folder / "status").read_text().splitlines()
        highest_kb = next(line.split()[1] for line in lines if line.startswith("VmHWM:"))
        return int(highest_kb) * 1024 - self._before


@pytest.mark.skipif(sys.platform != "linux", reason="the highest is told by Linux alone")
async def test_a_large_recording_is_not_in_memory_and_is_sent_again_when_its_process_is_gone(
    router: RouterProcess, http: httpx.AsyncClient
) -> None:
    router.load("tiny")
    small = await upload(http, PIECE)
    refused = small.json()["error"]
    replays = router.metric("router_request_replays_total", model="tiny")
    memory = Memory(router.pid)
    with router.frozen("tiny") as process:
        answer = asyncio.create_task(upload(http, SIZE))
        await until(lambda: router.status("tiny")["in_flight"] == 1, 60)
        process.kill()
    large = await answer
    assert (large.status_code, large.json()["error"]) == (small.status_code, refused)
    assert router.metric("router_request_replays_total", model="tiny") == replays + 1
    assert memory.growth() < MOST_GROWTH
    assert "audio" in refused["message"]
