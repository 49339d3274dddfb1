"""What is believed of a process: single rules, generated histories in every order, and broken rules."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.alarm import LATE_S
from app.judgement import judge as rules
from app.judgement.evidence import Evidence, Slot
from app.judgement.judge import (
    AGAIN_S,
    PROBE_TIMEOUT_S,
    Cause,
    ProcessLimits,
    ProcessState,
    Repeated,
    Verdict,
    is_quiet,
    judge,
    judge_request,
    look_in_s,
)
from app.judgement.router_pauses import GRACE_S, TICK_S, Pauses

LIMIT_S = 20.0
LIMITS = ProcessLimits(load_s=30.0, request_s=LIMIT_S)
FOUND_WITHIN_S = 2 * LIMIT_S + 10


class Case:
    """One process and this program's own clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses = Pauses(self.now)
        self.seen = Evidence(self.now)
        self.quiet_since: float | None = None

    def serving(self) -> Case:
        self.seen.port_accepted(self.now)
        self.seen.ready(self.now)
        return self

    def wait(self, seconds: float) -> None:
        """As if the time keeper had ticked all the while."""
        self.now += seconds
        self.pauses._last_tick = self.now

    def sleep(self, seconds: float) -> None:
        """This program stands still."""
        self.now += seconds
        self.pauses.tick(self.now)

    def probe(self, *, ok: bool, takes_s: float = 0.0, at_slots: bool = False) -> None:
        self.seen.probe_begun(self.now, at_slots=at_slots)
        self.wait(takes_s)
        if ok:
            self.seen.probe_answered(self.now)
        else:
            self.seen.probe_missed(self.now)

    def look(self, *slots: Slot, cpu_s: float = 0.0, is_stopped: bool = False) -> None:
        self.seen.used_processor(self.now, cpu_s, is_stopped=is_stopped)
        self.probe(ok=True, at_slots=True)
        self.seen.saw_slots(self.now, slots)
        if self.quiet_since is not None:
            self.seen.asked(self.quiet_since)

    def ask(self) -> float:
        """A request that gets nothing; since when."""
        self.quiet_since = self.now
        self.seen.asked(self.now)
        return self.now

    @property
    def verdict(self) -> Verdict:
        return judge(self.seen, LIMITS, self.pauses, self.now)

    @property
    def state(self) -> ProcessState:
        return self.verdict.state

    def left_s(self, quiet_since: float, place: int = 0, in_flight: int = 1) -> float:
        return judge_request(self.seen, LIMITS, self.pauses, self.now, quiet_since, place, in_flight).left_s


# --- a load


def test_a_start_that_has_not_bound_its_port_is_starting_however_long_it_is_refused() -> None:
    case = Case()
    for _ in range(50):
        case.seen.port_refused(case.now)
        case.wait(0.5)
        case.seen.moved(case.now)
    assert case.state is ProcessState.STARTING


def test_a_port_that_was_open_and_refuses_has_been_closed() -> None:
    case = Case()
    case.seen.port_accepted(case.now)
    assert case.state is ProcessState.LOADING
    for _ in range(4):
        case.seen.port_refused(case.now)
        case.wait(1.1)
    assert (case.state, case.verdict.cause) == (ProcessState.STUCK, Cause.PORT_CLOSED)
    case.seen.port_accepted(case.now)
    assert case.state is ProcessState.LOADING


def test_refusals_of_a_moment_are_not_enough_however_many() -> None:
    case = Case()
    case.seen.port_accepted(case.now)
    for _ in range(20):
        case.seen.port_refused(case.now)
        case.wait(0.1)
    assert case.state is ProcessState.LOADING


def test_two_refusals_are_not_enough_however_far_apart() -> None:
    case = Case()
    case.seen.port_accepted(case.now)
    for _ in range(2):
        case.seen.port_refused(case.now)
        case.wait(5)
    assert case.state is ProcessState.LOADING


