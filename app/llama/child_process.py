"""One child process: spawned, signalled, reaped. What it says is for its owner."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from typing import Protocol, cast

from app.llama.command_line import Command
from app.llama.exit_reason import Failure, FailureKind
from app.llama.os_calls import KILL, NO_FILES_LEFT, WINDOWS, out_of_files, spawn_options
from app.llama.output_pipe import Output, ProcessEvents
from app.llama.process_timeouts import ProcessTimes
from app.llama.runner_interface import LoadError

EXIT_COMMAND = b"cmd_router_to_child:exit\n"


class ChildOwner(Protocol):
    """Who is told, on the event loop."""

    def took_output(self, data: bytes) -> bool:
        """True where the rest may wait a little."""
        ...

    def process_ended(self, code: int) -> None:
        """It has gone, and has said everything. Told once."""


class ChildProcess:
    """Its output is read while nobody awaits anything of it."""

    def __init__(self, owner: ChildOwner, times: ProcessTimes) -> None:
        self.pid = 0
        self.was_stopped = False
        """The router ended it, or tried to."""
        self._owner, self._times = owner, times
        self._output = Output(self, times.read_pause_s)
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.SubprocessTransport | None = None
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._code: int | None = None
        self._output_ended = False

    async def spawn(self, command: Command) -> None:
        """Raises `LoadError`."""
        stdout = subprocess.PIPE
        try:
            stdout = self._output.open()
            self._transport, _ = await self._loop.subprocess_exec(
                lambda: ProcessEvents(self, self._output),
                *command.argv,
                env=command.env,
                stdin=subprocess.PIPE,  # kept open: its end of file ends the child
                stdout=stdout,
                stderr=subprocess.STDOUT,
                **spawn_options(),
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise LoadError(_not_spawned(command, error)) from error
        finally:
            if stdout != subprocess.PIPE:
                os.close(stdout)
            if self._transport is None:
                self._output.close()
        self.pid = self._transport.get_pid()

    async def stop(self, grace_s: float) -> bool:
        """Ask it to exit, then kill it. False: it has outlived SIGKILL. Safe to call twice, and at the same
        time."""
        if self._transport is None:
            return True
        self.was_stopped = True
        if not self._gone.done():
            self._ask_to_exit()
            await asyncio.wait({self._gone}, timeout=grace_s)
        if not self._gone.done():
            self._signal_group(KILL)
            await asyncio.wait({self._gone}, timeout=self._times.kill_wait_s)
        if not self._gone.done():
            return False
        await self.reaped()
        return True

    async def reaped(self) -> None:
        """However long that takes; at once without a process. Nobody else could reap an unkillable one."""
        if self._transport is None:
            return
        await asyncio.shield(self._gone)
        self._transport.close()
        self._output.close()
        await asyncio.wait({self._closed}, timeout=1.0)

    def kill(self) -> None:
        """Without waiting: whatever is left of the group goes, the pipes are closed. Safe to call twice."""
        if self._transport is None:
            return
        self.was_stopped = True
        if not self._loop.is_closed():
            self._transport.close()  # before the signal: it polls, which would steal the exit code
            self._output.close()
        if not self._gone.done():
            self._signal_group(KILL)

    # --- what the pipes tell

    def took_output(self, data: bytes) -> bool:
        return self._owner.took_output(data)

    def process_exited(self, code: int) -> None:
        self._code = code
        self._signal_group(KILL)  # what the child started itself must not outlive it
        if self._output_ended:
            self._conclude()
        else:
            self._loop.call_later(self._times.last_output_s, self._conclude)

    def output_ended(self) -> None:
        self._output_ended = True
        if self._code is not None:
            self._conclude()

    def connection_lost(self) -> None:
        if not self._closed.done():
            self._closed.set_result(None)

    # --- inside

    def _conclude(self) -> None:
        if self._gone.done() or self._code is None:
            return
        self._gone.set_result(None)
        self._owner.process_ended(self._code)

    def _ask_to_exit(self) -> None:
        # With the child protocol on, a loaded server that only gets SIGTERM goes on waiting for stdin.
        pipe = self._transport.get_pipe_transport(0) if self._transport is not None else None
        if pipe is not None and not pipe.is_closing():
            cast(asyncio.WriteTransport, pipe).write(EXIT_COMMAND)
        if not WINDOWS:  # where the command is the only gentle way
            self._signal_group(signal.SIGTERM)

    def _signal_group(self, number: int) -> None:
        if self._transport is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if WINDOWS:
                self._transport.kill()
            else:
                os.killpg(self.pid, number)


def _not_spawned(command: Command, error: BaseException) -> Failure:
    if out_of_files(error):
        return Failure(FailureKind.OUT_OF_FILES, NO_FILES_LEFT, None, ())
    message = f"{command.argv[0]} cannot be executed: {error}. Check system.llama_server_path."
    return Failure(FailureKind.BAD_BINARY, message, None, ())
