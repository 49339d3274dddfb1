"""A child's output is read through a pipe that is closed once, whatever the event loop."""

from __future__ import annotations

import asyncio
import os

from app.llama.output_pipe import PipeReader
from tests.event_loops import on_both_loops
from tests.serving import soon

__all__ = ["on_both_loops"]


class Heard(asyncio.Protocol):
    def __init__(self) -> None:
        self.data, self.ended = b"", asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set()


async def test_all_that_is_written_is_heard_and_then_the_end() -> None:
    ours, childs = os.pipe()
    heard = Heard()
    reader = PipeReader(ours, heard)
    os.write(childs, b"one ")
    reader.pause_reading()
    os.write(childs, b"two")
    os.close(childs)
    reader.resume_reading()
    await soon(heard.ended.wait())
    assert heard.data == b"one two" and reader.is_closing()


async def test_a_pipe_that_is_closed_is_closed_once() -> None:
    """The second time its number may be that of a client's connection, or of a file in another thread."""
    ours, childs = os.pipe()
    heard = Heard()
    reader = PipeReader(ours, heard)
    reader.close()
    other = os.open(os.devnull, os.O_RDONLY)
    try:
        assert other == ours  # the lowest number that is free
        reader.close()
        reader.pause_reading()
        await soon(heard.ended.wait())
        os.fstat(other)
    finally:
        os.close(other)
        os.close(childs)