def test_a_load_may_take_any_time_while_it_moves() -> None:
    case = Case()
    case.seen.doing = "weights"
    for _ in range(20):
        case.wait(29)
        assert case.state is ProcessState.SLOW
        case.seen.moved(case.now)
        assert case.state is ProcessState.LOADING


def test_a_load_without_a_sign_is_stuck() -> None:
    case = Case()
    case.wait(30.5)
    assert (case.state, case.verdict.cause) == (ProcessState.STUCK, Cause.NO_PROGRESS)


# --- a process that serves


def test_nobody_who_is_owed_nothing_is_stuck() -> None:
    case = Case().serving()
    case.wait(100 * LIMIT_S)
    assert case.state is ProcessState.SERVING


def test_misses_that_were_begun_at_one_moment_are_one() -> None:
    case = Case().serving()
    case.wait(1)
    for _ in range(6):
        case.probe(ok=False)
    assert case.state is ProcessState.SLOW
    for _ in range(2):
        case.wait(2)
        case.probe(ok=False)
    assert (case.state, case.verdict.cause) == (ProcessState.STUCK, Cause.NO_ANSWER)


@pytest.mark.parametrize("sign", ["bytes", "answer"])
def test_any_sign_of_life_clears_the_misses(sign: str) -> None:
    case = Case().serving()
    for _ in range(3):
        case.wait(2)
        case.probe(ok=False, takes_s=10)
    assert case.state is ProcessState.STUCK
    case.seen.moved(case.now) if sign == "bytes" else case.probe(ok=True)
    assert case.state is ProcessState.SERVING


def test_a_probe_that_could_not_be_asked_tells_nothing() -> None:
    case = Case().serving()
    for _ in range(5):
        case.wait(2)
        case.seen.probe_begun(case.now)
        case.seen.probe_missed(case.now, is_void=True)
    assert case.state is ProcessState.SERVING


def test_answered_probes_do_not_make_up_for_work_that_stands_still() -> None:
    case = Case().serving()
    case.ask()
    for _ in range(6):
        case.wait(5)
        case.look(Slot(1, prompt=5, read=5, generated=3))
    assert (case.state, case.verdict.cause) == (ProcessState.STUCK, Cause.NO_PROGRESS)


def test_an_answer_about_its_health_is_no_look_at_its_work() -> None:
    case = Case().serving()
    begun = case.ask()
    case.wait(5)
    case.look(Slot(1, 5, 5, 1))
    case.wait(LIMIT_S + 2)
    case.probe(ok=True)
    case.seen.asked(begun)
    assert case.state is ProcessState.SLOW
    found = judge_request(case.seen, LIMITS, case.pauses, case.now, begun, 0, 1)
    assert found.wants_look and found.left_s > 0
    assert look_in_s(case.seen, LIMITS, case.pauses, case.now, 30.0, is_suspect=False) <= AGAIN_S
    case.look(Slot(1, 5, 5, 2))
    assert case.state is ProcessState.SERVING


def test_what_has_only_just_been_asked_is_not_looked_at_all_the_time() -> None:
    case = Case().serving()
    case.wait(100)
    case.ask()
    case.wait(0.1)
    case.probe(ok=True)
    in_s = look_in_s(case.seen, LIMITS, case.pauses, case.now, 30.0, is_suspect=False)
    assert LIMIT_S / 8 < in_s <= LIMIT_S / 4


def test_a_process_that_computes_gets_more_time_and_not_for_ever() -> None:
    case = Case().serving()
    begun = case.ask()
    while case.state is not ProcessState.STUCK and case.now < begun + 1000:
        case.wait(5)
        case.look(Slot(1, prompt=5, read=5, generated=3), cpu_s=case.now)
    assert 1.5 * LIMIT_S < case.now - begun < FOUND_WITHIN_S


