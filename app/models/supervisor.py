"""One process of a model: the task that is its life, from spawn to reap."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from enum import Enum
from typing import Protocol

import anyio

from app.core.vram_tracker import DeviceTracker
from app.domain.model_spec import ModelSpec
from app.domain.views import Placement
from app.llama.exit_reason import Failure, FailureKind
from app.llama.load_output import LoadLog
from app.llama.os_calls import NO_FILES_LEFT, out_of_files
from app.llama.runner_interface import Launcher, LoadError, Runner
from app.memory.model_memory import ModelMemory
from app.models.conversations import Conversations
from app.models.lifecycle_effects import Blame, ProcessEnd

logger = logging.getLogger(__name__)


class ProcessOwner(Protocol):
    """The model that a process serves. None of these may wait."""

    def process_changed(self, process: Supervisor) -> None:
        """There is news of its load, or it does not die."""

    def load_again(self) -> None:
        """The load has to stop for another one: it takes more memory than was reserved."""

    def process_serves(self, process: Supervisor) -> None:
        """It may be given requests."""

    def slot_bytes_to_keep(self, process: Supervisor) -> int | None:
        """What a full slot takes, if the conversations should be saved before the process exits."""
        ...

    def process_ended(self, process: Supervisor, failure: Failure | None) -> None:
        """It is reaped. Told exactly once, whatever happened."""


class ProcessStage(Enum):
    LOADS = "it is started, and its load may still be stopped for another one"
    SERVES = "it was given to its model, which grants requests"
    ENDS = "it was told to end"


class Supervisor:
    """Whatever happens, no child is left: to stop the process, its task's scope is cancelled."""

    def __init__(
        self,
        owner: ProcessOwner,
        spec: ModelSpec,
        placement: Placement,
        *,
        launcher: Launcher,
        tracker: DeviceTracker,
        memory: ModelMemory,
        conversations: Conversations,
    ) -> None:
        self.runner: Runner | None = None
        self.over = asyncio.Event()  # set when the process is gone, or given up
        self.cause: Failure | None = None  # why the router itself ended it, if that was no wish of anybody
        self._owner, self._spec = owner, spec
        self._launcher, self._tracker = launcher, tracker
        self._memory, self._conversations = memory, conversations
        self._stage = ProcessStage.LOADS
        self._scope: anyio.CancelScope | None = None  # it can only be made inside the task
        self._task = asyncio.create_task(self._run(placement), name=f"supervise {spec.alias}")

    def end(self, cause: Failure | None = None) -> None:
        """With time to exit. Safe to call again, and before the task has had its first turn."""
        self.cause = self.cause or cause
        self._stage = ProcessStage.ENDS
        if self._scope is not None:
            self._scope.cancel()

    async def kill(self, why: str) -> None:
        """At once, because it hangs; it takes the way of a crash."""
        if self.cause is None and self.runner is not None:
            message = f"llama-server hung ({why}) and was ended by the router."
            self.cause = Failure(FailureKind.TIMEOUT, message, None, ())
            await self.runner.stop(grace_s=0)

    def blamed(self, failure: Failure | None, blame: Blame) -> ProcessEnd:
        """Its unwanted end, and who is to blame for it: `blame`, if its memory was not taken from it. Asked
        once, before its memory is released."""
        if failure is not None and failure.kind is FailureKind.OUT_OF_MEMORY:
            log = self.runner.load_log if self.runner is not None else LoadLog()
            if self._memory.ran_out(log):
                return ProcessEnd(failure, Blame.OTHER_PROGRAMS)
        return ProcessEnd(failure, blame)

    # --- inside

    async def _run(self, placement: Placement) -> None:
        failure: Failure | None = None
        try:
            with anyio.CancelScope() as self._scope:
                if self._stage is ProcessStage.ENDS:
                    self._scope.cancel()
                failure = await self._live(placement)
        except LoadError as error:
            failure = error.failure
            if failure.kind is FailureKind.OUT_OF_MEMORY:
                await self._tracker.refresh()  # who has the memory now, tells whether it was too little
        except Exception as error:  # a bug of ours: its owner is told all the same, or the model hangs
            logger.exception("%s: the supervisor failed", self._spec.alias)
            failure = Failure(FailureKind.UNKNOWN, f"internal error: {error}", None, ())
            if out_of_files(error):
                failure = Failure(FailureKind.OUT_OF_FILES, NO_FILES_LEFT, None, ())
        self._owner.process_ended(self, self._explained(failure))

    async def _live(self, placement: Placement) -> Failure:
        folder = await self._conversations.open(self._spec)
        async with self._launcher.launch(self._spec, placement, self._on_change, folder) as runner:
            self.runner = runner
            self._tracker.ledger.spawned(self._spec.alias, runner.pid)
            await runner.ready()
            async with self._with_conversations(runner):
                if self._stage is ProcessStage.LOADS:  # else it was stopped in the turn in which it was ready
                    self._stage = ProcessStage.SERVES
                    self._owner.process_serves(self)
                return (await runner.exited()).failure

    @asynccontextmanager
    async def _with_conversations(self, runner: Runner) -> AsyncIterator[None]:
        """Restored before the first grant, saved when it is stopped after serving; a crash saves nothing."""
        await self._conversations.restore(self._spec, runner)
        try:
            yield
        finally:
            slot_bytes = self._owner.slot_bytes_to_keep(self)
            if slot_bytes is not None:
                with anyio.CancelScope(shield=True):
                    await self._conversations.save(self._spec, runner, slot_bytes)

    def _on_change(self, runner: Runner) -> None:
        self.runner = runner
        if self._stage is ProcessStage.LOADS and not self.over.is_set():
            self._check_memory(runner)
        self._owner.process_changed(self)

    def _check_memory(self, runner: Runner) -> None:
        """Stop a load that turns out too big for its place before it reads the weights; then plan again."""
        failure = self._memory.check(runner.load_log)
        if failure is None:
            return
        logger.info("%s: load stopped: %s", self._spec.alias, failure.message)
        if self._memory.may_plan_again:
            self._memory.plan_again()
            self._owner.load_again()
        else:
            self.end(failure)

    def _explained(self, failure: Failure | None) -> Failure | None:
        """What the router did to it counts for more than how it then exited."""
        if self.cause is None or failure is None:
            return self.cause or failure
        return replace(failure, kind=self.cause.kind, message=self.cause.message)
