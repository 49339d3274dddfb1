"""The life of one model, told and answered without a clock: states, back-off, giving way, and who is told."""

from __future__ import annotations

from typing import TypeVar

import pytest

from app.domain.events import Evicted, LoadFinished, LoadResult, Restarted, StatusChanged
from app.domain.status import InvalidMove, Status, StopReason
from app.domain.views import NEVER_USED
from app.llama.exit_reason import Failure, FailureKind
from app.models.lifecycle import Lifecycle
from app.models.lifecycle_effects import Blame, Effects, EndProcess, Note, ProcessEnd, RejectWaiting
from app.models.restarts import RestartLimits, backoff_s

NOW = 1000.0
MEMORY, MANUAL = StopReason.MEMORY, StopReason.MANUAL
KILLED = Failure(FailureKind.KILLED, "It was killed.", -9, ())
BROKEN = Failure(FailureKind.BAD_MODEL, "It is no model.", 1, ())
T = TypeVar("T")


def life(status: Status = Status.OFF, **limits: int) -> Lifecycle:
    """A model that has come this far without trouble."""
    model = Lifecycle(
        "m", RestartLimits(**{"max_restarts": 2, "window_s": 600, "load_retries": 1, **limits}), 0.0
    )
    if status is not Status.OFF:
        model.start(NOW - 20, is_wanted=True)
    if status in (Status.READY, Status.DRAINING):
        model.port_answers(NOW - 19)
        model.loaded(NOW - 10)
    if status is Status.DRAINING:
        model.drain(MEMORY, "other", now=NOW - 5, has_waiting=False, in_flight=1)
    assert model.status is status
    return model


def of(kind: type[T], effects: Effects) -> list[T]:
    return [effect for effect in effects if isinstance(effect, kind)]


def moves(effects: Effects) -> list[Status]:
    return [move.new for move in of(StatusChanged, effects)]


def crash(model: Lifecycle, failure: Failure = KILLED, now: float = NOW, **rest: Blame) -> Effects:
    return model.process_ended(ProcessEnd(failure, **rest), now)


# --- loading


def test_a_load_goes_from_starting_to_ready_and_is_reported_once() -> None:
    model = life()
    told = [*model.start(NOW, is_wanted=True), *model.port_answers(NOW + 1), *model.loaded(NOW + 4)]
    assert moves(told) == [Status.STARTING, Status.LOADING, Status.READY]
    assert of(LoadFinished, told) == [LoadFinished("m", LoadResult.SUCCESS, 4.0)]
    assert model.port_answers(NOW + 5) == []


def test_a_failed_load_is_tried_again_as_often_as_allowed_and_then_fails() -> None:
    model = life(Status.STARTING)
    assert moves(crash(model)) == [Status.CRASHED]
    assert model.restarts.retry_at == NOW + backoff_s(1)
    model.start(NOW + 1, is_wanted=True)
    told = crash(model)
    assert moves(told) == [Status.FAILED]
    assert of(RejectWaiting, told) == [RejectWaiting(KILLED)]


def test_a_load_that_cannot_heal_fails_at_once() -> None:
    assert moves(crash(life(Status.STARTING), BROKEN)) == [Status.FAILED]


def test_a_load_whose_memory_others_took_is_no_attempt() -> None:
    model = life(Status.STARTING, load_retries=0)
    (told,) = of(StatusChanged, crash(model, blame=Blame.OTHER_PROGRAMS))
    assert (told.new, model.restarts.attempts) == (Status.CRASHED, 0)
    assert told.reason == "load failed, trying again: another program took its memory"


def test_the_routers_own_lack_of_files_rejects_who_waits_and_blames_no_model() -> None:
    lack = Failure(FailureKind.OUT_OF_FILES, "No files left.", None, ())
    model = life(Status.STARTING, load_retries=0)
    told = crash(model, lack)
    assert moves(told) == [Status.CRASHED, Status.OFF]
    assert of(RejectWaiting, told) == [RejectWaiting(lack)]
    assert model.restarts.attempts == 0


def test_a_load_that_is_stopped_for_a_better_plan_comes_back_by_itself_if_nobody_waits() -> None:
    for has_waiting in (True, False):
        model = life(Status.STARTING)
        told = model.load_again(NOW, has_waiting=has_waiting)
        assert (moves(told), model.preload) == ([Status.STOPPING], not has_waiting)
        assert of(LoadFinished, told)[0].result is LoadResult.ABANDONED


# --- crashes


def test_a_crash_is_followed_by_a_restart_that_is_counted() -> None:
    model = life(Status.READY)
    assert moves(crash(model)) == [Status.CRASHED]
    told = model.start(NOW + 1, is_wanted=False)
    assert of(Restarted, told) == [Restarted("m")]


def test_more_crashes_than_allowed_within_the_window_are_a_failure() -> None:
    model = life(Status.READY)
    for number in range(2):
        assert moves(crash(model, now=NOW + number)) == [Status.CRASHED]
        assert model.restarts.retry_at == NOW + number + backoff_s(number + 1)
        model.start(NOW + number, is_wanted=True)
        model.loaded(NOW + number)
    told = crash(model, now=NOW + 3)
    assert (moves(told), of(RejectWaiting, told)) == ([Status.FAILED], [RejectWaiting(KILLED)])