def test_a_long_prompt_is_read_in_peace_and_a_lost_one_is_not() -> None:
    """llama-server tells nothing of a batch until it is read, and a batch may be all of the prompt."""
    case = Case().serving()
    begun = case.ask()
    for _ in range(12):
        case.wait(5)
        case.look(Slot(1, prompt=1000), cpu_s=case.now)
        assert case.state is not ProcessState.STUCK
        assert case.left_s(begun) > 0
    case.look(Slot(1, prompt=1000), cpu_s=case.now)
    for _ in range(6):
        case.wait(5)
        case.look(Slot(1, prompt=1000), cpu_s=0.0)
    assert case.state is ProcessState.STUCK


def test_a_stopped_process_does_not_compute() -> None:
    case = Case().serving()
    case.ask()
    for _ in range(6):
        case.wait(5)
        case.look(Slot(1, prompt=5000), cpu_s=case.now, is_stopped=True)
    assert case.state is ProcessState.STUCK
    assert "stopped by a signal" in case.verdict.why


SHORT = replace(LIMITS, request_s=5.0)
"""Shorter than a look that gets no answer."""


def test_what_was_stopped_only_now_may_have_moved_until_then() -> None:
    """A step, a short stop and the limit of a request must not add up to a hang."""
    case = Case().serving()
    begun = case.ask()
    case.wait(0.7 * LIMIT_S)
    case.look(Slot(1, 5, 5, 1))  # it moves a moment after that
    begun = max(begun, case.now)
    case.wait(0.9 * LIMIT_S)
    case.seen.used_processor(case.now, 0.0, is_stopped=True)
    case.wait(0.2 * LIMIT_S)
    case.seen.used_processor(case.now, 0.0, is_stopped=True)
    case.seen.asked(begun)
    assert case.state is not ProcessState.STUCK
    assert case.left_s(begun) > 0
    case.wait(0.9 * LIMIT_S)
    assert case.state is ProcessState.STUCK
    assert case.left_s(begun) == 0


def test_what_has_missed_a_look_is_not_waited_for_again() -> None:
    """A look takes long where it gets no answer: the next one need not end before anything is judged."""
    case = Case().serving()
    begun = case.ask()
    case.wait(LIMIT_S / 4)
    case.probe(ok=False, takes_s=PROBE_TIMEOUT_S, at_slots=True)
    case.wait(1)
    case.seen.probe_begun(case.now, at_slots=True)
    assert case.state is ProcessState.SLOW
    case.wait(begun + LIMIT_S + 0.1 - case.now)
    assert case.state is ProcessState.STUCK
    assert case.left_s(begun) == 0
    case.seen.probe_answered(case.now)
    case.seen.saw_slots(case.now, [Slot(1, 5, 5, 1)])
    assert case.state is ProcessState.SERVING


@pytest.mark.parametrize("slots", [[], None, [Slot(1, 5, 5, 1)]], ids=["idle", "cannot tell", "at work"])
def test_a_look_at_the_slots_is_owed_an_answer_where_nobody_else_waits(slots: list[Slot] | None) -> None:
    """As after a request that was given up: its place is kept until the slots have been seen."""
    case = Case().serving()
    case.wait(100)
    case.probe(ok=False, takes_s=PROBE_TIMEOUT_S, at_slots=True)
    verdict = judge(case.seen, SHORT, case.pauses, case.now)
    assert (verdict.state, verdict.cause) == (ProcessState.STUCK, Cause.NO_PROGRESS)
    assert is_quiet(case.seen, SHORT, case.pauses, case.now), "the next look is at the slots, too"
    case.wait(1)
    case.probe(ok=True, at_slots=True)
    case.seen.saw_slots(case.now, slots)
    case.wait(100)
    assert judge(case.seen, SHORT, case.pauses, case.now).state is ProcessState.SERVING


def test_a_look_at_the_health_that_gets_no_answer_is_a_miss_and_no_more() -> None:
    case = Case().serving()
    case.wait(100)
    case.probe(ok=False, takes_s=PROBE_TIMEOUT_S)
    assert judge(case.seen, SHORT, case.pauses, case.now).state is ProcessState.SLOW


