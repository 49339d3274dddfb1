"""From what was observed of a process to what is believed of it: the only place where that is decided. Pure.

Slow is not dead: what shows that it moves may take as long as it likes. Stuck is not alive: probes that are
answered, pings and processor time do not make up for work that stands still.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from app.judgement.evidence import Evidence
from app.judgement.pauses import Pauses

PROBE_TIMEOUT_S = 10.0
"""Generous: idle connections and long streams can hold every HTTP thread of llama-server for seconds."""

MISSES = 3
AGAIN_S = 1.0
"""Between the two looks that must find a process stuck."""

APART_S = 1.0
"""Two misses that were begun closer together are one."""

CLOSED_S = 3.0
"""A port that was open and refuses for this long has been closed."""

SLOW_S = 10.0
"""Worth telling people."""

BUSY_SHARE = 1.75
"""Of the limit, for a process that computes: one batch of a prompt can take long without a sign."""

READS_PER_S = 10.0
"""Tokens. A batch of a prompt that is read more slowly than this is not waited for."""

LOOKS = 4
"""A request that has been quiet is looked at this often within its limit."""


class State(Enum):
    STARTING = "its port has not been open"
    LOADING = "it loads"
    SERVING = "it serves"
    SLOW = "nothing has moved for a while, which is no reason to end it"
    STUCK = "it will not go on"
    GONE = "it has ended"


class Cause(Enum):
    """Why it is taken for stuck."""

    PORT_CLOSED = "it closed its port"
    NO_PROGRESS = "nothing has moved"
    NO_ANSWER = "it answers no probe"


@dataclass(frozen=True)
class Limits:
    """Seconds; 0: no limit."""

    load_s: float = 180.0
    request_s: float = 120.0


@dataclass(frozen=True)
class Verdict:
    """`since` and `why` belong to SLOW, STUCK and GONE; `cause` to STUCK alone."""

    state: State
    since: float | None = None
    why: str = ""
    cause: Cause | None = None


class Repeated:
    """Nothing is ended that was found stuck once: it is looked at again."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    @property
    def is_suspect(self) -> bool:
        return self._first is not None

    def stuck(self, verdict: Verdict, evidence: Evidence, now: float) -> bool:
        """Stuck now, and before, and something has been observed in between."""
        if verdict.state is not State.STUCK:
            self._first = None
            return False
        if self._first is None:
            self._first = now, evidence.observed
            return False
        since, observed = self._first
        return now - since >= AGAIN_S and evidence.observed > observed


def judge(evidence: Evidence, limits: Limits, pauses: Pauses, now: float) -> Verdict:
    if evidence.exited_at is not None:
        return Verdict(State.GONE, evidence.exited_at, "it has ended")
    awake = not pauses.waking_s(now)
    if awake and (stuck := _port_closed(evidence, pauses, now)):
        return stuck
    if evidence.is_loading:
        return _load(evidence, limits, pauses, now)
    return _service(evidence, limits, pauses, now)


def _port_closed(evidence: Evidence, pauses: Pauses, now: float) -> Verdict | None:
    if evidence.refusals < MISSES:
        return None
    first, last = evidence.refused[0], evidence.refused[-1]
    if pauses.awake_s(first, last) < CLOSED_S:
        return None
    return Verdict(State.STUCK, first, "it closed its port", Cause.PORT_CLOSED)


def _load(evidence: Evidence, limits: Limits, pauses: Pauses, now: float) -> Verdict:
    still_s = pauses.awake_s(evidence.moved_at, now)
    if limits.load_s and still_s > limits.load_s:
        return _stuck(evidence.moved_at, f"no progress for {still_s:.0f} s")
    if still_s > SLOW_S:
        return Verdict(State.SLOW, evidence.moved_at, evidence.doing or "loading")
    is_open = evidence.accepted_at is not None or evidence.doing
    return Verdict(State.LOADING if is_open else State.STARTING)


def _service(evidence: Evidence, limits: Limits, pauses: Pauses, now: float) -> Verdict:
    missed = _moments(evidence.missed)
    if missed >= MISSES and not pauses.waking_s(now):
        why = f"it missed {missed} probes in a row{_while(evidence)}"
        return Verdict(State.STUCK, evidence.missed[0], why, Cause.NO_ANSWER)
    owed = evidence.owed_since
    if owed is None:
        if missed:
            return Verdict(State.SLOW, evidence.missed[0], f"it missed {missed} of its probes")
        return Verdict(State.SERVING)
    still_s = pauses.awake_s(owed, now)
    if limits.request_s and still_s >= allowed_s(evidence, limits) and is_seen(evidence, pauses, owed, now):
        return _stuck(owed, f"nothing has moved for {still_s:.0f} s{_while(evidence)}")
    if still_s > min(SLOW_S, limits.request_s or SLOW_S):
        return Verdict(State.SLOW, owed, f"nothing has moved for {still_s:.0f} s{_while(evidence)}")
    return Verdict(State.SERVING)


def _stuck(since: float, why: str) -> Verdict:
    return Verdict(State.STUCK, since, why, Cause.NO_PROGRESS)


def allowed_s(evidence: Evidence, limits: Limits) -> float:
    """How long the work of this process may stand still."""
    if evidence.busy_since is None or evidence.is_stopped:
        return limits.request_s
    unread = sum(slot.unread for slot in evidence.slots or ())
    return max(BUSY_SHARE * limits.request_s, unread / READS_PER_S)


def is_seen(evidence: Evidence, pauses: Pauses, since: float, now: float) -> bool:
    """It was looked at after that, and after this program's own last pause."""
    if pauses.waking_s(now):
        return False
    looked = evidence.looked_at > since and not pauses.interrupted(evidence.looked_at, now)
    asked = evidence.asking_since
    return looked or (asked is not None and now - asked >= APART_S and not pauses.interrupted(asked, now))


def request_moved_at(evidence: Evidence, place: int, in_flight: int, quiet_since: float) -> float:
    """When the work for one request moved last: the `place`th of those in flight, in order of their start.

    llama-server does not say which request sits in which slot, but it starts them in the order in which they
    come. Where that cannot be, as with one that was given up and still runs, every slot counts for all.
    """
    tasks = sorted(slot.task for slot in evidence.slots or ())
    if len(tasks) == in_flight and place < in_flight:
        return max(quiet_since, evidence.slot_moved_at.get(tasks[place], 0.0))
    if evidence.slots is None:
        return max(quiet_since, evidence.moved_at)
    return max(quiet_since, *(evidence.slot_moved_at.values() or (0.0,)))


def _moments(begun: list[float]) -> int:
    """Misses that were begun at different moments."""
    count, last = 0, float("-inf")
    for moment in sorted(begun):
        if moment - last >= APART_S:
            count, last = count + 1, moment
    return count


def _while(evidence: Evidence) -> str:
    if evidence.is_stopped:
        return ", the process is stopped by a signal"
    if evidence.asking_since is not None:
        return ", and it does not answer"
    return ", although it computes" if evidence.busy_since is not None else ""
