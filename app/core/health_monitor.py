"""Looks at loaded models, and ends what is judged stuck; it takes the way of a crash then.

What is believed of a process is decided in `app/judgement` alone: here it is observed, and acted on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio

from app.core.config import Config
from app.core.queue import Ticket
from app.domain.event_bus import BATCH_S, EventBus
from app.domain.events import Event, Outcome, RequestFinished
from app.domain.request_fingerprint import Fingerprint, Work
from app.domain.status import Health, Status
from app.judgement.given_up import GivenUpAt, Running, look_for_free_slots_in_s, places_free_again
from app.judgement.judge import (
    ProcessLimits,
    ProcessState,
    Repeated,
    Verdict,
    is_quiet,
    judge,
    judge_request,
    look_in_s,
)
from app.judgement.router_pauses import TICK_S, Pauses
from app.llama.runner_interface import Runner
from app.models.instance import ModelInstance

logger = logging.getLogger(__name__)

SUSPECT_EVERY_S = 1.0
"""How often a process is looked at that may be stuck."""

QUIET_S = 1.0
"""A stream that ends later than this after its last byte had come to a standstill, perhaps."""

_HEALTH = {ProcessState.SLOW: Health.DEGRADED, ProcessState.STUCK: Health.UNHEALTHY}


@dataclass
class Watch:
    """What is counted of one process, for people."""

    pid: int
    repeated: Repeated = field(default_factory=Repeated)
    checks: int = 0
    failures: int = 0
    failures_in_a_row: int = 0
    total_ms: float = 0.0
    last_check: float | None = None
    verdict: Verdict = Verdict(ProcessState.SERVING)  # noqa: RUF009 - it is frozen

    def probed(self, ok: bool, took_ms: float, now: float) -> None:
        self.checks, self.last_check = self.checks + 1, now
        self.failures += not ok
        self.failures_in_a_row = 0 if ok else self.failures_in_a_row + 1
        self.total_ms += took_ms if ok else 0.0

    @property
    def health(self) -> Health:
        return _HEALTH.get(self.verdict.state, Health.HEALTHY)


class HealthMonitor:
    TAKES = ("system.health_check_interval_sec",)

    def __init__(
        self,
        instances: Callable[[], Mapping[str, ModelInstance]],
        interval_s: float,
        bus: EventBus,
        pauses: Pauses,
        clock: Callable[[], float] = time.monotonic,
        suspect_every_s: float = SUSPECT_EVERY_S,
    ) -> None:
        self._instances, self._interval_s, self._clock = instances, interval_s, clock
        self.pauses, self.suspect_every_s = pauses, suspect_every_s
        self._watches: dict[str, Watch] = {}
        self._checking: set[Runner] = set()
        self._round_is_due = asyncio.Event()
        bus.subscribe(self._on_event, RequestFinished)

    def apply(self, config: Config) -> None:
        self._interval_s = config.system.health_check_interval_sec
        self._round_is_due.set()  # the next round may be due

    # --- what runs by itself

    async def run(self) -> None:
        async with anyio.create_task_group() as group:
            while True:
                for instance, runner in self._loaded():
                    if runner not in self._checking and self._look_in_s(instance, runner) <= 0:
                        self._checking.add(runner)
                        group.start_soon(self.check, instance, runner)
                    elif runner.evidence.asking_since is not None:
                        group.start_soon(self._check_meanwhile, instance, runner)
                with anyio.move_on_after(self._pause_s()):
                    await self._round_is_due.wait()
                self._round_is_due.clear()

    async def keep_time(self) -> None:
        """Notices when this program stood still."""
        pauses, told = self.pauses, 0
        while True:
            await asyncio.sleep(TICK_S)
            pauses.tick(self._clock())
            if pauses.count > told:
                told = pauses.count
                logger.warning("the router stood still for %.1f s: all is looked at afresh", pauses.last_s)

    async def check(self, instance: ModelInstance, runner: Runner) -> bool:
        """Look, judge, and end what is stuck. True if it answered."""
        evidence, begun = runner.evidence, self._clock()
        self._note_work(instance, runner)
        try:
            at_slots = bool(instance.queue.given_up) or self._is_quiet(instance, runner)
            await runner.look(at_slots=at_slots)
        finally:
            self._checking.discard(runner)
        self._free_places(instance, runner)
        if evidence.exited_at is not None:
            return False
        missed = bool(evidence.missed) and evidence.missed[-1] >= begun
        self._watch(instance, runner).probed(not missed, 1000 * (self._clock() - begun), time.time())
        self._note_work(instance, runner)
        await self._act(instance, runner)
        return evidence.answered_at is not None and evidence.answered_at >= begun

    async def suspect(self, instance: ModelInstance, runner: Runner) -> None:
        """A connection failed although the process lives: returns when it answers, or is gone."""
        while instance.runner is runner:
            if await self.check(instance, runner):
                return
            await asyncio.sleep(self.suspect_every_s)

    # --- requests

    def patience_s(self, instance: ModelInstance, runner: Runner, quiet_since: float, place: int) -> float:
        """How long a request may be waited for until this is asked again; 0: its slot stands still.

        `place`: its place among those that the process was given, in the order of their start.
        """
        limits, now = _limits(instance), self._clock()
        in_flight = instance.queue.in_flight
        found = judge_request(runner.evidence, limits, self.pauses, now, quiet_since, place, in_flight)
        if found.wants_look:
            runner.evidence.asked(quiet_since)
            self._round_is_due.set()
        return found.left_s

    def given_up(self, instance: ModelInstance, ticket: Ticket, work: Work | None) -> None:
        """Its answer is wanted no more, and has not come: its place stays taken while its slot is."""
        if (runner := instance.runner) is not None and runner.evidence.shows_slots:
            known = None if work is None else Fingerprint.of(work)
            instance.queue.give_up(ticket, self._clock(), known)
            runner.evidence.on_freed = self._round_is_due.set
            self._round_is_due.set()

    # --- what is shown

    def report(self) -> dict[str, Any]:
        """Of the models that are loaded now."""
        return {i.alias: _shown(self._watch(i, runner)) for i, runner in self._loaded()}

    # --- inside

    def _loaded(self) -> list[tuple[ModelInstance, Runner]]:
        serving = [i for i in self._instances().values() if i.status in (Status.READY, Status.DRAINING)]
        return [(i, i.runner) for i in serving if i.runner is not None]

    def _watch(self, instance: ModelInstance, runner: Runner) -> Watch:
        watch = self._watches.get(instance.alias)
        if watch is None or watch.pid != runner.pid:
            watch = self._watches[instance.alias] = Watch(runner.pid)
        return watch

    def _look_in_s(self, instance: ModelInstance, runner: Runner) -> float:
        is_suspect = self._watch(instance, runner).repeated.is_suspect
        limits, now, evidence = _limits(instance), self._clock(), runner.evidence
        in_s = look_in_s(evidence, limits, self.pauses, now, self._interval_s, is_suspect=is_suspect)
        if given_up := _given_up(instance):
            return min(in_s, look_for_free_slots_in_s(evidence, given_up, now))
        return in_s

    def _pause_s(self) -> float:
        """Until the next look, or the next judgement over one that gets no answer."""
        waits = [
            self.suspect_every_s if runner in self._checking else self._look_in_s(instance, runner)
            for instance, runner in self._loaded()
        ]
        return max(min(waits, default=self._interval_s), 0.05)

    def _free_places(self, instance: ModelInstance, runner: Runner) -> None:
        """Of requests that were given up, where their slots are seen to be free."""
        queue = instance.queue
        if not queue.given_up or instance.runner is not runner:
            return
        running = [
            Running(ticket.granted_at, bool(ticket.owner.generated), ticket.slots)
            for ticket in queue.running
            if ticket.owner is not None
        ]
        if count := places_free_again(runner.evidence, _given_up(instance), running, self._clock()):
            instance.free_places(count)

    def _note_work(self, instance: ModelInstance, runner: Runner) -> None:
        """What those who are served have got, and since when they have got nothing."""
        for ticket in instance.queue.running:
            since = ticket.owner.quiet_since if ticket.owner is not None else None
            if since is None:
                continue
            if since > ticket.granted_at:
                runner.evidence.moved(since)
            runner.evidence.asked(since)

    def _is_quiet(self, instance: ModelInstance, runner: Runner) -> bool:
        owners = (ticket.owner for ticket in instance.queue.running)
        since = [owner.quiet_since for owner in owners if owner is not None]
        quiet = [at for at in since if at is not None]
        return is_quiet(runner.evidence, _limits(instance), self.pauses, self._clock(), quiet)

    async def _check_meanwhile(self, instance: ModelInstance, runner: Runner) -> None:
        """What is stopped need not be waited for until it has not answered; nor has a look at the slots to
        wait for an answer to another question."""
        await runner.sample()
        self._note_work(instance, runner)
        if not runner.evidence.asks_slots and self._is_quiet(instance, runner):
            await runner.look(at_slots=True)
        await self._act(instance, runner)

    async def _act(self, instance: ModelInstance, runner: Runner) -> None:
        watch, now = self._watch(instance, runner), self._clock()
        verdict = watch.verdict = judge(runner.evidence, _limits(instance), self.pauses, now)
        stuck = watch.repeated.stuck(verdict, runner.evidence, now)
        if instance.runner is runner:
            instance.health_changed(watch.health)
            if stuck:
                await instance.kill_unresponsive(runner, verdict.why)

    def _on_event(self, event: Event) -> None:
        """A client that got nothing tells as much as a time-out, also where it left early."""
        assert isinstance(event, RequestFinished)
        instance = self._instances().get(event.alias)
        runner = instance.runner if instance is not None else None
        if runner is None or event.queue_wait_s is None:
            return
        evidence, quiet_since = runner.evidence, self._clock() - event.quiet_s
        is_cut_short = event.error is not None or event.outcome is Outcome.CANCELLED
        if event.ttft_s is not None and evidence.is_doubted:
            evidence.moved(quiet_since - BATCH_S)
        if is_cut_short and (event.ttft_s is None or event.quiet_s > QUIET_S):
            evidence.asked(quiet_since)
            self._round_is_due.set()


def _given_up(instance: ModelInstance) -> list[GivenUpAt]:
    return [GivenUpAt(entry.ticket.granted_at, entry.since) for entry in instance.queue.given_up]


def _limits(instance: ModelInstance) -> ProcessLimits:
    return ProcessLimits(request_s=instance.spec.request_timeout_s)


def _shown(watch: Watch) -> dict[str, Any]:
    good = watch.checks - watch.failures
    return {
        "status": watch.health.value,
        "uptime_percentage": round(100 * good / watch.checks, 2) if watch.checks else 100.0,
        "consecutive_failures": watch.failures_in_a_row,
        "avg_response_time_ms": round(watch.total_ms / good, 2) if good else None,
        "last_check": watch.last_check,
        "why": watch.verdict.why or None,
    }