@pytest.mark.parametrize("works", [True, False])
def test_where_slots_cannot_be_seen_what_moves_is_what_it_says_by_itself(works: bool) -> None:
    case = Case().serving()
    begun = case.ask()
    for _ in range(10):
        if works:
            case.wait(5)
            case.seen.said(case.now)
        case.wait(5)
        case.probe(ok=True, at_slots=True)
        case.seen.saw_slots(case.now, None)
        case.wait(0.1)
        case.seen.said(case.now)  # of the probe
        case.seen.asked(begun)
    assert case.state is (ProcessState.SERVING if works else ProcessState.STUCK)


def test_nothing_is_ended_that_was_found_stuck_once() -> None:
    case, repeated = Case(), Repeated()
    case.wait(31)
    assert not repeated.stuck(case.verdict, case.seen, case.now)
    case.seen.port_refused(case.now)
    assert not repeated.stuck(case.verdict, case.seen, case.now), "at the same moment"
    repeated = Repeated()
    assert not repeated.stuck(case.verdict, case.seen, case.now)
    case.wait(2)
    assert not repeated.stuck(case.verdict, case.seen, case.now), "nothing was observed in between"
    case.seen.port_refused(case.now)
    assert repeated.stuck(case.verdict, case.seen, case.now)
    case.seen.moved(case.now)
    assert not repeated.stuck(case.verdict, case.seen, case.now)
    case.wait(31)
    assert not repeated.stuck(case.verdict, case.seen, case.now), "it begins anew"


# --- pauses of this program


def test_a_pause_counts_for_nobody_and_everything_is_looked_at_after_it() -> None:
    case = Case().serving()
    begun = case.ask()
    case.wait(LIMIT_S / 2)
    case.look(Slot(1, 5, 5, 1))
    case.sleep(130)
    assert case.state is not ProcessState.STUCK
    assert case.left_s(begun) > 0
    case.wait(GRACE_S + LIMIT_S)
    assert case.state is not ProcessState.STUCK, "not looked at since"
    assert judge_request(case.seen, LIMITS, case.pauses, case.now, begun, 0, 1).wants_look


def test_what_is_asked_after_a_pause_was_not_interrupted_by_it() -> None:
    case = Case()
    before = case.now
    case.sleep(5)
    after = case.now
    case.wait(GRACE_S / 2)
    assert case.pauses.interrupted(before, case.now)
    assert not case.pauses.interrupted(after, case.now)


def test_a_load_does_not_age_in_a_pause() -> None:
    case = Case()
    case.wait(10)
    case.sleep(500)
    assert case.state is not ProcessState.STUCK
    case.wait(31 - 10 + GRACE_S)
    assert case.state is ProcessState.STUCK


def test_a_busy_moment_is_no_pause() -> None:
    pauses = Pauses(0.0)
    pauses.tick(TICK_S + LATE_S)
    assert pauses.count == 0 and pauses.awake_s(0.0, 1.0) == 1.0
    pauses.tick(TICK_S + LATE_S + 5)
    assert pauses.count == 1


@given(st.lists(st.tuples(st.floats(0.1, 50), st.booleans()), max_size=30))
def test_awake_and_asleep_make_up_the_time(parts: list[tuple[float, bool]]) -> None:
    case = Case()
    awake = 0.0
    for seconds, is_pause in parts:
        if is_pause:
            case.sleep(seconds)
            awake += 0.0 if seconds > TICK_S + LATE_S else seconds
        else:
            case.wait(seconds)
            awake += seconds
    told = case.pauses.awake_s(1000.0, case.now)
    graces = GRACE_S * case.pauses.count + TICK_S * case.pauses.count
    assert awake - graces - 1e-6 <= told <= awake + 1e-6


# --- one request among others


def test_the_slot_of_a_request_is_told_by_the_order_of_their_start() -> None:
    case = Case().serving()
    begun = case.now
    for step in range(8):
        case.wait(5)
        case.look(Slot(7, 5, 5, 1), Slot(9, 5, 5, step))
    assert case.left_s(begun, place=0, in_flight=2) == 0
    assert case.left_s(begun, place=1, in_flight=2) > 0
    assert case.left_s(begun, place=0, in_flight=3) > 0, "which slot is whose is not known"


