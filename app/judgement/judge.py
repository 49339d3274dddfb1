"""From what was observed of a process to what is believed of it: the only place where that is decided. Pure.

Slow is not dead: what shows that it moves may take as long as it likes. Stuck is not alive: probes that are
answered, pings and processor time do not make up for work that stands still.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from app.judgement.evidence import Evidence
from app.judgement.progress import slot_of
from app.judgement.router_pauses import Pauses

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

BUSY_SHARE = 1.4
"""Of the limit, for a process that computes: one batch of a prompt can take long without a sign."""

READS_PER_S = 10.0
"""Tokens. A batch of a prompt that is read more slowly than this is not waited for."""

LOOKS = 4
"""A request that has been quiet is looked at this often within its limit."""

SOON_S = 0.25
FAR_S = 3600.0


class ProcessState(Enum):
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
class ProcessLimits:
    """Seconds. 0 for `load_s` or `request_s`: no limit."""

    load_s: float = 180.0
    request_s: float = 120.0
    closed_s: float = CLOSED_S


@dataclass(frozen=True)
class Verdict:
    """`since` and `why` belong to SLOW, STUCK and GONE; `cause` to STUCK alone."""

    state: ProcessState
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
        if verdict.state is not ProcessState.STUCK:
            self._first = None
            return False
        if self._first is None:
            self._first = now, evidence.observed
            return False
        since, observed = self._first
        return now - since >= AGAIN_S and evidence.observed > observed


def judge(evidence: Evidence, limits: ProcessLimits, pauses: Pauses, now: float) -> Verdict:
    if evidence.exited_at is not None:
        return Verdict(ProcessState.GONE, evidence.exited_at, "it has ended")
    found = _port_closed(evidence, limits, pauses) or (
        _load(evidence, limits, pauses, now)
        if evidence.is_loading
        else _service(evidence, limits, pauses, now)
    )
    if found.state is ProcessState.STUCK and pauses.waking_s(now):
        return Verdict(
            ProcessState.SLOW, found.since, found.why
        )  # what came in the pause has not been read yet
    return found


def _port_closed(evidence: Evidence, limits: ProcessLimits, pauses: Pauses) -> Verdict | None:
    if evidence.refusals < MISSES:
        return None
    first, last = evidence.refused[0], evidence.refused[-1]
    if pauses.awake_s(first, last) < limits.closed_s:
        return None
    return Verdict(ProcessState.STUCK, first, "it closed its port", Cause.PORT_CLOSED)


def _load(evidence: Evidence, limits: ProcessLimits, pauses: Pauses, now: float) -> Verdict:
    still_s = pauses.awake_s(evidence.moved_at, now)
    if limits.load_s and still_s > limits.load_s:
        return _stuck(evidence.moved_at, f"no progress for {still_s:.0f} s")
    if still_s > SLOW_S:
        return Verdict(ProcessState.SLOW, evidence.moved_at, evidence.doing or "loading")
    is_open = evidence.accepted_at is not None or evidence.doing
    return Verdict(ProcessState.LOADING if is_open else ProcessState.STARTING)


def _service(evidence: Evidence, limits: ProcessLimits, pauses: Pauses, now: float) -> Verdict:
    missed = _moments(evidence.missed)
    if missed >= MISSES:
        why = f"it missed {missed} probes in a row"
        return Verdict(ProcessState.STUCK, evidence.missed[0], why, Cause.NO_ANSWER)
    owed = evidence.unanswered_since
    if owed is None:
        if missed:
            return Verdict(ProcessState.SLOW, evidence.missed[0], f"it missed {missed} of its probes")
        return Verdict(ProcessState.SERVING)
    still_s = pauses.awake_s(_unless_stopped_later(evidence, owed), now)
    overdue_s = still_s - allowed_s(evidence, limits)
    if limits.request_s and overdue_s >= 0 and _is_seen(evidence, pauses, overdue_s, now):
        return _stuck(owed, f"nothing has moved for {still_s:.0f} s{_while(evidence)}")
    if still_s > min(SLOW_S, limits.request_s or SLOW_S):
        return Verdict(ProcessState.SLOW, owed, f"nothing has moved for {still_s:.0f} s{_while(evidence)}")
    return Verdict(ProcessState.SERVING)


def _stuck(since: float, why: str) -> Verdict:
    return Verdict(ProcessState.STUCK, since, why, Cause.NO_PROGRESS)


def allowed_s(evidence: Evidence, limits: ProcessLimits) -> float:
    """How long the work of this process may stand still."""
    if evidence.busy_since is None or evidence.is_stopped:
        return limits.request_s
    unread = sum(slot.unread for slot in evidence.slots or ())
    return max(BUSY_SHARE * limits.request_s, unread / READS_PER_S)


def _unless_stopped_later(evidence: Evidence, moved_at: float) -> float:
    """What is stopped may have moved until then, and cannot say so."""
    return moved_at if evidence.stopped_since is None else max(moved_at, evidence.stopped_since)


def _is_seen(evidence: Evidence, pauses: Pauses, overdue_s: float, now: float) -> bool:
    """The last look at its work ended after its time was over. What is stopped needs none, nor what has given
    no sign of life since it left a question without an answer: it would be waited for once more."""
    unseen_s = pauses.awake_s(evidence.work_looked_at, now)
    needs_none = evidence.is_stopped or bool(evidence.missed)
    return not pauses.waking_s(now) and (needs_none or unseen_s <= overdue_s)


def look_in_s(
    evidence: Evidence,
    limits: ProcessLimits,
    pauses: Pauses,
    now: float,
    interval_s: float,
    *,
    is_suspect: bool,
) -> float:
    """When it is to be looked at next; not oftener: where one slot streams, a look at the slots every moment
    keeps cancelled requests alive."""
    rested_s = now - evidence.looked_at
    in_s = interval_s - rested_s
    if is_suspect or evidence.missed:
        return min(AGAIN_S - rested_s, in_s)
    if (owed := evidence.unanswered_since) is None or not limits.request_s:
        return in_s
    part_s, unseen_s = limits.request_s / LOOKS, now - evidence.work_looked_at
    quiet_s = pauses.awake_s(owed, now)
    left_s = allowed_s(evidence, limits) - quiet_s
    in_its_turn_s = max(part_s - quiet_s, part_s - unseen_s)
    return min(in_its_turn_s, max(left_s, AGAIN_S - rested_s, AGAIN_S - unseen_s), in_s)


def is_quiet(
    evidence: Evidence, limits: ProcessLimits, pauses: Pauses, now: float, requests: Iterable[float] = ()
) -> bool:
    """Its slots are worth a look. `requests`: since when each of those that run has got nothing."""
    part_s, owed = limits.request_s / LOOKS, evidence.unanswered_since
    quiet = requests if owed is None else (owed, *requests)
    return limits.request_s > 0 and any(pauses.awake_s(since, now) >= part_s - SOON_S for since in quiet)


@dataclass(frozen=True)
class RequestVerdict:
    """Of one request. `left_s`: until this is to be asked again; 0: its slot has stood still for too long."""

    left_s: float
    wants_look: bool = False


def judge_request(
    evidence: Evidence,
    limits: ProcessLimits,
    pauses: Pauses,
    now: float,
    quiet_since: float,
    place: int,
    in_flight: int,
) -> RequestVerdict:
    """Whether a request that has got nothing since then is worked on.

    Its process is looked at when it has been quiet for a part of its limit, and once more before it is given
    up.
    """
    if not limits.request_s:
        return RequestVerdict(FAR_S)
    part_s = limits.request_s / LOOKS
    quiet_s = pauses.awake_s(quiet_since, now)
    if quiet_s < part_s:
        return RequestVerdict(part_s - quiet_s)
    unseen_s = pauses.awake_s(max(evidence.work_looked_at, quiet_since), now)
    moved_at = _unless_stopped_later(evidence, _request_moved_at(evidence, place, in_flight, quiet_since))
    left_s = allowed_s(evidence, limits) - pauses.awake_s(moved_at, now)
    if left_s > 0:
        return RequestVerdict(min(left_s, part_s), wants_look=unseen_s >= part_s)
    if _is_seen(evidence, pauses, -left_s, now):
        return RequestVerdict(0.0)
    return RequestVerdict(SOON_S, wants_look=True)


def _request_moved_at(evidence: Evidence, place: int, in_flight: int, quiet_since: float) -> float:
    """Where its slot is not known, as with one that was given up and still runs, any slot counts."""
    if evidence.slots is None:
        return max(quiet_since, evidence.moved_at)
    if (slot := slot_of(evidence, place, in_flight)) is not None:
        return max(quiet_since, evidence.slot_moved_at.get(slot.task, 0.0))
    return max([quiet_since, *evidence.slot_moved_at.values()])


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
