"""One llama-server from its start to its exit: its log and its port are watched, and its load is judged."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import anyio

from app.domain.status import Status
from app.judgement.evidence import Evidence
from app.judgement.judge import Cause, ProcessLimits, Repeated, Verdict, judge
from app.judgement.router_pauses import Pauses
from app.llama.child_process import ChildProcess
from app.llama.command_line import Command
from app.llama.exit_reason import LOOK_BACK, TAIL_LINES, Failure, FailureKind, classify, of_exit_alone
from app.llama.load_output import LoadLog, LoadReader
from app.llama.load_signs import LoadSigns
from app.llama.output.log import ModelLog
from app.llama.port_probe import PortAnswer, PortProbe
from app.llama.ports import can_bind
from app.llama.process_timeouts import USUAL, ProcessTimes
from app.llama.runner_interface import Exit, LoadError, OnChange
from app.llama.slots_endpoint import SLOT_IS_FREE

logger = logging.getLogger(__name__)

POLL_S = 0.05
POLL_SHARE = 0.05  # of the time that a load has taken: it is ready at most that much earlier than is noticed
LOOK_S = 0.5
"""What it does is looked at this often, also while its port is closed, or it will say when it is ready."""


class LlamaRunner:
    """A `Runner` around one process. It is also drained while nobody awaits anything of it."""

    def __init__(
        self,
        alias: str,
        port: int,
        api_key: str,
        log: ModelLog,
        load_timeout_s: float,
        on_change: OnChange,
        files: Sequence[Path] = (),
        *,
        will_tell: bool = False,
        pauses: Pauses | None = None,
        times: ProcessTimes = USUAL,
    ) -> None:
        """`will_tell`: the one before said when it was ready, so this one need not be asked all the time."""
        self.pid = 0
        self.port, self.api_key, self.log = port, api_key, log
        self.phase = Status.STARTING
        self.unkillable = False
        self.load_log = LoadLog()
        self._alias, self._on_change, self._will_tell = alias, on_change, will_tell
        now = time.monotonic()
        self.evidence, self._pauses = Evidence(now), pauses or Pauses(now)
        self._limits = ProcessLimits(load_s=load_timeout_s, closed_s=times.port_closed_s)
        self._signs = LoadSigns(files, self.load_log, self.evidence)
        self._probe = PortProbe(port, api_key, self.evidence, self._pauses)
        self._reader, self._begin = LoadReader(self.load_log), log.position
        self._child = ChildProcess(self, times)
        self._exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._wake = asyncio.Event()

    # --- life

    async def spawn(self, command: Command) -> None:
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        self.log.feed(f"[router: {now} starting {self._alias} on port {self.port}]\n".encode())
        self._begin = self.log.position
        await self._child.spawn(command)
        self.pid = self._child.pid
        logger.debug("%s: pid %d on port %d: %s", self._alias, self.pid, self.port, " ".join(command.argv))

    async def ready(self) -> None:
        """One caller at a time. See `Runner.ready`."""
        self.evidence.moved(time.monotonic())
        repeated = Repeated()
        while not await self._serves():
            if self._exit.done():
                raise LoadError(self._exit.result().failure)
            if await self._signs.look(self.pid):
                self._on_change(self)
            now = time.monotonic()
            verdict = judge(self.evidence, self._limits, self._pauses, now)
            if repeated.stuck(verdict, self.evidence, now):
                raise LoadError(self._failure(FailureKind.TIMEOUT, self._why(verdict)))
            with self._probe.waiting(self._poll_s(now), self._wake.set), anyio.move_on_after(LOOK_S):
                await self._wake.wait()
            self._wake.clear()
        self.evidence.ready(time.monotonic())
        self._enter(Status.READY)

    async def exited(self) -> Exit:
        return await asyncio.shield(self._exit)

    async def sample(self) -> None:
        await self._probe.sample(self.pid)

    async def look(self, *, at_slots: bool) -> None:
        await self._probe.look(self.pid, at_slots=at_slots)

    async def stop(self, grace_s: float = 2.0) -> None:
        if not await self._child.stop(grace_s) and not self.unkillable:
            self.unkillable = True
            logger.error("%s: pid %d does not die, it hangs inside the kernel", self._alias, self.pid)
            self._on_change(self)

    async def reaped(self) -> None:
        """However long that takes; at once without a process."""
        await self._child.reaped()

    def kill(self) -> None:
        """Without waiting, also from a signal's handler."""
        self._child.kill()

    # --- what the process does

    def took_output(self, data: bytes) -> bool:
        self.log.feed(data)
        if self.phase is not Status.READY:  # afterwards every line is only on its way to the file
            self.evidence.moved(time.monotonic())
            self._read_lines(data)
        elif not self.evidence.shows_slots:
            self.evidence.said(time.monotonic())
        elif any(line in data for line in SLOT_IS_FREE):
            self.evidence.said_slot_is_free(time.monotonic())
        return self.phase is Status.READY

    def process_ended(self, code: int) -> None:
        self.evidence.exited(time.monotonic())
        self._probe.stop()
        self._exit.set_result(Exit(code, self._reason(code)))
        self.log.release()
        self._wake.set()

    # --- inside

    def _reason(self, code: int) -> Failure:
        if self._child.was_stopped:
            return self._failure(FailureKind.KILLED, "It was stopped by the router.", code)
        lines = self.log.tail(LOOK_BACK, since=self._begin)
        if self.phase is Status.READY:
            return of_exit_alone(code, lines)
        failure = classify(code, lines)
        if failure.kind is FailureKind.CUT_SHORT and not can_bind(self.port):
            message = f"Port {self.port} was taken by another program. Another port is tried."
            return replace(failure, kind=FailureKind.PORT_TAKEN, message=message)
        return failure

    def _read_lines(self, data: bytes) -> None:
        changed = self._reader.feed(data)
        self.evidence.doing = self.load_log.stage or self.load_log.state or ""
        if self.load_log.state == "ready":
            self.evidence.said_ready = True
            self._wake.set()
        if self.phase is Status.STARTING and self.load_log.state in ("loading", "ready"):
            self._enter(Status.LOADING)  # it has begun to load, also where all of that came in one read
        elif changed:
            self._on_change(self)

    async def _serves(self) -> bool:
        """Look once at the port."""
        answer = await self._probe.load_step()
        if answer is PortAnswer.LOADING:
            self._enter(Status.LOADING)
        elif answer is PortAnswer.NOT_OURS:
            await self._refuse_other_program()
        return answer is PortAnswer.SERVES

    async def _refuse_other_program(self) -> None:
        # Our process could not bind the port and is about to say so itself, which is the better message.
        await asyncio.wait({self._exit}, timeout=1.0)
        if not self._exit.done():
            message = f"Port {self.port} is served by another program. Another port is tried."
            raise LoadError(self._failure(FailureKind.PORT_TAKEN, message))

    def _enter(self, phase: Status) -> None:
        if phase is not self.phase:
            self.phase = phase
            self._on_change(self)

    def _why(self, verdict: Verdict) -> str:
        if verdict.cause is Cause.PORT_CLOSED:
            return "llama-server closed its port while it loaded. It is started again."
        return (
            f"The load showed no progress for {self._limits.load_s:.0f} s. Look at its log; if the disk or "
            "the GPU is only slow, raise system.load_timeout_sec."
        )

    def _poll_s(self, now: float) -> float:
        if self._will_tell or self.load_log.state is not None:  # when it is ready, which wakes
            return LOOK_S
        return min(max(POLL_S, POLL_SHARE * (now - self.evidence.started)), LOOK_S)

    def _failure(self, kind: FailureKind, message: str, code: int | None = None) -> Failure:
        tail = tuple(self.log.tail(TAIL_LINES, since=self._begin))
        return Failure(kind, message, code, tail, served=self.phase is Status.READY)