def test_a_quiet_request_is_looked_at_and_never_oftener_than_every_quarter() -> None:
    case = Case().serving()
    begun, looks, last = case.now, 0, case.now
    for step in range(200):
        case.wait(1)
        found = judge_request(case.seen, LIMITS, case.pauses, case.now, begun, 0, 1)
        if found.wants_look:
            assert case.now - last >= LIMIT_S / 4
            looks, last = looks + 1, case.now
            case.look(Slot(1, 5, 5, step))
    assert looks == pytest.approx(200 / (LIMIT_S / 4), abs=2)


def test_without_a_limit_nobody_is_looked_at() -> None:
    case = Case().serving()
    case.wait(10_000)
    found = judge_request(case.seen, ProcessLimits(request_s=0), case.pauses, case.now, 1000.0, 0, 1)
    assert found.left_s > 0 and not found.wants_look


# --- histories in every order

OBSERVATIONS: dict[str, Callable[[Case], object]] = {
    "accepted": lambda c: c.seen.port_accepted(c.now),
    "refused": lambda c: c.seen.port_refused(c.now),
    "moved": lambda c: c.seen.moved(c.now),
    "asked": lambda c: c.seen.asked(c.now),
    "missed": lambda c: c.probe(ok=False, takes_s=10),
    "answered": lambda c: c.probe(ok=True),
    "idle": lambda c: c.look(),
    "still": lambda c: c.look(Slot(1, 5, 5, 1)),
    "computes": lambda c: c.look(Slot(1, 500), cpu_s=c.now),
    "stopped": lambda c: c.look(Slot(1, 500), is_stopped=True),
    "cannot tell": lambda c: c.seen.saw_slots(c.now, None),
    "ready": lambda c: c.seen.ready(c.now),
    "says ready": lambda c: setattr(c.seen, "said_ready", True),
    "a second": lambda c: c.wait(1.2),
    "a while": lambda c: c.wait(LIMIT_S / 2),
    "a pause": lambda c: c.sleep(100),
}
OPENS = {"accepted", "answered", "idle", "still", "computes", "stopped", "says ready"}
histories = st.lists(st.sampled_from(sorted(OBSERVATIONS)), max_size=40)


def after(history: list[str]) -> Case:
    case = Case()
    for name in history:
        OBSERVATIONS[name](case)
    return case


def check(history: list[str]) -> None:
    """What must hold of any history."""
    case = after(history)
    verdict = case.verdict
    assert case.verdict == verdict, "asking changes nothing"
    assert (verdict.cause is not None) == (verdict.state is ProcessState.STUCK)
    if verdict.state is ProcessState.STUCK:
        assert not case.pauses.waking_s(case.now), "judged before anything could be looked at afresh"
        assert verdict.since is not None and verdict.since <= case.now
    if verdict.cause is Cause.PORT_CLOSED:
        assert {"accepted", "missed", "answered", "idle", "still", "computes", "stopped", "says ready"} & set(
            history
        )
        assert history.count("refused") >= 3
    for sign in ("moved", "answered"):
        again = after([*history, "accepted", sign]).verdict
        assert again.cause is not Cause.PORT_CLOSED
        if sign == "moved":
            assert again.state is not ProcessState.STUCK, "it has just moved"
    later = after([*history, "a pause"])
    assert later.state is not ProcessState.STUCK, "found in a pause"


@settings(max_examples=400)
@given(histories)
def test_any_history_in_any_order(history: list[str]) -> None:
    check(history)


# --- a process that lives, and a process that hangs


