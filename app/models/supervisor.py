"""One model and its process: the task that is its life from spawn to reap."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import anyio

from app.core.queue import Ticket
from app.domain.errors import RouterError
from app.domain.events import Evicted, LoadResult, Restarted, Touched
from app.domain.spec import ModelSpec
from app.domain.status import Status, StopReason
from app.domain.views import NEVER_USED, Placement
from app.llama.exit_reason import Failure, FailureKind
from app.llama.load_output import LoadLog
from app.llama.os_process import NO_FILES_LEFT, out_of_files
from app.llama.runner import LoadError, Runner
from app.models.lifecycle import why_stopped
from app.models.restarts import Blame, RestartLimits
from app.models.state import ModelState

logger = logging.getLogger(__name__)


class ModelInstance(ModelState):
    """A model and the life of its process. `_supervise` is the only writer of the process."""

    # --- life

    def start(self, placement: Placement) -> None:
        """Begin a load. The caller has seen that there is room."""
        if self.status is Status.CRASHED and self.ready_since > NEVER_USED:
            self._bus.publish(Restarted(self.alias))
        self.memory.reserve(placement)
        self.preload, self.stop_reason, self._served, self._hung = False, None, 0, None
        self.stopped_for, self.has_served = None, False
        self._too_big = self._health = None
        self.load_started, self.ready_since = self._clock(), NEVER_USED
        self.over = asyncio.Event()
        self._set(Status.STARTING, "for waiting requests" if self.queue.waiting else "")
        self._task = asyncio.create_task(self._supervise(placement), name=f"supervise {self.alias}")

    def drain(self, reason: StopReason, target: str | None = None) -> None:
        """Grant nothing more; stop when the running requests have ended. A load is stopped at once."""
        if self.status in (Status.STARTING, Status.LOADING):
            self.stop(reason, target)
        if self.status is Status.DRAINING and not reason.is_swap:
            self.stop_reason, self.stopped_for = reason, None  # from now on the policy may not keep it
        if self.status is not Status.READY:
            return
        if self.queue.waiting and reason.is_swap:
            self._yielded_at = self._clock()
        self.stop_reason, self.stopped_for = reason, target
        self._set(Status.DRAINING, why_stopped(reason, target))
        self._stop_when_drained()

    def keep(self) -> None:
        """The opposite of `drain`, as long as nothing has been stopped."""
        self.stop_reason, self.stopped_for, self._yielded_at = None, None, NEVER_USED
        self._set(Status.READY, "kept: nobody needs its memory any more")

    def stop(self, reason: StopReason, target: str | None = None) -> None:
        """Stop the process without waiting for running requests; those are cut."""
        if not self.status.has_process or self.status is Status.STOPPING:
            return
        if self.status is not Status.DRAINING or reason is not self.stop_reason:
            self.stopped_for = target
        self.stop_reason = reason
        if self.ready_since > NEVER_USED:
            if reason is not StopReason.SHUTDOWN:
                self._bus.publish(Evicted(self.alias, reason))
        else:
            self._load_finished(LoadResult.ABANDONED)
        self._set(Status.STOPPING, why_stopped(reason, target))
        self._cut_running()  # after the move: those who are cut leave their slots at once
        if self._life is not None:
            self._life.cancel()

    def _cut_running(self) -> None:
        for ticket in (*self.queue.running, *self.readers):
            if ticket.owner is not None:
                ticket.owner.cut()

    async def end_hung(self, runner: Runner, why: str) -> None:
        """End a process that hangs; it takes the way of a crash. Returns when it is gone, or given up."""
        if self.runner is runner and self._hung is None:
            self._hung = f"llama-server hung ({why}) and was ended by the router."
            await runner.stop(grace_s=0)
        await self.without(runner)

    async def without(self, runner: Runner) -> None:
        """Until this process is gone; at once if another one has taken its place."""
        if self.runner is runner:
            await self.gone()

    async def gone(self) -> None:
        """Until there is no process, or none that could be ended."""
        if self.over is not None:
            await self.over.wait()

    def redefine(self, spec: ModelSpec, limits: RestartLimits, max_waiting: int) -> None:
        """What it is from now on; a process that would be another one is replaced when it has finished."""
        self._restarts.limits, self.queue.max_waiting, self.removed = limits, max_waiting, False
        if spec == self._next_spec:
            return
        same_process = spec.same_process(self.spec)
        self._next_spec = spec
        if same_process or self.over is None:
            self._take_new_spec()
        else:
            self.drain(StopReason.CONFIG)

    def remove(self, error: RouterError) -> None:
        """It is no longer configured: who waits is told, who runs may finish."""
        if not self.removed:
            self.removed = True
            self.queue.fail_waiting(error)
            self.drain(StopReason.CONFIG)

    def _take_new_spec(self) -> None:
        self.spec, self.queue.slots = self._next_spec, self._next_spec.slots
        self.need = None
        self.reset()

    # --- requests

    def finish(self, ticket: Ticket) -> None:
        """Take a ticket back; a draining model stops with its last one."""
        now = self._clock()
        if self.queue.finish(ticket, now):
            self.last_used, self.has_served = now, True
        if self.status is Status.DRAINING:
            self._stop_when_drained()

    # --- inside

    async def _supervise(self, placement: Placement) -> None:
        """The process, from spawn to reap. Whatever happens, no child is left and no state is stuck."""
        failure: Failure | None = None
        try:
            with anyio.CancelScope() as life:
                self._life = life
                if self.status is Status.STOPPING:  # stopped before this task had its first turn
                    life.cancel()
                news = partial(self._on_progress, life)
                folder = await self._conversations.open(self.spec)
                async with self._launcher.launch(self.spec, placement, news, folder) as runner:
                    self.runner = runner
                    self._tracker.spawned(self.alias, runner.pid)
                    await runner.ready()
                    async with self._with_conversations(runner):
                        if self.status is not Status.STOPPING:  # stopped in the turn in which it was ready
                            self._serve(runner)
                        failure = self._cause_of((await runner.exited()).failure)
        except LoadError as error:
            failure = error.failure
            if failure.kind is FailureKind.OUT_OF_MEMORY:
                await self._tracker.refresh()  # who has the memory now, tells whether it was too little
        except Exception as error:
            logger.exception("%s: the supervisor failed", self.alias)
            failure = Failure(FailureKind.UNKNOWN, f"internal error: {error}", None, ())
            if out_of_files(error):
                failure = Failure(FailureKind.OUT_OF_FILES, NO_FILES_LEFT, None, ())
        if self._life is life:
            self._conversations.close(self.spec)
            self._settle(failure)
        else:
            self._died_after_all()

    @asynccontextmanager
    async def _with_conversations(self, runner: Runner) -> AsyncIterator[None]:
        """Restored before the first grant, saved when it is stopped after serving; a crash saves nothing."""
        await self._conversations.restore(self.spec, runner)
        try:
            yield
        finally:
            if self.status is Status.STOPPING and self._is_worth_keeping():
                with anyio.CancelScope(shield=True):
                    await self._conversations.save(self.spec, runner, self._slot_bytes())

    def _is_worth_keeping(self) -> bool:
        """Something was said, and somebody will ask for it."""
        wanted = not self.removed and self._next_spec.keep_cache == self.spec.keep_cache
        return wanted and self._served > 0 and self._hung is None

    def _on_progress(self, life: anyio.CancelScope, runner: Runner) -> None:
        if life is not self._life:  # of a process that was given up
            return
        self.runner = runner
        if runner.undead:
            self._give_up(runner)
        elif self.status in (Status.STARTING, Status.LOADING):
            self._check_memory(runner)
        if self.status is Status.STARTING and runner.phase is Status.LOADING:
            self._set(Status.LOADING, self._lifecycle.reason)
        else:
            self._bus.publish(Touched(self.alias))

    def _give_up(self, runner: Runner) -> None:
        """It does not die. Its task stays with it, and its memory stays taken; the model goes on without."""
        assert self._task is not None
        self._undead[self._task] = self.memory.outlived(runner.pid)
        message = f"llama-server (pid {runner.pid}) does not die: it hangs inside the kernel. See dmesg."
        self._settle(Failure(FailureKind.TIMEOUT, self._hung or message, None, ()))
        self._cut_running()

    def _died_after_all(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        name = self._undead.pop(task)
        logger.warning("%s has died after all", name)
        self._tracker.release(name, crashed=True)
        self._look_again()

    def _check_memory(self, runner: Runner) -> None:
        """Stop a load that turns out too big for its place before it reads the weights; then plan again."""
        failure = self.memory.check(runner.load_log)
        if failure is None:
            return
        logger.info("%s: load stopped: %s", self.alias, failure.message)
        if self.memory.may_plan_again:
            self.memory.plan_again()
            self.preload = not self.queue.waiting
            self.stop(StopReason.MEMORY)
        elif self._life is not None:
            self._too_big = failure
            self._life.cancel()

    def _serve(self, runner: Runner) -> None:
        now = self._clock()
        took_s = now - self.load_started
        self.ready_since = self.last_used = now
        self._restarts.loaded()
        self.failure = None
        self.memory.loaded(runner.load_log, took_s)
        self._load_finished(LoadResult.SUCCESS)
        self._set(Status.READY, f"loaded in {took_s:.1f} s")
        self.grant()

    def _settle(self, failure: Failure | None) -> None:
        """The process is gone, or given up: account for it and settle the state."""
        wanted_gone = self.status in (Status.STOPPING, Status.DRAINING)
        runner, self.runner, self._life, self._task = self.runner, None, None, None
        if self.over is not None:  # first, whatever goes wrong below
            self.over.set()
            self.over = None
        failure = self._too_big or failure
        was_taken = False
        if not wanted_gone and failure is not None and failure.kind is FailureKind.OUT_OF_MEMORY:
            was_taken = self.memory.ran_out(runner.load_log if runner is not None else LoadLog())
        was_ready = self.ready_since > NEVER_USED
        blame = self.crash_inquiry.process_ended(failure) if was_ready else Blame.MODEL
        self.memory.release(crashed=not wanted_gone)
        self.need = None  # the file may have changed when it is wanted next
        if self.status is Status.DRAINING:
            self._set(Status.STOPPING, self._lifecycle.reason)
        if wanted_gone:
            self._set(Status.OFF, self._lifecycle.reason)
        elif self.status is Status.READY:
            self._crashed(failure or _VANISHED, blame)
        else:
            self._load_ended(failure or _VANISHED, was_taken)
        if self.spec != self._next_spec:
            self._take_new_spec()

    def _cause_of(self, exit_reason: Failure) -> Failure:
        if self._hung is None:
            return exit_reason
        return replace(exit_reason, kind=FailureKind.TIMEOUT, message=self._hung)

    def _crashed(self, failure: Failure, blame: Blame) -> None:
        if not self._restarts.after_crash(self._clock(), blame):
            self.fail(failure)
            return
        self.failure = failure
        self._set(Status.CRASHED, failure.message)

    def _load_ended(self, failure: Failure, was_taken: bool) -> None:
        self._load_finished(LoadResult.FAILED)
        again = self._restarts.after_failed_load(failure.kind, self._clock(), was_taken=was_taken)
        if failure.kind is FailureKind.OUT_OF_FILES:
            self._set(Status.CRASHED, failure.message)
            self.turn_away(failure)
        elif again:
            self.failure = failure
            why = "another program took its memory" if was_taken else failure.message
            self._set(Status.CRASHED, f"load failed, trying again: {why}")
        else:
            self.fail(failure)

    def _stop_when_drained(self) -> None:
        if not self.queue.in_flight:
            self.stop(self.stop_reason or StopReason.MANUAL, None)


_VANISHED = Failure(FailureKind.UNKNOWN, "llama-server ended for an unknown reason.", None, ())
