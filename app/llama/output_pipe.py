"""What a process says, as it comes through its pipe; and its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from typing import Protocol, cast

from app.domain.alarm import Alarm

PIPE_BYTES = 1 << 18
READ_BYTES = 1 << 16
FULL_READ = 1 << 13  # after a read as large as this there is more
FLOOD_BYTES = 1 << 20  # of every READ_PAUSE_S at most; who writes more waits, and the router works for others


class OutputListener(Protocol):
    """Who is told, on the event loop."""

    def took_output(self, data: bytes) -> bool:
        """True where the rest may wait a little."""
        ...

    def output_ended(self) -> None: ...

    def process_exited(self, code: int) -> None: ...

    def connection_lost(self) -> None:
        """All its pipes are closed."""


class PipeReader(asyncio.ReadTransport):
    """Reads a pipe, and is the only one that closes it.

    uvloop closes a file that it is given to read twice. By the second time its number may be that of a file
    which a thread has opened just then, or of a client's connection.
    """

    def __init__(self, pipe: int, protocol: asyncio.Protocol) -> None:
        super().__init__()
        os.set_blocking(pipe, False)
        self._pipe, self._protocol = pipe, protocol
        self._loop = asyncio.get_running_loop()
        self._is_closing = False
        protocol.connection_made(self)
        self.resume_reading()

    def is_closing(self) -> bool:
        return self._is_closing

    def pause_reading(self) -> None:
        if not self._is_closing:
            self._loop.remove_reader(self._pipe)

    def resume_reading(self) -> None:
        if not self._is_closing:
            self._loop.add_reader(self._pipe, self._read)

    def close(self) -> None:
        self._end(None)

    def _read(self) -> None:
        try:
            data = os.read(self._pipe, READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._end(error)
            return
        if data:
            self._protocol.data_received(data)
        else:
            self._end(None)

    def _end(self, error: OSError | None) -> None:
        if self._is_closing:
            return
        self.pause_reading()
        self._is_closing = True
        os.close(self._pipe)
        self._loop.call_soon(self._protocol.connection_lost, error)


class Output(asyncio.Protocol):
    """What the process says.

    A serving llama-server writes some ten short lines a request. Taken as they come they cost the router more
    than the request itself, mostly for waking up; so after each read it pauses for `read_pause_s`.
    """

    def __init__(self, listener: OutputListener, read_pause_s: float) -> None:
        self._listener, self._read_pause_s = listener, read_pause_s
        self._transport: asyncio.ReadTransport | None = None
        self._read_pause = Alarm(self._read_on)
        self._has_exited = False
        self._taken = 0

    def open(self) -> int:
        """What becomes the child's stdout: a pipe, because what uvloop makes is a socket, which is full after
        270 lines, however short they are."""
        if sys.platform == "win32":
            return subprocess.PIPE
        import fcntl

        ours, childs = os.pipe()
        with contextlib.suppress(OSError, AttributeError):  # Linux only, and not for everybody
            fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        PipeReader(ours, self)
        return childs

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.ReadTransport, transport)

    def data_received(self, data: bytes) -> None:
        may_wait = self._listener.took_output(data) and not self._has_exited and self._read_pause.at is None
        self._taken += len(data)
        is_enough = (may_wait and len(data) < FULL_READ) or (
            self._taken > FLOOD_BYTES and not self._has_exited
        )
        if is_enough and self._transport is not None:
            self._transport.pause_reading()
            self._read_pause.set_within(self._read_pause_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._listener.output_ended()

    def process_exited(self) -> None:
        """What it wrote last is read at once."""
        self._has_exited = True
        if self._read_pause.at is not None:
            self._read_pause.cancel()
            self._read_on()

    def close(self) -> None:
        self._read_pause.cancel()
        if self._transport is not None:
            self._transport.close()

    def _read_on(self) -> None:
        self._taken = 0
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()


class ProcessEvents(asyncio.SubprocessProtocol):
    """Hands everything on."""

    def __init__(self, listener: OutputListener, output: Output) -> None:
        self._listener, self._output = listener, output
        self._transport: asyncio.SubprocessTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.SubprocessTransport, transport)
        if (output := self._transport.get_pipe_transport(1)) is not None:
            self._output.connection_made(output)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self._output.data_received(data)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if fd == 1:
            self._output.connection_lost(exc)

    def process_exited(self) -> None:
        assert self._transport is not None
        code = self._transport.get_returncode()
        assert code is not None
        self._output.process_exited()
        self._listener.process_exited(code)

    def connection_lost(self, exc: Exception | None) -> None:
        self._listener.connection_lost()