def live(seed: int, *, hangs: bool) -> float | None:
    """A process with slow phases, none of which reaches its limit, where it does not hang with short stops in
    between; and a program that is paused now and then. Watched as the monitor does. How long after its hang
    it was ended. Raises if a healthy one is."""
    chance, stops = random.Random(seed), random.Random(f"stops {seed}")
    case, repeated = Case().serving(), Repeated()
    case.ask()
    tokens, task, cpu_s = 0, 1, 0.0
    computes = chance.random() < 0.5
    hang_at = case.now + chance.uniform(50, 200) if hangs else float("inf")
    end, moves_at = case.now + 600, case.now
    while case.now < end:
        if case.now >= hang_at:
            takes_s = chance.choice([0.0, 0.0, 10.0])
        else:
            if chance.random() < 0.02:
                case.sleep(chance.choice([5, 20, 130]))
                hang_at = max(hang_at, case.now)
            takes_s = chance.choice([0.0] * 8 + [6.0, 8.0])
            if not hangs and stops.random() < 0.2:
                moves_at += stop_for_a_moment(case, repeated, cpu_s, stops.uniform(0.1, 0.3) * LIMIT_S)
        case.seen.used_processor(case.now, cpu_s, is_stopped=False)
        case.probe(ok=takes_s < 10, takes_s=takes_s, at_slots=True)
        while case.now >= moves_at and moves_at < hang_at:
            tokens += 1
            moves_at += chance.choice([0.1, 1.0, 0.5 * LIMIT_S])
            if chance.random() < 0.05:
                task, tokens = task + 1, 0
        if takes_s < 10:
            case.seen.saw_slots(case.now, [Slot(task, 5, 5, tokens)])
        case.seen.asked(1000.0)
        if repeated.stuck(case.verdict, case.seen, case.now):
            assert case.now >= hang_at, f"a healthy process was ended: {case.verdict}"
            return case.now - hang_at
        suspect = repeated.is_suspect
        in_s = look_in_s(case.seen, LIMITS, case.pauses, case.now, 30.0, is_suspect=suspect)
        cpu_s += max(in_s, 0.05) if computes else 0.0
        case.wait(max(in_s, 0.05))
    return None


def stop_for_a_moment(case: Case, repeated: Repeated, cpu_s: float, seconds: float) -> float:
    """By a signal; looked at every second, as what is asked and does not answer. How long it took."""
    begun = case.now
    while case.now < begun + seconds:
        case.seen.used_processor(case.now, cpu_s, is_stopped=True)
        case.seen.asked(1000.0)
        assert not repeated.stuck(case.verdict, case.seen, case.now), f"stopped for a moment: {case.verdict}"
        case.wait(1.0)
    return case.now - begun


@pytest.mark.parametrize("seed", range(40))
def test_what_lives_is_never_ended(seed: int) -> None:
    assert live(seed, hangs=False) is None


@pytest.mark.parametrize("seed", range(40))
def test_what_hangs_is_found_in_time(seed: int) -> None:
    found = live(seed, hangs=True)
    assert found is not None and found <= FOUND_WITHIN_S


# --- clients that leave before any limit


@dataclass(frozen=True)
class Waiting:
    """A client's request; `starts` and `ends`: in its slot, if the process works."""

    task: int
    since: float
    leaves: float
    starts: float
    ends: float


def impatient(seed: int, *, hangs: bool) -> float | None:
    """A process that works, or one that takes no request into its slots, and two clients that never wait for
    as long as the limit. How long after the first request it was ended. Raises if one that works is."""
    chance = random.Random(seed)
    case, repeated = Case().serving(), Repeated()
    begun, look_at, tasks = case.now, case.now, 0
    patience = chance.choice([(0.05, 0.2), (0.3, 0.9), (0.05, 0.9)])
    requests: list[Waiting | None] = [None, None]
    while case.now < begun + 300:
        case.wait(0.1)
        now = case.now
        for place, request in enumerate(requests):
            if request is None:
                tasks, starts = tasks + 1, now + chance.choice([0.0, 0.5, 3.0])
                leaves = now + chance.uniform(*patience) * LIMIT_S
                requests[place] = Waiting(tasks, now, leaves, starts, starts + chance.uniform(0.1, 12.0))
            elif not hangs and now >= request.ends:
                if case.seen.is_doubted:
                    case.seen.moved(now)
                requests[place] = None
            elif now >= request.leaves:
                case.seen.asked(request.since)
                requests[place] = None
        if now < look_at:
            continue
        stand = [request for request in requests if request is not None]
        since = [request.since for request in stand]
        at_slots = is_quiet(case.seen, LIMITS, case.pauses, now, since)
        for when in since:
            case.seen.asked(when)
        case.probe(ok=True, at_slots=at_slots)
        if at_slots:
            work = [] if hangs else [r for r in stand if r.starts <= now]
            case.seen.saw_slots(now, [Slot(r.task, 5, 5, int(now - r.starts)) for r in work])
        for when in since:
            case.seen.asked(when)
        if repeated.stuck(case.verdict, case.seen, now):
            assert hangs, f"a process that works was ended: {case.verdict}"
            return now - begun
        suspect = repeated.is_suspect
        look_at = now + look_in_s(case.seen, LIMITS, case.pauses, now, 30.0, is_suspect=suspect)
    return None


