"""One model as it is now: what it is to be, its requests, its process, and what is known of its memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from app.core.queue import RequestQueue, Ticket
from app.core.vram_tracker import DeviceTracker
from app.domain.errors import RouterError
from app.domain.event_bus import EventBus
from app.domain.events import ModelChanged, StatusChanged
from app.domain.file_identity import FileIdentity
from app.domain.model_spec import ModelSpec
from app.domain.status import Health, Status, StopReason
from app.domain.views import MemoryNeed, ModelView, Placement
from app.llama.exit_reason import Failure
from app.llama.runner_interface import Launcher, Runner
from app.memory.amount_to_reserve import Footprint
from app.memory.load_history import LoadHistory
from app.memory.model_memory import ModelMemory
from app.models.conversations import Conversations
from app.models.crash_inquiry import CrashInquiry
from app.models.kv_cache import KvCache
from app.models.lifecycle import Lifecycle, log_level
from app.models.lifecycle_effects import Effects, EndProcess, Note, ProcessEnd, RejectWaiting
from app.models.load_errors import load_failed, model_not_loaded
from app.models.model_view import model_view
from app.models.restarts import RestartLimits
from app.models.supervisor import Supervisor
from app.models.unkillable import UnkillableProcesses
from app.scheduling.demand import Demand

logger = logging.getLogger(__name__)


class ModelInstance:
    """Drives the model's `Lifecycle`: tells it what happened, and carries out what it says."""

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
        reconcile_soon: Callable[[], None],
        history: LoadHistory,
        demand: Demand,
        kv_cache: KvCache | None = None,
    ) -> None:
        self.alias = spec.alias
        self.spec = self._next_spec = spec
        self.queue = queue
        self.readers: set[Ticket] = set()  # who asks its process without a slot
        self.lifecycle = Lifecycle(spec.alias, limits, clock())
        self.crash_inquiry = CrashInquiry(spec.alias, queue, self.lifecycle.restarts, clock)
        self.process: Supervisor | None = None
        self.memory = ModelMemory(spec.alias, tracker.ledger, history)
        self.conversations = Conversations(spec.alias, kv_cache, bus)
        self.footprint: Footprint | None = None
        self.file_identity: FileIdentity | None = None
        self.need: MemoryNeed | None = None
        self.health: Health | None = None
        self.removed = False
        self.ttl_s: float | None = None  # how long it stays when nobody uses it, if its last user said so
        self._supervise = partial(
            Supervisor,
            launcher=launcher,
            tracker=tracker,
            memory=self.memory,
            conversations=self.conversations,
        )
        self._unkillable = UnkillableProcesses(self.memory, tracker.ledger, reconcile_soon)
        self._ledger, self._demand = tracker.ledger, demand
        self._bus, self._clock, self._reconcile_soon = bus, clock, reconcile_soon

    @property
    def status(self) -> Status:
        return self.lifecycle.status

    @property
    def runner(self) -> Runner | None:
        return self.process.runner if self.process is not None else None

    @property
    def serves(self) -> bool:
        """Its process can be asked, by whoever needs no slot."""
        return self.status in (Status.READY, Status.DRAINING) and self.runner is not None

    def view(self) -> ModelView:
        return model_view(self, self._ledger, self._demand)

    # --- requests

    def grant(self) -> None:
        """Free slots to the next tickets, while the model serves."""
        while self.status is Status.READY and self.queue.grant(self._clock()) is not None:
            self.lifecycle.granted(self._clock())

    def grant_at_once(self, ticket: Ticket) -> bool:
        """A free slot, where the model serves and nobody waits for it."""
        now = self._clock()
        if self.status is not Status.READY or not self.queue.try_grant(ticket, now):
            return False
        self.lifecycle.granted(now)
        return True

    def let_read(self, ticket: Ticket) -> None:
        """Without a slot, so that it waits for none; whoever is let in takes itself out of `readers`."""
        if self.serves:
            self.readers.add(ticket)
            ticket.grant(self._clock())
        else:
            ticket.refuse(model_not_loaded(self.alias))

    def finish(self, ticket: Ticket) -> None:
        """Take a ticket back; a draining model stops with its last one."""
        now = self._clock()
        if self.queue.finish(ticket, now):
            self.lifecycle.finished(now)
        if self.status is Status.DRAINING and not self.queue.in_flight:
            self._carry_out(self.lifecycle.drained(now))

    def free_places(self, count: int) -> None:
        """Of requests that were given up, the ones that were first."""
        self.queue.free(count)
        self._reconcile_soon()

    # --- what is decided about it

    def start(self, placement: Placement) -> None:
        """Begin a load. The caller has seen that there is room."""
        self.memory.reserve(placement)
        self.health = self.ttl_s = None
        self._carry_out(self.lifecycle.start(self._clock(), is_wanted=self.queue.waiting > 0))
        self.process = self._supervise(self, self.spec, placement)

    def drain(self, reason: StopReason, target: str | None = None) -> None:
        """Grant nothing more; stop when the running requests have ended. A load is stopped at once."""
        has_waiting, in_flight, now = self.queue.waiting > 0, self.queue.in_flight, self._clock()
        effects = self.lifecycle.drain(reason, target, has_waiting=has_waiting, in_flight=in_flight, now=now)
        self._carry_out(effects)

    def resume(self) -> None:
        self._carry_out(self.lifecycle.resume(self._clock()))

    def stop(self, reason: StopReason, target: str | None = None) -> None:
        """Stop the process without waiting for running requests; those are cut."""
        self._carry_out(self.lifecycle.stop(reason, target, now=self._clock()))

    def give_up(self, reason: str) -> None:
        """A crashed model is not started again; one that was to be preloaded is not."""
        self._carry_out(self.lifecycle.give_up(reason, self._clock()))

    def check_failed(self, failure: Failure) -> None:
        """It cannot be loaded as it is: found before a process was started for it."""
        self._carry_out(self.lifecycle.check_failed(failure, self._clock()))

    def reset(self) -> str | None:
        """Leave `failed`; the error that was cleared."""
        failure = self.lifecycle.failure
        if self.status is not Status.FAILED or failure is None:
            return None
        self.need = None
        self._carry_out(self.lifecycle.reset(self._clock()))
        return failure.message

    # --- its definition

    def redefine(self, spec: ModelSpec, limits: RestartLimits, max_waiting: int) -> None:
        """What differs only for the router counts at once; else the process is replaced when it is idle."""
        self.removed = False
        self.lifecycle.restarts.limits, self.queue.max_waiting = limits, max_waiting
        if spec == self._next_spec:
            return
        same_process = spec.same_process(self.spec)
        self._next_spec = spec
        if same_process or self.process is None:
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

    # --- its process

    async def kill_unresponsive(self, runner: Runner, why: str) -> None:
        """End a process that hangs; it takes the way of a crash. Returns when it is gone, or given up."""
        if self.process is not None and self.runner is runner:
            await self.process.kill(why)
        await self.until_gone(runner)

    async def until_gone(self, runner: Runner | None = None) -> None:
        """Until there is no process, with `runner` not that one any more, or none that could be ended."""
        if self.process is not None and (runner is None or self.runner is runner):
            await self.process.over.wait()

    def health_changed(self, health: Health) -> None:
        """What the health monitor thinks of the process."""
        if health != self.health:
            self.health = health
            self._bus.publish(ModelChanged(self.alias))

    def process_changed(self, process: Supervisor) -> None:
        if process is not self.process or (runner := process.runner) is None:
            return
        if runner.unkillable:
            self._without_process(process, self._unkillable.add(process, runner.pid))
            self._cut_running()
        if self.status is Status.STARTING and runner.phase is Status.LOADING:
            self._carry_out(self.lifecycle.port_answers(self._clock()))
        else:
            self._bus.publish(ModelChanged(self.alias))

    def load_again(self) -> None:
        self._carry_out(self.lifecycle.load_again(self._clock(), has_waiting=self.queue.waiting > 0))

    def process_serves(self, process: Supervisor) -> None:
        if process is not self.process or process.runner is None:
            return
        now = self._clock()
        self.memory.loaded(process.runner.load_log, now - self.lifecycle.load_started)
        self._carry_out(self.lifecycle.loaded(now))
        self.grant()

    def slot_bytes_to_keep(self, process: Supervisor) -> int | None:
        """None unless its process served and is stopped in order, and the model will be asked for again."""
        wanted = not self.removed and self._next_spec.keep_cache == self.spec.keep_cache
        if self.status is not Status.STOPPING or process.cause is not None:
            return None
        if not wanted or not self.lifecycle.served:
            return None
        return self.footprint.slot_bytes(self.spec.slots) if self.footprint else 0

    def process_ended(self, process: Supervisor, failure: Failure | None) -> None:
        if process is self.process:
            self.conversations.close(self.spec)
            self._without_process(process, failure)
        else:
            self._unkillable.reaped(process)

    # --- inside

    def _without_process(self, process: Supervisor, failure: Failure | None) -> None:
        """The process is gone, or given up: account for it and go on."""
        self.process = None
        process.over.set()  # first, whatever goes wrong below
        wanted_gone = self.status in (Status.STOPPING, Status.DRAINING)
        blame = self.crash_inquiry.process_ended(failure)
        end = ProcessEnd(failure) if wanted_gone else process.blamed(failure, blame)
        self.memory.release(crashed=not wanted_gone)
        self.need = None  # the file may have changed when it is wanted next
        self._carry_out(self.lifecycle.process_ended(end, self._clock()))
        if self.spec != self._next_spec:
            self._take_new_spec()

    def _carry_out(self, effects: Effects) -> None:
        for effect in effects:
            if isinstance(effect, EndProcess):
                self._cut_running()
                if self.process is not None:
                    self.process.end()
            elif isinstance(effect, RejectWaiting):
                self.queue.fail_waiting(load_failed(self.alias, effect.failure))
            elif isinstance(effect, Note):
                logger.info("%s: %s", self.alias, effect.text)
                self._bus.publish(ModelChanged(self.alias))
            elif isinstance(effect, StatusChanged):
                self._moved(effect)
            else:
                self._bus.publish(effect)

    def _moved(self, move: StatusChanged) -> None:
        why = f", {move.reason}" if move.reason else ""
        logger.log(log_level(move), "%s: %s%s", self.alias, move.new.public, why)
        self._bus.publish(move)
        self._reconcile_soon()

    def _cut_running(self) -> None:
        for ticket in (*self.queue.running, *self.readers):
            if ticket.owner is not None:
                ticket.owner.cut()
