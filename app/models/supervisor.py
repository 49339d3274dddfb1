"""One model: its queue, its state, and the task that is its process's life from spawn to reap."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import anyio

from app.core.queue import RequestQueue, Ticket
from app.core.vram_tracker import DeviceTracker
from app.domain.errors import LoadFailed, ModelFailed, RouterError
from app.domain.event_bus import EventBus
from app.domain.events import (
    CacheMoved,
    Evicted,
    LoadFinished,
    LoadResult,
    MoveDirection,
    MoveResult,
    Restarted,
    StatusChanged,
    Touched,
)
from app.domain.files import FileIdentity
from app.domain.spec import ModelSpec
from app.domain.status import MOVES, Health, InvalidMove, Status, StopReason
from app.domain.views import HOST, NEVER_USED, ModelView, Need, Placement
from app.llama.exit_reason import Failure, FailureKind
from app.llama.load_output import LoadLog
from app.llama.os_process import NO_FILES_LEFT, out_of_files
from app.llama.runner import Launcher, LoadError, Runner
from app.memory.history import LearnedFootprints
from app.memory.need import Footprint
from app.memory.reservation import ModelMemory
from app.models.kv_cache import KvCache, Moved
from app.models.restarts import backoff_s

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RestartLimits:
    max_restarts: int
    window_s: float
    load_retries: int


class ModelInstance:
    """A model and its process. `_supervise` is the only writer of the process, `_set` of the state."""

    def __init__(
        self,
        spec: ModelSpec,
        queue: RequestQueue,
        *,
        launcher: Launcher,
        tracker: DeviceTracker,
        bus: EventBus,
        limits: RestartLimits,
        clock: Callable[[], float],
        look_again: Callable[[], None],
        learned: LearnedFootprints,
        kv_cache: KvCache | None = None,
    ) -> None:
        self.spec = self._next_spec = spec
        self.queue = queue
        self.removed = False
        self.status = Status.OFF
        self.runner: Runner | None = None
        self.footprint: Footprint | None = None
        self.file_identity: FileIdentity | None = None
        self.need: Need | None = None
        self.preload = False
        self.failure: Failure | None = None
        self.attempts = 0
        self.stop_reason: StopReason | None = None
        self.stopped_for: str | None = None
        self.restarts = 0
        self.load_started = NEVER_USED
        self.ready_since = NEVER_USED
        self.last_used = NEVER_USED
        self._launcher, self._tracker, self._bus = launcher, tracker, bus
        self._limits, self._clock, self._look_again = limits, clock, look_again
        self.memory = ModelMemory(spec.alias, tracker, learned)
        self._kv_cache = kv_cache
        self._kept: Moved | None = None
        self._save_s = 0.0
        self._since = clock()
        self._reason = ""
        self._served = 0
        self._yielded_at = NEVER_USED
        self._retry_at = 0.0
        self._crashes: list[float] = []
        self._hung: str | None = None
        self._health: Health | None = None
        self._too_big: Failure | None = None
        self._life: anyio.CancelScope | None = None
        self._task: asyncio.Task[None] | None = None
        self.over: asyncio.Event | None = None  # set when the process is gone or given up; None without one
        self._undead: dict[asyncio.Task[None], str] = {}

    @property
    def alias(self) -> str:
        return self.spec.alias

    @property
    def trained_context(self) -> int | None:
        return self.footprint.trained_context if self.footprint else None

    # --- life

    def start(self, placement: Placement) -> None:
        """Begin a load. The caller has seen that there is room."""
        if self.status is Status.CRASHED and self.ready_since > NEVER_USED:
            self.restarts += 1
            self._bus.publish(Restarted(self.alias))
        self.memory.reserve(placement)
        self.preload, self.stop_reason, self._served, self._hung = False, None, 0, None
        self.stopped_for = None
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
        self._set(Status.DRAINING, _why(reason, target))
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
        self._cut_running()
        if self.ready_since > NEVER_USED:
            if reason is not StopReason.SHUTDOWN:
                self._bus.publish(Evicted(self.alias, reason))
        else:
            self._bus.publish(
                LoadFinished(self.alias, LoadResult.ABANDONED, self._clock() - self.load_started)
            )
        self._set(Status.STOPPING, _why(reason, target))
        if self._life is not None:
            self._life.cancel()

    def _cut_running(self) -> None:
        for ticket in tuple(self.queue.running):
            if ticket.on_cut is not None:
                ticket.on_cut()

    async def end_hung(self, runner: Runner, why: str) -> None:
        """End a process that hangs; it takes the way of a crash. Returns when it is gone, or given up."""
        if self.runner is runner and self._hung is None:
            self._hung = f"llama-server hung ({why}) and was ended by the router."
            await runner.stop(grace_s=0)
        await self.without(runner)

    def judged(self, health: Health) -> None:
        """What the health monitor thinks of the process."""
        if health != self._health:
            self._health = health
            self._bus.publish(Touched(self.alias))

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
        self._limits, self.queue.max_waiting, self.removed = limits, max_waiting, False
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

    def forget(self, reason: str) -> None:
        """A crashed model is not started again; one that was to be preloaded is not."""
        self.preload = False
        if self.status is Status.CRASHED:
            self._set(Status.OFF, reason)
        else:
            logger.info("%s: %s", self.alias, reason)
            self._bus.publish(Touched(self.alias))

    def fail(self, failure: Failure) -> None:
        """Give up: everybody who waits gets the reason, and later requests too until `reset`."""
        self.failure = failure
        self._set(Status.FAILED, failure.message)
        self.queue.fail_waiting(self.load_failed())

    def turn_away(self, failure: Failure) -> None:
        """Everybody who waits gets the reason; for those who come later the load is tried again."""
        self.failure, self.attempts = failure, 0
        self.forget(failure.message)
        self.queue.fail_waiting(self.load_failed())

    def reset(self) -> str | None:
        """Leave `failed`; the error that was cleared."""
        if self.status is not Status.FAILED or self.failure is None:
            return None
        message = self.failure.message
        self._crashes.clear()
        self.attempts, self.failure = 0, None
        self.need = None
        self._set(Status.OFF, "reset")
        return message

    # --- requests

    def grant(self) -> None:
        """Free slots to the next tickets, while the model serves."""
        while self.status is Status.READY and self.queue.grant(self._clock()) is not None:
            self._served += 1
            self.last_used = self._clock()

    def grant_at_once(self, ticket: Ticket) -> bool:
        """A free slot, where the model serves and nobody waits for it."""
        now = self._clock()
        if self.status is not Status.READY or not self.queue.seat(ticket, now):
            return False
        self._served += 1
        self.last_used = now
        return True

    def finish(self, ticket: Ticket) -> None:
        """Take a ticket back; a draining model stops with its last one."""
        now = self._clock()
        if self.queue.finish(ticket, now):
            self.last_used = now
        if self.status is Status.DRAINING:
            self._stop_when_drained()

    # --- pictures

    def view(self) -> ModelView:
        queue, runner = self.queue, self.runner
        log = runner.load_log if runner is not None else None
        loading = self.status in (Status.STARTING, Status.LOADING)
        return ModelView(
            alias=self.alias,
            status=self.status,
            kind=self.spec.kind,
            slots=queue.slots,
            in_flight=queue.in_flight,
            waiting_by_level=(
                queue.waiting_by_level[0],
                queue.waiting_by_level[1],
                queue.waiting_by_level[2],
            ),
            head=queue.head,
            best_in_flight=queue.best_in_flight,
            pinned=self.spec.pinned,
            idle_timeout_s=self.spec.idle_timeout_s,
            need=self.need,
            held=self._tracker.held(self.alias),
            since=self._since,
            ready_since=self.ready_since,
            last_used=self.last_used,
            served=self._served,
            yielded_at=self._yielded_at,
            reload_s=self._reload_estimate_s(),
            preload=self.preload,
            retry_at=self._retry_at,
            stop_reason=self.stop_reason,
            stopped_for=self.stopped_for,
            reason=self._reason,
            error=self.failure.message if self.failure else None,
            health=self._health if runner is not None else None,
            port=runner.port if runner is not None else None,
            pid=runner.pid if runner is not None else None,
            vram_mb=self._vram_mb(),
            estimated_mb=self.memory.estimated_mb,
            measured_mb=self.memory.measured_mb,
            keep_cache=self.spec.keep_cache,
            kept_tokens=self._kept.tokens if self._kept else None,
            kept_bytes=self._kept.size if self._kept else None,
            load_started=self.load_started if loading else None,
            expected_load_s=self.memory.load_s,
            load_progress=log.progress if log is not None and loading else None,
            load_stage=log.stage if log is not None and loading else None,
        )

    def load_failed(self) -> LoadFailed:
        """For those who waited for the load."""
        return LoadFailed(
            f"{self.alias} could not be loaded: {self._last_error()}", **self._failure_details()
        )

    def model_failed(self) -> ModelFailed:
        """For those who come later."""
        hint = f"Fix the cause, then POST /v1/models/{self.alias}/reset"
        return ModelFailed(f"{self.alias} has failed: {self._last_error()} {hint}", **self._failure_details())

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
                async with self._launcher.launch(self.spec, placement, news) as runner:
                    self.runner = runner
                    self._tracker.spawned(self.alias, runner.pid)
                    await runner.ready()
                    async with self._conversations(runner):
                        if self.status is not Status.STOPPING:  # stopped in the turn in which it was ready
                            self._serve(runner)
                        failure = self._cause_of((await runner.exited()).failure)
        except LoadError as error:
            failure = error.failure
        except Exception as error:
            logger.exception("%s: the supervisor failed", self.alias)
            failure = Failure(FailureKind.UNKNOWN, f"internal error: {error}", None, ())
            if out_of_files(error):
                failure = Failure(FailureKind.OUT_OF_FILES, NO_FILES_LEFT, None, ())
        if self._life is life:
            self._settle(failure)
        else:
            self._died_after_all()

    @asynccontextmanager
    async def _conversations(self, runner: Runner) -> AsyncIterator[None]:
        """Restored before the first grant, saved when it is stopped after serving; a crash saves nothing."""
        if self._kv_cache is not None:
            await self._restore(self._kv_cache, runner)
        try:
            yield
        finally:
            if self._kv_cache is not None and self.status is Status.STOPPING and self._is_worth_keeping():
                with anyio.CancelScope(shield=True):
                    moved = await self._kv_cache.save(self.spec, runner)
                self._cache_moved(moved, MoveDirection.SAVED)

    async def _restore(self, kv_cache: KvCache, runner: Runner) -> None:
        moved = await kv_cache.restore(self.spec, runner)
        self._cache_moved(moved, MoveDirection.RESTORED)
        if moved is not None and moved.result is not MoveResult.SUCCESS:
            await runner.ready()  # a load that a bad file has killed is tried again, without the file

    def _is_worth_keeping(self) -> bool:
        """Something was said, and somebody will ask for it."""
        wanted = not self.removed and self._next_spec.keep_cache == self.spec.keep_cache
        return wanted and self._served > 0 and self._hung is None

    def _cache_moved(self, moved: Moved | None, direction: MoveDirection) -> None:
        if moved is None:
            return
        self._kept = moved
        if direction is MoveDirection.SAVED:
            self._save_s = moved.seconds
        self._bus.publish(
            CacheMoved(self.alias, direction, moved.result, moved.tokens, moved.size, moved.seconds)
        )

    def _on_progress(self, life: anyio.CancelScope, runner: Runner) -> None:
        if life is not self._life:  # of a process that was given up
            return
        self.runner = runner
        if runner.undead:
            self._give_up(runner)
        elif self.status in (Status.STARTING, Status.LOADING):
            self._check_memory(runner)
        if self.status is Status.STARTING and runner.phase is Status.LOADING:
            self._set(Status.LOADING, self._reason)
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
        self.attempts, self.failure = 0, None
        self.memory.loaded(runner.load_log, took_s)
        self._bus.publish(LoadFinished(self.alias, LoadResult.SUCCESS, took_s))
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
        if not wanted_gone and failure is not None and failure.kind is FailureKind.OUT_OF_MEMORY:
            self.memory.ran_out(runner.load_log if runner is not None else LoadLog())
        self.memory.release(crashed=not wanted_gone)
        self.need = None  # the file may have changed when it is wanted next
        if self.status is Status.DRAINING:
            self._set(Status.STOPPING, self._reason)
        if wanted_gone:
            self._set(Status.OFF, self._reason)
        elif self.status is Status.READY:
            self._crashed(failure or _VANISHED)
        else:
            self._load_ended(failure or _VANISHED)
        if self.spec != self._next_spec:
            self._take_new_spec()

    def _cause_of(self, exit_reason: Failure) -> Failure:
        if self._hung is None:
            return exit_reason
        return replace(exit_reason, kind=FailureKind.TIMEOUT, message=self._hung)

    def _crashed(self, failure: Failure) -> None:
        now = self._clock()
        self._crashes = [t for t in self._crashes if now - t < self._limits.window_s] + [now]
        if len(self._crashes) > self._limits.max_restarts:
            self.fail(failure)
            return
        self.failure = failure
        self._retry_at = now + backoff_s(len(self._crashes))
        self._set(Status.CRASHED, failure.message)

    def _load_ended(self, failure: Failure) -> None:
        self.attempts += 1
        self._bus.publish(LoadFinished(self.alias, LoadResult.FAILED, self._clock() - self.load_started))
        if failure.kind is FailureKind.OUT_OF_FILES:
            self._set(Status.CRASHED, failure.message)
            self.turn_away(failure)
            return
        retries = self._limits.load_retries
        if failure.kind is FailureKind.OUT_OF_MEMORY:
            retries = min(retries, 1)  # with a larger need; if that does not help, another time will not
        if not failure.kind.may_heal or self.attempts > retries:
            self.fail(failure)
            return
        self.failure = failure
        self._retry_at = self._clock() + backoff_s(self.attempts)
        self._set(Status.CRASHED, f"load failed, trying again: {failure.message}")

    def _stop_when_drained(self) -> None:
        if not self.queue.in_flight:
            self.stop(self.stop_reason or StopReason.MANUAL, None)

    def _set(self, new: Status, reason: str) -> None:
        old = self.status
        if new not in MOVES[old]:
            raise InvalidMove(f"{self.alias}: {old.value} -> {new.value} ({reason})")
        self.status, self._since = new, self._clock()
        self._reason = reason or self._reason if new is Status.STOPPING else reason
        logger.log(
            _log_level(old, new),
            "%s: %s%s",
            self.alias,
            new.public,
            f", {self._reason}" if self._reason else "",
        )
        self._bus.publish(StatusChanged(self.alias, old, new, self._reason))
        self._look_again()

    def _vram_mb(self) -> int | None:
        if not self.status.has_process:
            return None
        measured = self._tracker.measured_mb(self.alias)
        if measured is not None:
            return measured
        return sum(mb for device, mb in self._tracker.held(self.alias).items() if device != HOST)

    def _reload_estimate_s(self) -> float:
        if (load_s := self.memory.load_s) is not None:
            return load_s + self._save_s
        return self.footprint.file_mb / 1000 if self.footprint else 1.0

    def _last_error(self) -> str:
        return self.failure.message if self.failure else "for an unknown reason."

    def _failure_details(self) -> dict[str, Any]:
        failure = self.failure
        heals = failure is not None and failure.kind.may_heal
        tail = list(failure.log_tail[-20:]) if failure and not failure.served else []
        return {
            "retryable": heals,
            "retry_after_s": 30.0 if heals else None,
            "details": {"last_error": self._last_error(), "log_tail": tail},
        }


def _log_level(old: Status, new: Status) -> int:
    if new in (Status.CRASHED, Status.FAILED):
        return logging.WARNING
    return logging.DEBUG if old.public == new.public else logging.INFO


_VANISHED = Failure(FailureKind.UNKNOWN, "llama-server ended for an unknown reason.", None, ())


_WHY = {
    StopReason.IDLE: "idle",
    StopReason.MANUAL: "ejected",
    StopReason.CONFIG: "its configuration changed",
    StopReason.SHUTDOWN: "the router shuts down",
}


def _why(reason: StopReason, target: str | None) -> str:
    """In words, for the log, the page and the status. Empty: what was said before still holds."""
    return f"evicted for {target}" if target is not None else _WHY.get(reason, "")