def test_crashes_that_are_far_apart_are_none() -> None:
    model = life(Status.READY)
    for number in range(5):
        assert moves(crash(model, now=NOW + 700 * number)) == [Status.CRASHED]
        model.start(NOW + 700 * number, is_wanted=True)
        model.loaded(NOW + 700 * number)


def test_a_crash_that_is_not_the_models_fault_never_fails_it() -> None:
    model = life(Status.READY, max_restarts=0)
    for number in range(5):
        assert moves(crash(model, now=NOW + number, blame=Blame.OTHER_PROGRAMS)) == [Status.CRASHED]
        assert model.restarts.retry_at == NOW + number + backoff_s(0)
        model.start(NOW + number, is_wanted=True)
        model.loaded(NOW + number)


def test_a_crash_while_it_drains_is_what_was_wanted() -> None:
    assert moves(crash(life(Status.DRAINING))) == [Status.STOPPING, Status.OFF]


def test_a_crashed_model_can_be_given_up() -> None:
    model = life(Status.READY)
    crash(model)
    assert moves(model.give_up("its memory is in use", NOW)) == [Status.OFF]
    assert model.give_up("again", NOW) == [Note("again")]


def test_memory_that_was_short_is_no_attempt_once_the_model_was_given_up() -> None:
    model = life(Status.STARTING)
    crash(model, Failure(FailureKind.OUT_OF_MEMORY, "It ran out.", 1, ()))
    assert model.restarts.attempts == 1
    model.give_up("its memory is in use", NOW)
    assert model.restarts.attempts == 0


def test_only_a_reset_leaves_failed_and_forgives_everything() -> None:
    model = life(Status.STARTING)
    crash(model, BROKEN)
    with pytest.raises(InvalidMove):
        model.start(NOW, is_wanted=True)
    assert moves(model.reset(NOW)) == [Status.OFF]
    assert (model.failure, model.restarts.attempts) == (None, 0)
    assert model.reset(NOW) == []


# --- giving way


def test_a_busy_model_drains_and_stops_with_its_last_request() -> None:
    model = life(Status.READY)
    assert moves(model.drain(MEMORY, "b", now=NOW, has_waiting=False, in_flight=1)) == [Status.DRAINING]
    told = model.drained(NOW + 1)
    assert told == [Evicted("m", MEMORY), told[1], EndProcess()]
    assert (model.status, model.reason, model.stopped_for) == (Status.STOPPING, "evicted for b", "b")


def test_an_idle_model_stops_at_once() -> None:
    told = life(Status.READY).drain(StopReason.IDLE, now=NOW, has_waiting=False, in_flight=0)
    assert moves(told) == [Status.DRAINING, Status.STOPPING]
    assert told[-1] == EndProcess()


def test_a_load_is_not_waited_for() -> None:
    told = life(Status.STARTING).drain(MANUAL, now=NOW, has_waiting=True, in_flight=0)
    assert moves(told) == [Status.STOPPING]


@pytest.mark.parametrize(
    ("reason", "has_waiting", "gives_way"),
    [(MEMORY, True, True), (MEMORY, False, False), (MANUAL, True, False)],
)
def test_who_is_stopped_for_another_with_requests_waiting_gives_way(
    reason: StopReason, has_waiting: bool, gives_way: bool
) -> None:
    model = life(Status.READY)
    model.drain(reason, now=NOW, has_waiting=has_waiting, in_flight=1)
    assert model.preempted_at == (NOW if gives_way else NEVER_USED)


def test_who_is_resumed_has_not_given_way() -> None:
    model = life(Status.READY)
    model.drain(MEMORY, "b", now=NOW, has_waiting=True, in_flight=1)
    assert moves(model.resume(NOW + 1)) == [Status.READY]
    assert (model.preempted_at, model.stop_reason, model.stopped_for) == (NEVER_USED, None, None)


def test_an_eject_of_what_drains_for_a_swap_is_no_swap_any_more() -> None:
    model = life(Status.DRAINING)
    assert model.drain(MANUAL, now=NOW, has_waiting=False, in_flight=1) == []
    assert (model.stop_reason, model.stopped_for) == (MANUAL, None)


def test_a_stop_for_the_end_of_the_router_is_no_eviction() -> None:
    told = life(Status.READY).stop(StopReason.SHUTDOWN, now=NOW)
    assert (moves(told), of(Evicted, told)) == ([Status.STOPPING], [])


def test_nothing_is_stopped_twice() -> None:
    model = life(Status.READY)
    model.stop(MANUAL, now=NOW)
    assert model.stop(MANUAL, now=NOW) == []
    assert life().stop(MANUAL, now=NOW) == []


# --- without a process


def test_what_is_found_wrong_with_a_file_fails_only_a_model_without_a_process() -> None:
    told = life().check_failed(BROKEN, NOW)
    assert (moves(told), of(RejectWaiting, told)) == ([Status.FAILED], [RejectWaiting(BROKEN)])
    assert life(Status.READY).check_failed(BROKEN, NOW) == []


def test_only_what_is_off_can_be_preloaded() -> None:
    off, ready = life(), life(Status.READY)
    off.want_preload()
    ready.want_preload()
    assert (off.preload, ready.preload) == (True, False)
    off.start(NOW, is_wanted=False)
    assert not off.preload
