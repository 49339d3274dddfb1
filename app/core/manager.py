"""Leases for requests, and the loop that looks at everything and carries out what the policy says."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial

import anyio
import anyio.to_thread

from app.core.config import Config
from app.core.queue import RequestQueue, Ticket
from app.core.vram_tracker import DeviceTracker
from app.domain.errors import (
    ModelNotFound,
    NoCapacity,
    QueueTimeout,
    RouterError,
    ShuttingDown,
    VramExhausted,
)
from app.domain.event_bus import EventBus
from app.domain.events import Event, ReadingTaken, Touched
from app.domain.files import FileIdentity
from app.domain.names import MAX_NAME, nearest_first
from app.domain.priority import Priority
from app.domain.spec import ModelSpec
from app.domain.status import Status, StopReason
from app.domain.views import ModelView, Need
from app.llama.exit_reason import Failure, FailureKind
from app.llama.runner import Launcher, LoadError
from app.memory import need as footprint
from app.memory.history import LearnedFootprints
from app.memory.need import Footprint
from app.models.kv_cache import KvCache
from app.models.supervisor import ModelInstance, RestartLimits
from app.scheduling import policy
from app.scheduling.plan import NEVER, Action, Forget, Keep, Limits, Load, Preview, Refuse, Stop, Wait

logger = logging.getLogger(__name__)

SHOWN_NAMES = 20
RETRY_WHEN_FULL_S = 10.0
RETRY_AFTER_BUG_S = 1.0


class Stay:
    """A ticket between `__enter__` and `__exit__`; a class, because a generator costs three times as much."""

    __slots__ = ("_instance", "_is_inside", "_manager", "_ticket")

    def __init__(
        self, manager: ModelManager, instance: ModelInstance, ticket: Ticket, *, is_inside: bool = False
    ) -> None:
        self._manager, self._instance, self._ticket = manager, instance, ticket
        self._is_inside = is_inside

    def __enter__(self) -> Ticket:
        if not self._is_inside:
            self._manager.enter(self._instance, self._ticket)
        return self._ticket

    def __exit__(self, *_: object) -> None:
        self._manager.leave(self._instance, self._ticket)


class ModelManager:
    """All models. Bookkeeping is synchronous: on one event loop it needs no lock."""

    def __init__(
        self,
        config: Config,
        *,
        launcher: Launcher,
        tracker: DeviceTracker,
        bus: EventBus,
        clock: Callable[[], float],
        inspect: Callable[[ModelSpec], Footprint] = footprint.inspect,
        learned: LearnedFootprints | None = None,
        kv_cache: KvCache | None = None,
    ) -> None:
        self.instances: dict[str, ModelInstance] = {}
        self.names: dict[str, ModelInstance] = {}
        self.closing = False
        self.waits: Mapping[str, Wait] = {}  # who waits for whom, as of the last look
        self.error: str | None = None  # why the last look at everything failed: a bug, shown by /health
        self.launcher, self._inspect_file = launcher, inspect
        self._clock, self._bus, self._tracker = clock, bus, tracker
        self._learned, self._kv_cache = learned or LearnedFootprints(), kv_cache
        self._learned.on_change = self._save_learned
        bus.subscribe(self._on_reading, ReadingTaken)
        self._contended = False
        self._prepared: str | None = None
        self._next_look: asyncio.Handle | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._jobs: dict[str, asyncio.Task[None]] = {}
        self.apply(config)

    def apply(self, config: Config) -> None:
        """Take a configuration, by difference: a model whose definition is the same keeps its process.

        A changed one finishes its running requests and is then what the new definition says; a removed one
        finishes them and goes.
        """
        system, specs = config.system, config.specs()
        self._config = config
        self._limits = Limits(system.max_concurrent_models, system.max_swap_wait_sec, system.aging_sec)
        restarts = RestartLimits(system.max_restarts, system.restart_window_sec, system.load_max_retries)
        for alias, spec in specs.items():
            if alias not in self.instances:
                self.instances[alias] = self._instance(spec, restarts)
            self.instances[alias].redefine(spec, restarts, system.max_queue_size_per_model)
        for alias, instance in self.instances.items():
            if alias not in specs:
                instance.remove(ModelNotFound(f"{alias} was removed from the configuration", param="model"))
        self.names = {n: self.instances[a] for a, spec in specs.items() for n in (a, *spec.aliases)}
        self._forget_removed()
        for alias in self.instances:
            self._bus.publish(Touched(alias))
        if self._kv_cache is not None:
            self._kv_cache.apply(config)
            self._job("clean kept conversations", self._kv_cache.clean)

    # --- requests

    def find(self, name: str) -> ModelInstance:
        """By alias or other name. Raises `ModelNotFound` with the known ones, nearest first."""
        instance = self.names.get(name)
        if instance is None:
            raise ModelNotFound(_not_found(name, self.instances), param="model")
        return instance

    def ticket(self, priority: Priority) -> Ticket:
        return Ticket(priority, self._clock(), self._limits.aging_s)

    def admit(self, instance: ModelInstance, ticket: Ticket) -> Stay:
        """The ticket's whole stay: waiting, running, leaving. However it ends, the slot is given back here.

        Entering raises `ShuttingDown`, `ModelFailed` or `QueueFull` at the door.
        """
        return Stay(self, instance, ticket)

    def enter(self, instance: ModelInstance, ticket: Ticket) -> None:
        """As `admit`, for whoever has no block to stay in, and calls `leave` himself."""
        self._check_open(instance)
        if not self._contended and instance.grant_at_once(ticket):
            self._bus.touch(instance.alias)
            return
        instance.queue.push(ticket)
        try:
            if instance.status is Status.OFF and instance.queue.waiting == 1:
                instance.need = None  # look at the file again: it may have changed since the last time
            self._serve_next(instance)
        except BaseException:
            self.leave(instance, ticket)
            raise

    def leave(self, instance: ModelInstance, ticket: Ticket) -> None:
        instance.finish(ticket)
        self._serve_next(instance)

    async def revive(self, instance: ModelInstance) -> None:
        """Clear `failed` if the model file is another one than that which failed."""
        if instance.status is not Status.FAILED:
            return
        found = await anyio.to_thread.run_sync(FileIdentity.at, instance.spec.path)
        if found is not None and found != instance.file_identity:
            instance.reset()

    # --- management

    async def load(self, instance: ModelInstance, *, wait: bool) -> None:
        """Load without a request: a ticket that leaves as soon as it is granted."""
        await self.revive(instance)
        self._check_open(instance)
        if instance.status is Status.READY:
            return
        task = self._job(f"load {instance.alias}", partial(self._hold_place, instance))
        if wait:
            await asyncio.shield(task)

    async def eject(self, instance: ModelInstance, *, now: bool, timeout_s: float) -> bool:
        """Free its memory; False if it holds none. Waiting requests stay and load it again."""
        over = instance.over
        if over is None:
            if instance.status is Status.CRASHED or instance.preload:
                instance.forget("ejected")  # it would come back by itself
            return False
        if now or timeout_s <= 0:
            instance.stop(StopReason.MANUAL)
        else:
            instance.drain(StopReason.MANUAL)
        with anyio.move_on_after(timeout_s):
            await over.wait()
        if not over.is_set():
            instance.stop(StopReason.MANUAL)
            await over.wait()
        return True

    async def preview(self, instance: ModelInstance) -> Preview:
        """What a load would do now. Raises `LoadFailed` for a file that cannot be loaded."""
        if instance.need is None:
            await self._inspect(instance)
        if instance.status is Status.FAILED:
            raise instance.load_failed()
        return policy.preview(
            self.views(), self._tracker.devices(), self._limits, self._clock(), instance.alias
        )

    def preload(self, aliases: Sequence[str]) -> None:
        for alias in aliases:
            self.instances[alias].preload = True
        self.look_again()

    def views(self) -> list[ModelView]:
        return [instance.view() for instance in self.instances.values()]

    # --- life

    async def shutdown(self, drain_timeout_s: float) -> None:
        """Nobody new, nobody waiting; running requests may finish; then every process is stopped."""
        self.closing = True
        error = ShuttingDown("the router is shutting down; try again in a moment", retry_after_s=5)
        for instance in self.instances.values():
            instance.queue.fail_waiting(error)
        for job in self._jobs.values():
            job.cancel()
        with anyio.move_on_after(drain_timeout_s):
            async with anyio.create_task_group() as group:
                for instance in self.instances.values():
                    instance.drain(StopReason.SHUTDOWN)
                    group.start_soon(instance.gone)
        await self.stop_all()

    async def stop_all(self) -> None:
        """Stop every process at once."""
        self.closing = True
        for instance in self.instances.values():
            instance.stop(StopReason.SHUTDOWN)
        for instance in self.instances.values():
            await instance.gone()
        for handle in (self._next_look, self._alarm):
            if handle is not None:
                handle.cancel()
        await self._learned.save()

    # --- the loop

    def look_again(self) -> None:
        """Something changed. Any number of changes in one turn of the event loop lead to one look."""
        if self._next_look is None and not self.closing:
            self._next_look = asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        self._next_look = None
        if self.closing:
            return
        try:
            self._set_alarm(self._decide())
            self.error = None
        except Exception as error:  # a bug of ours must not wedge the models that serve
            self._report(f"{type(error).__name__}: {error}")
            self._set_alarm(self._clock() + RETRY_AFTER_BUG_S)
        self._grant_all()

    def _decide(self) -> float:
        """Carry out what the policy says; when to look again."""
        self._forget_removed()
        plan = policy.plan(self.views(), self._tracker.devices(), self._limits, self._clock())
        self.waits = plan.waits
        self._prepare(next((alias for alias, wait in plan.waits.items() if wait.victims), None))
        for action in plan.actions:
            self._carry_out(action)
        return plan.wake_at

    def _prepare(self, alias: str | None) -> None:
        """Whose turn is next, of those for whom others have to go: one at a time, and once."""
        if alias == self._prepared:
            return
        if (job := self._jobs.get(f"prepare {self._prepared}")) is not None:
            job.cancel()
        self._prepared = alias
        if alias is not None:
            self._job(f"prepare {alias}", partial(self.launcher.prepare, self.instances[alias].spec))

    def _report(self, error: str) -> None:
        if error != self.error:
            logger.exception("scheduling failed; trying again every %.0f s", RETRY_AFTER_BUG_S)
        self.error = error

    def _grant_all(self) -> None:
        self._contended = False
        for instance in self.instances.values():
            if instance.queue.waiting:
                instance.grant()
                self._bus.publish(Touched(instance.alias))
                self._contended |= instance.queue.waiting > 0 and instance.status not in _HAS_ITS_ROOM
            if instance.need is None and _may_be_loaded_soon(instance):
                self._job(f"inspect {instance.alias}", partial(self._inspect, instance))

    def _carry_out(self, action: Action) -> None:
        instance = self.instances[action.alias]
        if isinstance(action, Load):
            instance.start(action.placement)
        elif isinstance(action, Stop):
            instance.drain(action.reason, action.target)
        elif isinstance(action, Keep):
            instance.keep()
        elif isinstance(action, Forget):
            instance.forget(action.reason)
        else:
            self._refuse(instance, action)

    def _refuse(self, instance: ModelInstance, refusal: Refuse) -> None:
        error = self.refusal_error(instance, refusal)
        logger.info("%s: refused: %s", instance.alias, error.message)
        instance.queue.fail_waiting(error)
        self._bus.publish(Touched(instance.alias))

    def refusal_error(self, instance: ModelInstance, refusal: Refuse) -> RouterError:
        """`no_capacity` or `vram_exhausted`, with the numbers."""
        loaded = [i.alias for i in self.instances.values() if i.status.has_process]
        if refusal.by_count:
            return NoCapacity(
                f"all {self._limits.max_models} places are taken by pinned models; raise "
                "system.max_concurrent_models or unpin one",
                retry_after_s=RETRY_WHEN_FULL_S,
                details={"loaded_models": loaded},
            )
        advice = (
            "free memory that pinned models or other programs hold"
            if refusal.ever
            else "use fewer params.n_gpu_layers, a smaller params.n_ctx or a smaller quantisation"
        )
        return VramExhausted(
            f"{instance.alias} needs {refusal.need_mb} MB and at most {refusal.available_mb} MB can be made "
            f"available; {advice}",
            retryable=refusal.ever,
            retry_after_s=RETRY_WHEN_FULL_S if refusal.ever else None,
            details={
                "required_mb": refusal.need_mb,
                "available_mb": refusal.available_mb,
                "loaded_models": loaded,
            },
        )

    def _set_alarm(self, when: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if when < NEVER:
            delay = max(when - self._clock(), 0.0)
            self._alarm = asyncio.get_running_loop().call_later(delay, self.look_again)

    # --- inside

    def _instance(self, spec: ModelSpec, restarts: RestartLimits) -> ModelInstance:
        return ModelInstance(
            spec,
            RequestQueue(spec.slots, self._config.system.max_queue_size_per_model),
            launcher=self.launcher,
            tracker=self._tracker,
            bus=self._bus,
            limits=restarts,
            clock=self._clock,
            look_again=self.look_again,
            learned=self._learned,
            kv_cache=self._kv_cache,
        )

    def _forget_removed(self) -> None:
        gone = [a for a, i in self.instances.items() if i.removed and i.over is None]
        for alias in gone:
            del self.instances[alias]
            self._bus.publish(Touched(alias))

    def _check_open(self, instance: ModelInstance) -> None:
        if self.closing:
            raise ShuttingDown("the router is shutting down; try again in a moment", retry_after_s=5)
        if instance.status is Status.FAILED:
            raise instance.model_failed()

    def _serve_next(self, instance: ModelInstance) -> None:
        """Grant at once, unless somebody else may have a better claim: then the next look decides."""
        if self._contended or instance.status is not Status.READY:
            self.look_again()
        elif instance.queue.has_waiting:
            instance.grant()
        self._bus.touch(instance.alias)

    async def read_footprint(self, instance: ModelInstance) -> None:
        """Look at the model's file. Raises `LoadError` for one that cannot be loaded."""
        instance.file_identity = await anyio.to_thread.run_sync(FileIdentity.at, instance.spec.path)
        instance.footprint = await anyio.to_thread.run_sync(self._inspect_file, instance.spec)

    async def _inspect(self, instance: ModelInstance) -> None:
        """Check all that can be known before anybody is asked to make room for it."""
        try:
            await self.read_footprint(instance)
            await self.launcher.check(instance.spec)
            instance.need = self._need_of(instance)
        except LoadError as error:
            self._unfit(instance, error.failure)
        except Exception as error:  # a bug of ours, or a file stranger than any we know
            logger.exception("%s: looking at its file failed", instance.alias)
            message = f"The router could not make sense of its file ({type(error).__name__}: {error})."
            self._unfit(instance, Failure(FailureKind.UNKNOWN, message, None, ()))
        self.look_again()

    def _unfit(self, instance: ModelInstance, failure: Failure) -> None:
        if instance.status not in (Status.OFF, Status.CRASHED):
            return
        if failure.kind is FailureKind.OUT_OF_FILES:
            instance.turn_away(failure)
        else:
            instance.fail(failure)

    def _need_of(self, instance: ModelInstance) -> Need:
        """By the header of its file, and by what was learned of it and of the GPUs."""
        spec, found, tracker, learned = instance.spec, instance.footprint, self._tracker, self._learned
        assert found is not None
        gpus = tracker.resolve(spec.gpu_devices)
        key = footprint.key(spec, found, learned.build, tracker.has_gpu)
        need = footprint.need(
            spec,
            found,
            gpus,
            tracker.has_gpu,
            self._config.system.vram_multiplier,
            learned.model(key),
            learned.overhead_mb(tracker.kinds(gpus)),
        )
        instance.memory.expect(spec, key, need)
        return need

    def _save_learned(self) -> None:
        if not self.closing:  # `stop_all` saves by itself
            self._job("save footprints", self._learned.save)

    def _on_reading(self, event: Event) -> None:
        changed = [instance.memory.look() for instance in self.instances.values()]
        if any(changed) or (isinstance(event, ReadingTaken) and event.is_news):
            self.look_again()

    async def _hold_place(self, instance: ModelInstance) -> None:
        timeout_s = self._config.system.queue_timeout_sec
        with self.admit(instance, self.ticket(instance.spec.priority)) as ticket:
            if not await ticket.wait(timeout_s):
                raise QueueTimeout(f"{instance.alias} was not loaded within {timeout_s} s; try again later")

    def _job(self, name: str, run: Callable[[], Coroutine[object, object, None]]) -> asyncio.Task[None]:
        """One task of that name at a time; kept until it ends."""
        if name not in self._jobs:
            task = asyncio.create_task(run(), name=name)
            self._jobs[name] = task
            task.add_done_callback(lambda t: self._job_ended(name, t))
        return self._jobs[name]

    def _job_ended(self, name: str, task: asyncio.Task[None]) -> None:
        self._jobs.pop(name, None)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, RouterError):
            logger.info("%s: %s", name, error.message)
        else:
            logger.error("%s failed", name, exc_info=error)


_HAS_ITS_ROOM = frozenset({Status.STARTING, Status.LOADING, Status.READY})


def _may_be_loaded_soon(instance: ModelInstance) -> bool:
    if instance.status is Status.CRASHED:
        return True
    return instance.status is Status.OFF and (instance.preload or instance.queue.waiting > 0)


def _not_found(name: str, instances: Mapping[str, ModelInstance]) -> str:
    names = [n for alias, i in instances.items() for n in (alias, *i.spec.aliases)]
    known = ", ".join(nearest_first(name, names)[:SHOWN_NAMES]) or "none: add one to the configuration"
    return f"there is no model {name[:MAX_NAME]!r}; known models: {known}"
