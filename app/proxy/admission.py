"""How an exchange gets a slot of its model, and gives it back."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

from app.core.health_monitor import HealthMonitor
from app.core.manager import ModelManager
from app.domain.errors import RouterError, ShuttingDown
from app.domain.event_bus import EventBus
from app.domain.status import Status
from app.llama.runner_interface import Runner
from app.models.instance import ModelInstance
from app.proxy.exchange_interfaces import Entrant
from app.proxy.replay import EXIT_WAIT_S, Replays
from app.proxy.request_record import RequestRecord


class Admission:
    """Enters tickets and takes them back. What has to be awaited, which is rare, runs in a task."""

    def __init__(
        self,
        manager: ModelManager,
        health: HealthMonitor,
        bus: EventBus,
        *,
        exit_wait_s: float = EXIT_WAIT_S,
    ) -> None:
        self._manager, self._health, self._bus = manager, health, bus
        self._replays = Replays(manager, health, bus, exit_wait_s)
        self._tasks: set[asyncio.Task[None]] = set()

    def enter(self, entrant: Entrant) -> asyncio.Task[None] | None:
        if entrant.record.request.only_reads:
            entrant.ticket.owner = entrant
            entrant.instance.let_read(entrant.ticket)
            return None
        if entrant.instance.status is Status.FAILED:
            return self._start(entrant, self._revive(entrant))
        self._enter(entrant)
        return None

    def leave(self, entrant: Entrant) -> None:
        entrant.ticket.owner = None
        if entrant.record.request.only_reads:
            entrant.instance.readers.discard(entrant.ticket)
            return
        self._manager.leave(entrant.instance, entrant.ticket)

    def given_up(self, entrant: Entrant) -> None:
        if not entrant.record.request.only_reads:
            self._health.given_up(entrant.instance, entrant.ticket, entrant.asks_for())

    def ended(self, entrant: Entrant) -> None:
        inquiry = entrant.instance.crash_inquiry
        if inquiry.is_open and entrant.record.is_answered:
            inquiry.answered(entrant.ticket, entrant.asks_for())
        self.leave(entrant)
        self.answered(entrant.instance, entrant.record)

    def answered(self, instance: ModelInstance, record: RequestRecord) -> None:
        """The record is complete, whether its model was asked or not."""
        request = record.request
        is_wish = request.ttl_s is not None or (instance.ttl_s is not None and not request.keeps_ttl)
        if is_wish and not request.only_reads:
            instance.ttl_s = request.ttl_s
            self._manager.scheduler.reconcile_soon()
        self._bus.finished(record.event)

    def waits_because(self, entrant: Entrant) -> str | None:
        wait = self._manager.scheduler.waits.get(entrant.instance.alias)
        return None if wait is None else wait.why

    def patience_s(self, entrant: Entrant, runner: Runner, quiet_since: float) -> float:
        asked = entrant.instance.queue.at_llama_server
        place = sum(ticket.granted_at < entrant.ticket.granted_at for ticket in asked)
        return self._health.patience_s(entrant.instance, runner, quiet_since, place)

    def awake_s(self, since: float, now: float) -> float:
        return self._health.pauses.awake_s(since, now)

    def lost(self, entrant: Entrant, runner: Runner | None) -> asyncio.Task[None] | None:
        if self._manager.closing:
            entrant.process_gone(ShuttingDown())
            return None
        return self._start(entrant, self._replays.after_exit(entrant, runner))

    # --- inside

    def _enter(self, entrant: Entrant) -> None:
        ticket = entrant.ticket
        ticket.owner = entrant
        try:
            self._manager.enter(entrant.instance, ticket)
        except RouterError as error:
            ticket.refuse(error)

    async def _revive(self, entrant: Entrant) -> None:
        """A model that has failed gets another try if its file is another one."""
        await self._manager.revive(entrant.instance)
        self._enter(entrant)

    def _start(self, entrant: Entrant, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(_guarded(entrant, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _guarded(entrant: Entrant, work: Coroutine[object, object, None]) -> None:
    try:
        await work
    except Exception as bug:  # a bug of ours: nobody awaits this task
        entrant.bug(bug)
