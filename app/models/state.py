"""What a model is at the moment, and the picture of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import anyio

from app.core.queue import RequestQueue, Ticket
from app.core.vram_tracker import DeviceTracker
from app.domain.errors import LoadFailed, ModelFailed, ModelNotLoaded
from app.domain.event_bus import EventBus
from app.domain.events import LoadFinished, LoadResult, Touched
from app.domain.files import FileIdentity
from app.domain.spec import ModelSpec
from app.domain.status import Health, Status, StopReason
from app.domain.views import HOST, NEVER_USED, KeptView, ModelView, Need, ProcessView
from app.llama.exit_reason import Failure, FailureKind
from app.llama.runner import Launcher, Runner
from app.memory.history import LearnedFootprints
from app.memory.need import Footprint
from app.memory.reservation import ModelMemory
from app.models.conversations import Conversations
from app.models.crash_inquiry import CrashInquiry
from app.models.kv_cache import KvCache
from app.models.lifecycle import Lifecycle, log_level
from app.models.restarts import RestartLimits, Restarts

logger = logging.getLogger(__name__)


class ModelState:
    """One model as it is now: what it is to be, its queue, its process, and what is known of its memory."""

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
        self.queue, self._launcher = queue, launcher
        self.readers: set[Ticket] = set()  # who asks its process without a slot
        self.removed = False
        self.runner: Runner | None = None
        self.footprint: Footprint | None = None
        self.file_identity: FileIdentity | None = None
        self.need: Need | None = None
        self.preload = False
        self.failure: Failure | None = None
        self.stop_reason: StopReason | None = None
        self.stopped_for: str | None = None
        self.load_started = self.ready_since = self.last_used = NEVER_USED
        self.memory = ModelMemory(spec.alias, tracker, learned)
        self._tracker, self._bus, self._clock, self._look_again = tracker, bus, clock, look_again
        self._lifecycle = Lifecycle(spec.alias, clock())
        self._restarts = Restarts(limits)
        self.crash_inquiry = CrashInquiry(spec.alias, queue, self._restarts, clock)
        self._conversations = Conversations(spec.alias, kv_cache, bus)
        self._served = 0
        self.has_served = False  # a request of its own to the end, since it was loaded
        self._yielded_at = NEVER_USED
        self._health: Health | None = None
        self.over: asyncio.Event | None = None  # set when the process is gone or given up; None without one
        self._hung: str | None = None
        self._too_big: Failure | None = None
        self._life: anyio.CancelScope | None = None
        self._task: asyncio.Task[None] | None = None
        self._undead: dict[asyncio.Task[None], str] = {}

    @property
    def alias(self) -> str:
        return self.spec.alias

    @property
    def status(self) -> Status:
        return self._lifecycle.status

    @property
    def serves(self) -> bool:
        """Its process can be asked, by whoever needs no slot."""
        return self.status in (Status.READY, Status.DRAINING) and self.runner is not None

    @property
    def attempts(self) -> int:
        """Loads in a row that failed."""
        return self._restarts.attempts

    @property
    def trained_context(self) -> int | None:
        return self.footprint.trained_context if self.footprint else None

    # --- without a process

    def forget(self, reason: str) -> None:
        """A crashed model is not started again; one that was to be preloaded is not."""
        self.preload = False
        if self.status is Status.CRASHED:
            if self.failure is not None and self.failure.kind is FailureKind.OUT_OF_MEMORY:
                self._restarts.loaded()  # another time there is more of it
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
        self.failure = failure
        self._restarts.loaded()
        self.forget(failure.message)
        self.queue.fail_waiting(self.load_failed())

    def reset(self) -> str | None:
        """Leave `failed`; the error that was cleared."""
        if self.status is not Status.FAILED or self.failure is None:
            return None
        message = self.failure.message
        self._restarts.forgiven()
        self.failure = None
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

    def let_read(self, ticket: Ticket) -> None:
        """Without a slot: it neither waits for one nor takes it from others, and the model may be idle.

        Whoever is let in takes itself out of `readers`.
        """
        if self.serves:
            self.readers.add(ticket)
            ticket.grant(self._clock())
        else:
            ticket.refuse(self.not_loaded())

    def judged(self, health: Health) -> None:
        """What the health monitor thinks of the process."""
        if health != self._health:
            self._health = health
            self._bus.publish(Touched(self.alias))

    # --- pictures

    def view(self) -> ModelView:
        high, normal, low = self.queue.waiting_by_level
        kept = self._conversations.kept
        return ModelView(
            alias=self.alias,
            status=self.status,
            kind=self.spec.kind,
            slots=self.queue.slots,
            pinned=self.spec.pinned,
            idle_timeout_s=self.spec.idle_timeout_s,
            waiting_by_level=(high, normal, low),
            head=self.queue.head,
            need=self.need,
            since=self._lifecycle.since,
            last_used=self.last_used,
            yielded_at=self._yielded_at,
            reload_s=self._reload_estimate_s(),
            expected_load_s=self.memory.load_s,
            preload=self.preload,
            retry_at=self._restarts.retry_at,
            reason=self._lifecycle.reason,
            stop_reason=self.stop_reason,
            stopped_for=self.stopped_for,
            error=self.failure.message if self.failure else None,
            estimated_mb=self.memory.estimated_mb,
            measured_mb=self.memory.measured_mb,
            kept=KeptView(self.spec.keep_cache, *((kept.tokens, kept.size) if kept else ())),
            processes=(self._process_view(),) if self.status.has_process else (),
        )

    def _process_view(self) -> ProcessView:
        queue, runner = self.queue, self.runner
        loading = self.status in (Status.STARTING, Status.LOADING)
        log = runner.load_log if runner is not None and loading else None
        return ProcessView(
            status=self.status,
            reserved=self._tracker.held(self.alias),
            in_flight=queue.in_flight,
            best_in_flight=queue.best_in_flight,
            served=self._served,
            ready_since=self.ready_since,
            stop_reason=self.stop_reason,
            health=self._health if runner is not None else None,
            port=runner.port if runner is not None else None,
            pid=runner.pid if runner is not None else None,
            vram_mb=self._vram_mb(),
            load_started=self.load_started if loading else None,
            load_progress=log.progress if log is not None else None,
            load_stage=log.stage if log is not None else None,
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

    def not_loaded(self) -> ModelNotLoaded:
        """For those who do not have it loaded."""
        return ModelNotLoaded(
            f"{self.alias} is not loaded, and this request does not load it: send it another one, or "
            "POST /v1/models/load",
            retry_after_s=30.0,
        )

    # --- inside

    def _set(self, new: Status, reason: str) -> None:
        """The only place where the status changes."""
        move = self._lifecycle.move(new, reason, self._clock())
        why = f", {move.reason}" if move.reason else ""
        logger.log(log_level(move), "%s: %s%s", self.alias, new.public, why)
        self._bus.publish(move)
        self._look_again()

    def _load_finished(self, result: LoadResult) -> None:
        self._bus.publish(LoadFinished(self.alias, result, self._clock() - self.load_started))

    def _vram_mb(self) -> int:
        measured = self._tracker.measured_mb(self.alias)
        if measured is not None:
            return measured
        return sum(mb for device, mb in self._tracker.held(self.alias).items() if device != HOST)

    def _reload_estimate_s(self) -> float:
        if (load_s := self.memory.load_s) is not None:
            return load_s + self._conversations.save_s
        return self.footprint.file_mb / 1000 if self.footprint else 1.0

    def _slot_bytes(self) -> int:
        """What one slot keeps when it is full."""
        return self.footprint.slot_bytes(self.spec.slots) if self.footprint else 0

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
