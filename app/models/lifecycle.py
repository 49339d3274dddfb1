"""The life of one model: states, restarts, back-off, giving way. Pure: what happened in, what to do out.

It reads no clock and starts nothing. Who drives it (the router's instance, the simulator's model) tells it
what has happened, and carries out the effects that it returns, in their order.
"""

from __future__ import annotations

import logging

from app.domain.events import Evicted, LoadFinished, LoadResult, Restarted, StatusChanged
from app.domain.status import MOVES, InvalidMove, Status, StopReason
from app.domain.views import NEVER_USED
from app.llama.exit_reason import Failure, FailureKind
from app.models.lifecycle_effects import Blame, Effect, Effects, EndProcess, Note, ProcessEnd, RejectWaiting
from app.models.restarts import RestartLimits, Restarts

LOADS = frozenset({Status.STARTING, Status.LOADING})


class Lifecycle:
    """One model's status and what led to it. Times are seconds of the driver's clock.

    `preempted_at` is when it last gave way to another model with requests of its own still waiting.
    `served` counts the requests that its process was granted; `has_served`: one of them has ended.
    """

    def __init__(self, alias: str, limits: RestartLimits, now: float) -> None:
        self.status, self.since, self.reason = Status.OFF, now, ""
        self.restarts = Restarts(limits)
        self.failure: Failure | None = None
        self.preload = False
        self.stop_reason: StopReason | None = None
        self.stopped_for: str | None = None
        self.load_started = self.ready_since = self.last_used = self.preempted_at = NEVER_USED
        self.served, self.has_served = 0, False
        self._alias = alias

    # --- a process

    def start(self, now: float, *, is_wanted: bool) -> Effects:
        """A process is started. `is_wanted`: requests wait for it."""
        again = self.status is Status.CRASHED and self.ready_since > NEVER_USED
        self.preload, self.stop_reason, self.stopped_for = False, None, None
        self.served, self.has_served = 0, False
        self.load_started, self.ready_since = now, NEVER_USED
        move = self._move(Status.STARTING, "for waiting requests" if is_wanted else "", now)
        return [Restarted(self._alias), move] if again else [move]

    def port_answers(self, now: float) -> Effects:
        """The process reads its model now."""
        return [self._move(Status.LOADING, self.reason, now)] if self.status is Status.STARTING else []

    def loaded(self, now: float) -> Effects:
        """It serves from now on."""
        took_s = now - self.load_started
        self.ready_since = self.last_used = now
        self.failure = None
        self.restarts.loaded()
        move = self._move(Status.READY, f"loaded in {took_s:.1f} s", now)
        return [LoadFinished(self._alias, LoadResult.SUCCESS, took_s), move]

    def process_ended(self, end: ProcessEnd, now: float) -> Effects:
        """The process is gone, or so far beyond help that the model goes on without it."""
        if self.status in (Status.DRAINING, Status.STOPPING):
            through = (
                [self._move(Status.STOPPING, self.reason, now)] if self.status is Status.DRAINING else []
            )
            return [*through, self._move(Status.OFF, self.reason, now)]
        failure = end.failure or _VANISHED
        if self.status is Status.READY:
            return self._crashed(failure, end.blame, now)
        return self._load_ended(failure, end.blame, now)

    # --- giving way

    def drain(
        self,
        reason: StopReason,
        target: str | None = None,
        *,
        now: float,
        has_waiting: bool,
        in_flight: int,
    ) -> Effects:
        """Grant nothing more; stop when the running requests have ended. A load is stopped at once."""
        if self.status in LOADS:
            return self.stop(reason, target, now=now)
        if self.status is Status.DRAINING and not reason.is_swap:
            self.stop_reason, self.stopped_for = reason, None  # from now on the policy may not resume it
        if self.status is not Status.READY:
            return []
        if has_waiting and reason.is_swap:
            self.preempted_at = now
        self.stop_reason, self.stopped_for = reason, target
        move = self._move(Status.DRAINING, _why_stopped(reason, target), now)
        return [move] if in_flight else [move, *self.drained(now)]

    def drained(self, now: float) -> Effects:
        """The last of the running requests has ended."""
        if self.status is not Status.DRAINING:
            return []
        return self.stop(self.stop_reason or StopReason.MANUAL, now=now)

    def resume(self, now: float) -> Effects:
        """The opposite of `drain`, as long as nothing has been stopped."""
        self.stop_reason, self.stopped_for, self.preempted_at = None, None, NEVER_USED
        return [self._move(Status.READY, "kept: nobody needs its memory any more", now)]

    def stop(self, reason: StopReason, target: str | None = None, *, now: float) -> Effects:
        """Stop the process without waiting for running requests; those are cut."""
        if not self.status.has_process or self.status is Status.STOPPING:
            return []
        if self.status is not Status.DRAINING or reason is not self.stop_reason:
            self.stopped_for = target
        self.stop_reason = reason
        told: list[Effect] = []
        if self.ready_since == NEVER_USED:
            told.append(LoadFinished(self._alias, LoadResult.ABANDONED, now - self.load_started))
        elif reason is not StopReason.SHUTDOWN:
            told.append(Evicted(self._alias, reason))
        # the move first: those who are cut leave their slots at once
        return [*told, self._move(Status.STOPPING, _why_stopped(reason, target), now), EndProcess()]

    def load_again(self, now: float, *, has_waiting: bool) -> Effects:
        """The load is stopped for another one that knows better how much memory it takes."""
        self.preload = not has_waiting
        return self.stop(StopReason.MEMORY, now=now)

    # --- without a process

    def want_preload(self) -> None:
        """Load it as soon as there is room, though nobody asks for it."""
        self.preload |= self.status is Status.OFF

    def give_up(self, reason: str, now: float) -> Effects:
        """A crashed model is not started again; one that was to be preloaded is not."""
        self.preload = False
        if self.status is not Status.CRASHED:
            return [Note(reason)]
        if self.failure is not None and self.failure.kind is FailureKind.OUT_OF_MEMORY:
            self.restarts.loaded()  # another time there is more of it
        return [self._move(Status.OFF, reason, now)]

    def check_failed(self, failure: Failure, now: float) -> Effects:
        """It cannot be loaded as it is: found before a process was started for it."""
        if self.status not in (Status.OFF, Status.CRASHED):
            return []
        if failure.kind is FailureKind.OUT_OF_FILES:
            return self._reject_waiting(failure, now)
        return self._fail(failure, now)

    def reset(self, now: float) -> Effects:
        """Leave `failed`, as if nothing had gone wrong yet."""
        if self.status is not Status.FAILED:
            return []
        self.restarts.forgiven()
        self.failure = None
        return [self._move(Status.OFF, "reset", now)]

    # --- requests

    def granted(self, now: float) -> None:
        self.served += 1
        self.last_used = now

    def finished(self, now: float) -> None:
        """A request has given its slot back."""
        self.last_used, self.has_served = now, True

    # --- inside

    def _fail(self, failure: Failure, now: float) -> Effects:
        """For good: everybody who waits is told, and later requests are refused until `reset`."""
        self.failure = failure
        return [self._move(Status.FAILED, failure.message, now), RejectWaiting(failure)]

    def _reject_waiting(self, failure: Failure, now: float) -> Effects:
        """Everybody who waits is told; for those who come later the load is tried again."""
        self.failure = failure
        self.restarts.loaded()
        return [*self.give_up(failure.message, now), RejectWaiting(failure)]

    def _crashed(self, failure: Failure, blame: Blame, now: float) -> Effects:
        if not self.restarts.after_crash(now, blame):
            return self._fail(failure, now)
        self.failure = failure
        return [self._move(Status.CRASHED, failure.message, now)]

    def _load_ended(self, failure: Failure, blame: Blame, now: float) -> Effects:
        told = LoadFinished(self._alias, LoadResult.FAILED, now - self.load_started)
        counts = blame is Blame.MODEL
        again = self.restarts.after_failed_load(failure.kind, now, counts=counts)
        if failure.kind is FailureKind.OUT_OF_FILES:
            move = self._move(Status.CRASHED, failure.message, now)
            return [told, move, *self._reject_waiting(failure, now)]
        if not again:
            return [told, *self._fail(failure, now)]
        self.failure = failure
        why = failure.message if counts else "another program took its memory"
        return [told, self._move(Status.CRASHED, f"load failed, trying again: {why}", now)]

    def _move(self, new: Status, reason: str, now: float) -> StatusChanged:
        """The only place where the status changes. Raises `InvalidMove` for what cannot follow it."""
        old = self.status
        if new not in MOVES[old]:
            raise InvalidMove(f"{self._alias}: {old.value} -> {new.value} ({reason})")
        self.status, self.since = new, now
        self.reason = reason or self.reason if new is Status.STOPPING else reason
        return StatusChanged(self._alias, old, new, self.reason)


_VANISHED = Failure(FailureKind.UNKNOWN, "llama-server ended for an unknown reason.", None, ())


def log_level(move: StatusChanged) -> int:
    """What an operator would tell a colleague."""
    if move.new in (Status.CRASHED, Status.FAILED):
        return logging.WARNING
    return logging.DEBUG if move.old.public == move.new.public else logging.INFO


_WHY = {
    StopReason.IDLE: "idle",
    StopReason.MANUAL: "ejected",
    StopReason.CONFIG: "its configuration changed",
    StopReason.SHUTDOWN: "the router shuts down",
}


def _why_stopped(reason: StopReason, target: str | None) -> str:
    """In words, for the log, the page and the status. Empty: what was said before still holds."""
    return f"evicted for {target}" if target is not None else _WHY.get(reason, "")