@pytest.mark.parametrize("seed", range(40))
def test_clients_that_leave_end_nothing_that_works(seed: int) -> None:
    assert impatient(seed, hangs=False) is None


@pytest.mark.parametrize("seed", range(40))
def test_a_process_whose_slots_stay_idle_while_requests_stand_is_stuck(seed: int) -> None:
    found = impatient(seed, hangs=True)
    assert found is not None and found <= FOUND_WITHIN_S


def test_who_has_left_when_no_slot_works_is_owed_nothing() -> None:
    case = Case().serving()
    case.seen.asked(case.now)
    case.wait(LIMIT_S)
    case.look()
    case.wait(1)
    case.seen.asked(case.now)
    case.wait(LIMIT_S / 4)
    case.probe(ok=True, at_slots=True)
    assert case.state is ProcessState.SERVING


# --- rules that are broken are found out


def all_rules() -> None:
    for name, test in globals().copy().items():
        if name.startswith("test_") and not hasattr(test, "hypothesis") and not _needs(test):
            test()
    for seed in range(12):
        assert live(seed, hangs=False) is None
        found = live(seed, hangs=True)
        assert found is not None and found <= FOUND_WITHIN_S
        assert impatient(seed, hangs=False) is None
        found = impatient(seed, hangs=True)
        assert found is not None and found <= FOUND_WITHIN_S


def _needs(test: Any) -> bool:
    return bool(test.__code__.co_argcount)


MUTANTS: dict[str, tuple[str, object]] = {
    "one miss is enough": ("MISSES", 1),
    "misses are counted, not moments": ("APART_S", 0.0),
    "whoever computes is believed for ever": ("BUSY_SHARE", 1e9),
    "whoever computes gets no more time": ("BUSY_SHARE", 1.0),
    "prompts are not waited for": ("READS_PER_S", 1e9),
    "once is enough": ("AGAIN_S", -1.0),
    "looked at all the time": ("LOOKS", 1000),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_rule_is_found_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    constant, value = MUTANTS[name]
    monkeypatch.setattr(rules, constant, value)
    with pytest.raises(AssertionError):
        all_rules()


@pytest.mark.parametrize("closed_s", [0.0, 1e9], ids=["at the first refusals", "never"])
def test_a_port_that_is_called_closed_at_another_time_is_found_out(
    closed_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "LIMITS", replace(LIMITS, closed_s=closed_s))
    with pytest.raises(AssertionError):
        all_rules()


@pytest.mark.parametrize(
    "change", [{"_owed_when_idle": None}, {"slots_at": 1e9}], ids=["nobody", "everybody"]
)
def test_a_rule_that_takes_others_to_stand_at_idle_slots_is_found_out(
    change: dict[str, float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    saw_slots = Evidence.saw_slots

    def broken(evidence: Evidence, now: float, working: Sequence[Slot] | None) -> None:
        saw_slots(evidence, now, working)
        if working is not None and not working:
            vars(evidence).update(change)

    monkeypatch.setattr(Evidence, "saw_slots", broken)
    with pytest.raises(AssertionError):
        all_rules()
