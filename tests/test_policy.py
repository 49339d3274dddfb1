"""Every rule of scheduling and its corners, as plain asserts on what the policy says to a picture."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from app.domain.status import Status, StopReason
from app.domain.views import NEVER_USED, MemoryNeed, ModelView, QueueHead
from app.models.restarts import backoff_s
from app.scheduling.actions import NEVER, GiveUp, Inspect, Limits, Load, Plan, Refuse, Resume, Stop, Wait
from app.scheduling.capacity_refusals import RETRY_WHEN_FULL_S, refusal_error
from app.scheduling.demand import LONG_LOAD_S
from app.scheduling.placement import fit
from app.scheduling.policy import plan, preview
from app.scheduling.turns import Newcomer, may_be_taken_at
from app.scheduling.turns import loaded as loaded_of
from tests.decisions import changed, decide, loaded, look, only_gpu, stopped
from tests.views import (
    AGING,
    CRASHED,
    DRAINING,
    HIGH,
    HOLD,
    LIMITS,
    LOADING,
    LOW,
    NORMAL,
    NOW,
    OFF,
    READY,
    STARTING,
    STOPPING,
    gpu,
    head,
    model,
)

FAILED = Status.FAILED


def taken_at(view: ModelView, head: QueueHead, limits: Limits = LIMITS, now: float = NOW) -> float:
    (one,) = loaded_of([view])
    newcomer = Newcomer(model("newcomer", waits=head), head, [view.alias])
    return may_be_taken_at(one, newcomer, limits, now)


# --- what people are told


def test_who_waits_for_whom_is_told() -> None:
    idle, newcomer = model("a", READY), model("b", waits=head())
    assert look(idle, newcomer).waits == {"b": Wait(("a",), NOW)}
    busy = model("a", READY, waits=head(arrived=NOW - 5))
    assert look(busy, newcomer).waits == {"b": Wait(("a",), NOW + HOLD)}
    later = model("c", waits=head(arrived=NOW + 1))
    assert look(busy, newcomer, later).waits == {"b": Wait(("a",), NOW + HOLD), "c": Wait()}
    assert look(newcomer, free=10_000).waits == {}


# --- what is done ahead, and who may be granted a slot meanwhile


def test_only_what_may_be_loaded_soon_is_inspected() -> None:
    assert decide(model("a", need=None), model("b", READY, need=None), model("c", STOPPING, need=None)) == []
    assert decide(model("a", preload=True, need=None)) == [Inspect("a")]
    assert decide(crashed("a", need=None, retry_at=NOW + 5)) == [Inspect("a")]


def test_a_crashed_model_that_is_given_up_is_not_inspected() -> None:
    given_up = crashed("a", need=None, idle_timeout_s=10.0, last_used=NOW - 10)
    assert [type(action) for action in decide(given_up)] == [GiveUp]


def test_the_files_of_the_next_in_turn_are_read_ahead_while_others_have_to_go() -> None:
    busy = model("a", READY, in_flight=1)
    later, sooner = model("b", waits=head()), model("c", waits=head(arrived=NOW - 1))
    assert look(busy, later, sooner).read_ahead == "c"
    assert look(busy, model("a2", STOPPING), later).read_ahead is None  # its room comes by itself
    assert look(later, free=10_000).read_ahead is None


def test_slots_are_contended_while_somebody_waits_without_room() -> None:
    busy, waits = model("a", READY, in_flight=1, waits=head()), model("b", waits=head())
    assert not look(busy).contended
    assert look(busy, waits).contended
    assert look(busy, model("b", FAILED, waits=head())).contended  # a replay, until it is told
    assert not look(waits, free=10_000).contended  # it loads
    assert not look(model("b", LOADING, waits=head())).contended


def test_slots_are_contended_by_those_whose_model_is_stopped_now() -> None:
    victim = model("a", READY, waits=head(arrived=NOW - 50))
    urgent = model("b", waits=head(arrived=NOW - 100))
    assert stopped(decide(victim, urgent)) == ["a"]
    assert look(victim, urgent).contended
    kept = model("a", DRAINING, waits=head(), stop_reason=StopReason.MEMORY)
    assert look(kept) == Plan((Resume("a"),))


def test_slots_are_not_contended_by_those_who_are_refused() -> None:
    assert not look(model("a", mb=20_000, waits=head())).contended


# --- loading into free room


@pytest.mark.parametrize("status", [STARTING, LOADING])
def test_who_waits_for_a_long_load_does_not_ask_for_anything_meanwhile(status: Status) -> None:
    rare, waits = model("a", READY), model("c", mb=5000, waits=head())
    loads = model("b", status, waits=head(), reload_s=LONG_LOAD_S)
    assert look(rare, loads, waits).held_up == {"b", "c"}
    assert look(rare, replace(loads, reload_s=LONG_LOAD_S - 0.1), waits).held_up == {"c"}
    assert look(rare, replace(loads, head=None), waits).held_up == {"c"}
    assert look(rare, replace(loads, status=READY)).held_up == set()


def test_a_waiting_request_loads_its_model() -> None:
    assert decide(model("a", waits=head()), free=10_000) == [Load("a", {"0": 6000})]


def test_nothing_waits_so_nothing_happens() -> None:
    assert look(model("a"), model("b", READY), free=4000) == Plan(())


def test_a_model_whose_file_has_not_been_read_is_not_loaded_yet() -> None:
    assert decide(model("a", waits=head(), need=None), free=10_000) == [Inspect("a")]


def test_a_model_that_stops_is_not_loaded_before_it_is_gone() -> None:
    assert decide(model("a", STOPPING, waits=head()), free=10_000) == []


def test_two_loads_in_one_step_share_the_room() -> None:
    actions = decide(model("a", waits=head()), model("b", waits=head(arrived=NOW - 1)), free=10_000)
    assert actions == [Load("b", {"0": 6000})]


def test_the_kept_free_memory_is_kept_free() -> None:
    device = gpu(6400, min_free_mb=500)
    assert plan([model("a", waits=head())], [device], LIMITS, NOW).actions != (Load("a", {"0": 6000}),)


def test_a_model_on_the_cpu_needs_no_room_on_a_device() -> None:
    assert decide(model("a", mb=0, waits=head()), free=0) == [Load("a", {})]


def test_a_smaller_model_does_not_take_what_the_first_in_turn_waits_for() -> None:
    first = model("first", waits=head(arrived=NOW - 1))
    holder = model("holder", READY, in_flight=1, ready_since=NOW - 5)
    small = model("small", mb=3000, waits=head())
    assert decide(first, holder, small, free=4000) == []


def test_a_smaller_model_may_have_what_the_first_in_turn_leaves() -> None:
    first = model("first", mb=5000, waits=head(arrived=NOW - 1))
    small = model("small", mb=3000, waits=head())
    assert loaded(decide(first, small, free=9000)) == ["first", "small"]


# --- order of candidates


def test_candidates_are_served_in_order_of_arrival() -> None:
    a, b = model("a", waits=head(arrived=NOW)), model("b", waits=head(arrived=NOW - 1))
    assert loaded(decide(a, b, free=10_000)) == ["b"]


def test_a_higher_priority_goes_first() -> None:
    a, b = model("a", waits=head(HIGH)), model("b", waits=head(NORMAL, NOW - AGING + 1))
    assert loaded(decide(a, b, free=10_000)) == ["a"]


def test_waiting_raises_a_request_by_one_level_each_aging_time() -> None:
    a, b = model("a", waits=head(HIGH)), model("b", waits=head(LOW, NOW - 2 * AGING - 1))
    assert loaded(decide(a, b, free=10_000)) == ["b"]


def test_equal_keys_go_by_arrival() -> None:
    a, b = (model(x, waits=QueueHead(NOW, HIGH, NOW, order)) for x, order in (("a", 2), ("b", 1)))
    assert loaded(decide(a, b, free=10_000)) == ["b"]


def test_who_gave_way_queues_behind_those_that_waited_meanwhile() -> None:
    backlog = model("backlog", waits=head(arrived=NOW - 100), preempted_at=NOW - 5)
    other = model("other", waits=head(arrived=NOW - 6))
    assert loaded(decide(backlog, other, free=10_000)) == ["other"]
    assert loaded(decide(replace(backlog, preempted_at=NEVER_USED), other, free=10_000)) == ["backlog"]


def test_having_given_way_does_not_put_later_requests_back() -> None:
    late = model("late", waits=head(arrived=NOW - 1), preempted_at=NOW - 50)
    other = model("other", waits=head(arrived=NOW))
    assert loaded(decide(late, other, free=10_000)) == ["late"]


# --- victims


def test_an_idle_model_goes_at_once() -> None:
    assert decide(model("a", READY), model("b", waits=head())) == [Stop("a", StopReason.MEMORY, "b")]


def test_an_idle_model_goes_before_a_busy_one() -> None:
    idle = model("idle", READY, mb=3000, last_used=NOW - 1)
    busy = model("busy", READY, mb=3000, in_flight=1, last_used=NOW - 500)
    wants = model("wants", mb=3000, waits=head(HIGH))
    assert stopped(decide(idle, busy, wants, free=0)) == ["idle"]


def test_of_idle_models_the_longest_unused_goes() -> None:
    models = [model(f"m{age}", READY, mb=3000, last_used=NOW - age) for age in (10, 30, 20)]
    assert stopped(decide(*models, model("wants", mb=3000, waits=head()), free=0)) == ["m30"]


def test_of_equally_unused_models_the_quickest_to_load_goes() -> None:
    slow, quick = (model(x, READY, mb=3000, reload_s=s) for x, s in (("slow", 60), ("quick", 2)))
    assert stopped(decide(slow, quick, model("wants", mb=3000, waits=head()), free=0)) == ["quick"]


def test_of_busy_models_the_one_with_fewer_waiting_requests_goes() -> None:
    old = head(arrived=NOW - 20)
    many = model("many", READY, mb=3000, in_flight=1, waits=old, waiting_by_level=(0, 9, 0))
    few = model("few", READY, mb=3000, in_flight=1, waits=old)
    wants = model("wants", mb=3000, waits=head(arrived=NOW - 15))
    assert stopped(decide(many, few, wants, free=0)) == ["few"]


def test_of_busy_models_the_one_with_less_important_requests_goes() -> None:
    normal = model("normal", READY, mb=3000, waits=head(NORMAL))
    low = model("low", READY, mb=3000, waits=head(LOW))
    assert stopped(decide(normal, low, model("wants", mb=3000, waits=head(HIGH)), free=0)) == ["low"]


def test_a_pinned_model_is_never_a_victim() -> None:
    actions = decide(model("a", READY, pinned=True), model("b", waits=head(HIGH, NOW - 500)))
    assert stopped(actions) == []


def test_only_as_many_go_as_are_needed() -> None:
    small = model("small", READY, mb=2000, last_used=NOW - 500)
    large = model("large", READY, mb=7000, last_used=NOW - 1)
    assert stopped(decide(small, large, model("wants", mb=7000, waits=head()), free=0)) == ["large"]


def test_several_go_when_one_is_not_enough() -> None:
    models = [model(x, READY, mb=3000) for x in "abc"]
    assert stopped(decide(*models, model("wants", mb=6000, waits=head()), free=1000)) == ["a", "b"]


def test_nobody_is_unloaded_when_it_would_not_help() -> None:
    models = [model("pinned", READY, mb=5000, pinned=True), model("idle", READY, mb=3000)]
    actions = decide(*models, model("wants", waits=head()), free=2000)
    assert stopped(actions) == []


def test_a_model_without_memory_on_the_wanted_device_is_no_victim() -> None:
    elsewhere = model("elsewhere", READY, on="1", last_used=NOW - 900)
    here = model("here", READY, on="0")
    actions = plan([elsewhere, here, model("wants", waits=head())], [gpu(0), gpu(0, "1")], LIMITS, NOW)
    assert stopped(list(actions.actions)) == ["here"]


def test_two_candidates_do_not_share_a_victim() -> None:
    models = [model("a", READY), model("b", waits=head()), model("c", waits=head(arrived=NOW - 1))]
    assert decide(*models) == [Stop("a", StopReason.MEMORY, "c")]


def test_two_candidates_share_a_victim_that_is_large_enough_for_both() -> None:
    models = [model("a", READY, mb=8000), *(model(x, mb=4000, waits=head()) for x in "bc")]
    assert decide(*models, free=0) == [Stop("a", StopReason.MEMORY, "b")]
    assert decide(changed(models[0], STOPPING), *models[1:], free=0) == []


# --- places


def test_a_full_count_evicts_although_there_is_memory() -> None:
    two = replace(LIMITS, max_models=2)
    models = [model("a", READY, mb=100, last_used=NOW - 9), model("b", READY, mb=100, last_used=NOW - 8)]
    actions = decide(*models, model("c", mb=100, waits=head()), free=9800, limits=two)
    assert actions == [Stop("a", StopReason.COUNT, "c")]


def test_lack_of_memory_is_not_called_lack_of_places() -> None:
    one = replace(LIMITS, max_models=1)
    actions = decide(model("a", READY), model("b", waits=head()), limits=one)
    assert actions == [Stop("a", StopReason.MEMORY, "b")]


def test_one_victim_is_enough_for_the_count_however_small_it_is() -> None:
    models = [model("a", READY, mb=10, last_used=NOW - 99), model("b", READY, mb=10)]
    limits = replace(LIMITS, max_models=2)
    assert stopped(decide(*models, model("c", mb=10, waits=head()), free=9000, limits=limits)) == ["a"]


def test_a_model_that_loads_counts_as_a_place() -> None:
    one = replace(LIMITS, max_models=1)
    busy_loading = model("a", LOADING, mb=10, waits=head())
    assert decide(busy_loading, model("b", mb=10, waits=head()), free=9000, limits=one) == []


# --- refusals


def test_what_can_never_fit_is_refused_with_the_numbers_and_evicts_nobody() -> None:
    actions = decide(model("a", READY), model("huge", mb=20_000, waits=head(HIGH)))
    assert actions == [Refuse("huge", by_count=False, need_mb=20_000, available_mb=10_000, ever=False)]


def test_before_any_device_was_read_nothing_is_said_to_never_fit() -> None:
    """A driver may take long when it is asked first, as NVIDIA's does without its persistence mode."""
    (refusal,) = plan([model("a", waits=head())], [], LIMITS, NOW).actions
    assert isinstance(refusal, Refuse)
    error = refusal_error(refusal, LIMITS.max_models, [])
    assert (error.status, error.retry_after_s) == (503, RETRY_WHEN_FULL_S)
    assert "no device's memory has been read yet" in str(error)


def test_memory_on_its_way_back_is_no_reason_to_evict_for_what_can_never_fit() -> None:
    """The driver shows it late, and by then it may have been given to the next model."""
    device = gpu(4000, reclaiming_mb=6000)
    found = plan([model("a", READY), model("huge", mb=11_000, waits=head(HIGH))], [device], LIMITS, NOW)
    assert [type(action) for action in found.actions] == [Refuse]


def test_what_pinned_models_leave_no_room_for_is_refused_for_now() -> None:
    actions = decide(model("a", READY, pinned=True), model("b", waits=head()))
    assert actions == [Refuse("b", by_count=False, need_mb=6000, available_mb=4000, ever=True)]


def test_what_other_programs_leave_no_room_for_is_refused_for_now() -> None:
    refusal = Refuse("b", False, 6000, 5000, ever=True, by_others=True, arrived_by=NOW)
    assert decide(model("b", waits=head()), free=5000) == [refusal]


def test_places_taken_by_pinned_models_are_a_refusal_by_count() -> None:
    one = replace(LIMITS, max_models=1)
    actions = decide(model("a", READY, mb=10, pinned=True), model("b", waits=head()), free=9990, limits=one)
    assert actions == [Refuse("b", by_count=True, need_mb=6000, available_mb=9990, ever=True)]


def test_a_pinned_model_that_is_leaving_is_no_reason_to_refuse() -> None:
    ejected = model("a", DRAINING, pinned=True, in_flight=1, stop_reason=StopReason.MANUAL)
    assert decide(ejected, model("b", waits=head())) == []


def test_nothing_is_refused_while_a_busy_model_could_make_room() -> None:
    assert decide(model("a", READY, in_flight=1), model("b", waits=head())) == []


# --- the hold of a busy model


def test_a_model_with_waiting_requests_holds_the_newcomer_back_for_a_while() -> None:
    busy = model("a", READY, in_flight=1, waits=head(arrived=NOW - 3), ready_since=NOW - 60)
    newcomer = model("b", waits=head(arrived=NOW - 2))
    found = look(busy, newcomer)
    assert (found.actions, found.wake_at) == ((), NOW - 2 + HOLD)
    assert stopped(decide(busy, newcomer, now=NOW - 2 + HOLD)) == ["a"]


def test_the_hold_runs_from_when_the_model_was_ready() -> None:
    busy = model("a", READY, in_flight=1, waits=head(arrived=NOW - 90), ready_since=NOW - 4)
    assert taken_at(busy, head(arrived=NOW - 80)) == NOW - 4 + HOLD


def test_the_hold_ends_even_for_a_long_queue_with_smaller_keys() -> None:
    busy = model("a", READY, in_flight=1, waits=head(arrived=NOW - 900), ready_since=NOW - 20)
    assert taken_at(busy, head(arrived=NOW - HOLD)) == NOW


def test_a_model_that_only_runs_requests_holds_the_newcomer_back_as_well() -> None:
    busy = model("a", READY, in_flight=1)
    assert taken_at(busy, head()) == NOW + HOLD


def test_a_higher_priority_does_not_wait_for_the_queue() -> None:
    busy = model("a", READY, in_flight=1, waits=head(), ready_since=NOW - 1)
    assert taken_at(busy, head(HIGH)) == NOW


def test_a_higher_priority_waits_for_the_running_requests() -> None:
    busy = model("a", READY, in_flight=1, waits=head())
    urgent = model("b", waits=head(HIGH))
    assert decide(busy, urgent) == [Stop("a", StopReason.MEMORY, "b")]  # that drains it
    draining = changed(busy, DRAINING, stop_reason=StopReason.MEMORY)
    assert decide(draining, urgent) == []


def test_a_higher_priority_waits_for_a_request_that_has_aged_past_it() -> None:
    busy = model("a", READY, in_flight=1, waits=head(NORMAL, NOW - AGING - 1), ready_since=NOW - 2)
    assert taken_at(busy, head(HIGH)) == NOW + HOLD


def test_a_lower_priority_waits_until_its_turn_has_come() -> None:
    busy = model("a", READY, in_flight=1, waits=head(NORMAL))
    assert taken_at(busy, head(LOW, NOW - AGING + 1)) == NEVER
    assert taken_at(busy, head(LOW, NOW - AGING - 1)) == NOW


def test_a_lower_priority_ages_past_traffic_that_never_queues() -> None:
    busy = model("a", READY, in_flight=1, best_in_flight=HIGH)
    assert taken_at(busy, head(LOW)) == NOW + 2 * AGING
    assert taken_at(busy, head(LOW, NOW - 2 * AGING)) == NOW


def test_without_affinity_a_newcomer_waits_for_running_requests_only() -> None:
    busy = model("a", READY, in_flight=1, waits=head(arrived=NOW - 5))
    assert taken_at(busy, head(), replace(LIMITS, max_swap_wait_s=0)) == NOW


def test_what_is_leaving_cannot_be_taken() -> None:
    assert taken_at(model("a", STOPPING), head(HIGH)) == NEVER


def test_the_later_the_victims_the_later_the_swap() -> None:
    a = model("a", READY, mb=3000, in_flight=1, ready_since=NOW - 4)
    b = model("b", READY, mb=3000, in_flight=1, ready_since=NOW - 2)
    found = look(a, b, model("c", waits=head(arrived=NOW - 9)), free=0)
    assert (found.actions, found.wake_at) == ((), NOW - 2 + HOLD)


def test_nobody_goes_before_all_victims_may() -> None:
    idle = model("idle", READY, mb=3000)
    busy = model("busy", READY, mb=3000, in_flight=1, ready_since=NOW)
    assert decide(idle, busy, model("c", waits=head()), free=0) == []


def test_nobody_goes_for_room_that_only_a_later_swap_will_leave() -> None:
    """`first` will have `large` when its hold ends; what that leaves over helps `second` only then."""
    large = model("large", READY, mb=7000, in_flight=1, ready_since=NOW)
    idle = model("idle", READY, mb=2000)
    first, second = (
        model("first", mb=3000, waits=head(arrived=NOW - 1)),
        model("second", waits=head(HIGH, NOW)),
    )
    first = replace(first, waiting_by_level=(1, 0, 0), head=head(HIGH, NOW - 1))
    large = changed(large, best_in_flight=HIGH)
    found = look(large, idle, first, second, free=500)
    assert (found.actions, found.wake_at) == ((), NOW + HOLD)
    assert stopped(decide(large, idle, first, second, free=500, now=NOW + HOLD)) == ["large", "idle"]


# --- minimum service


@pytest.mark.parametrize("status", [STARTING, LOADING])
def test_a_model_that_loads_for_somebody_is_no_victim(status: Status) -> None:
    assert decide(model("a", status, waits=head()), model("b", waits=head(HIGH, NOW - 500))) == []


def test_a_model_serves_one_request_before_it_is_a_victim() -> None:
    fresh = model("a", READY, waits=head(), served=0)
    assert taken_at(fresh, head(HIGH, NOW - 500)) == NEVER
    assert taken_at(changed(fresh, served=1), head(HIGH, NOW - 500)) == NOW


def test_a_load_that_nobody_waits_for_goes_on() -> None:
    assert decide(model("a", LOADING)) == []


def test_a_load_that_nobody_waits_for_is_abandoned_when_its_memory_is_wanted() -> None:
    assert stopped(decide(model("a", LOADING), model("b", waits=head(LOW)))) == ["a"]


def test_a_large_model_is_not_kept_out_by_small_ones_that_load_in_turns() -> None:
    """Each of them in turn is loading for somebody when the large one looks for victims."""
    large = model("large", mb=9000, waits=head(arrived=NOW - 50))
    loads = model("loads", LOADING, mb=4500, waits=head(arrived=NOW - 60))
    idle = model("idle", READY, mb=4500)
    small = model("small", mb=4500, waits=head())
    assert decide(large, loads, idle, small, free=1000) == []
    assert decide(large, loads, model("gone", mb=4500), small, free=5500) == []


def test_who_is_not_in_turn_yet_does_not_reserve_what_loads() -> None:
    low = model("low", mb=9000, waits=head(LOW))
    loads = model("loads", LOADING, mb=4500, waits=head())
    small = model("small", mb=4500, waits=head(LOW, NOW + 1))
    assert loaded(decide(low, loads, small, free=5500)) == ["small"]


# --- what drains


def draining(alias: str, **rest: Any) -> ModelView:
    return model(alias, DRAINING, in_flight=1, stop_reason=StopReason.MEMORY, **rest)


def test_a_draining_model_serves_again_when_nobody_claims_it_any_more() -> None:
    assert decide(draining("a")) == [Resume("a")]


def test_a_draining_model_is_not_told_again() -> None:
    assert decide(draining("a"), model("b", waits=head(HIGH))) == []


def test_a_model_that_drains_for_another_reason_is_not_resumed() -> None:
    ejected = model("a", DRAINING, in_flight=1, stop_reason=StopReason.MANUAL)
    assert decide(ejected) == []


def test_a_draining_model_keeps_draining_when_it_gets_requests_of_its_own() -> None:
    """Else two models that are both wanted would never let go of each other."""
    claimant = model("b", waits=head(arrived=NOW - HOLD))
    for late in (head(NORMAL), head(LOW)):
        assert decide(draining("a", waits=late), claimant) == []


def test_a_draining_model_returns_to_requests_whose_turn_is_earlier() -> None:
    low = model("b", waits=head(LOW, NOW - AGING))
    assert decide(draining("a", waits=head(HIGH)), low) == [Resume("a")]


def test_the_draining_victim_is_preferred_to_a_new_one() -> None:
    fresh = model("fresh", READY, last_used=NOW - 900)
    assert (
        decide(draining("a", mb=4000), changed(fresh, reserved={"0": 4000}), model("b", waits=head(HIGH)))
        == []
    )


def test_memory_that_is_on_its_way_back_is_waited_for() -> None:
    wants, idle = model("wants", waits=head()), model("idle", READY, mb=3000)
    leaving = model("leaving", STOPPING, mb=3000)
    assert decide(leaving, idle, wants, free=4000) == []
    waits = {"wants": Wait((), NOW)}
    assert plan([idle, wants], [gpu(4000, reclaiming_mb=2000)], LIMITS, NOW) == Plan(
        (), waits=waits, contended=frozenset({"wants"}), held_up=frozenset({"wants"})
    )


def test_memory_that_is_on_its_way_back_is_promised_once() -> None:
    leaving = model("leaving", STOPPING)
    a, b = model("a", waits=head(arrived=NOW - 1)), model("b", mb=3000, waits=head())
    assert decide(leaving, a, b, model("idle", READY, mb=3000), free=1000) == [
        Stop("idle", StopReason.MEMORY, "b")
    ]


def test_a_model_that_was_evicted_with_requests_waiting_gets_its_turn_back() -> None:
    """Two backlogs with room for one: each has the memory for the hold, then for the other's."""
    a = model("a", READY, in_flight=1, waits=head(arrived=NOW - 100), ready_since=NOW)
    b = model("b", waits=head(arrived=NOW - 100))
    end = NOW + HOLD
    assert decide(a, b, now=end - 1) == []
    assert stopped(decide(a, b, now=end)) == ["a"]
    a = model("a", STOPPING, waits=head(arrived=NOW - 99), preempted_at=end)
    assert decide(a, b, now=end + 1) == []
    a = changed(a, OFF)
    assert loaded(decide(a, b, free=10_000, now=end + 1)) == ["b"]
    b = model("b", READY, in_flight=1, waits=head(arrived=NOW - 99), ready_since=end + 2)
    assert decide(a, b, now=end + 1 + HOLD) == []
    assert stopped(decide(a, b, now=end + 2 + HOLD)) == ["b"]


def test_three_backlogs_take_turns() -> None:
    a = model("a", waits=head(arrived=NOW - 100), preempted_at=NOW - 20)
    b = model("b", waits=head(arrived=NOW - 100), preempted_at=NOW - 10)
    c = model("c", READY, in_flight=1, waits=head(arrived=NOW - 100), ready_since=NOW - HOLD)
    assert decide(a, b, c) == [Stop("c", StopReason.MEMORY, "a")]


# --- crashes


def crashed(alias: str, **rest: Any) -> ModelView:
    return model(alias, CRASHED, **{"last_used": NOW - 1, "idle_timeout_s": 300.0, **rest})


def test_a_crashed_model_waits_for_its_back_off() -> None:
    for waits in (None, head()):
        found = look(crashed("a", waits=waits, retry_at=NOW + 2), free=10_000)
        assert (found.actions, found.wake_at) == ((), NOW + 2)


def test_a_crashed_model_starts_again_by_itself() -> None:
    assert decide(crashed("a", retry_at=NOW), free=10_000) == [Load("a", {"0": 6000})]


def test_a_crashed_model_stays_off_when_its_memory_is_in_use() -> None:
    actions = decide(crashed("a"), model("b", READY))
    assert [(type(x), x.alias) for x in actions] == [(GiveUp, "a")]


def test_a_crashed_model_stays_off_when_its_memory_is_wanted() -> None:
    actions = decide(crashed("a"), model("b", waits=head(LOW)), free=10_000)
    assert [(type(x), x.alias) for x in actions] == [(Load, "b"), (GiveUp, "a")]


def test_a_crashed_model_stays_off_when_its_idle_time_has_passed() -> None:
    actions = decide(crashed("a", last_used=NOW - 300), free=10_000)
    assert [(type(x), x.alias) for x in actions] == [(GiveUp, "a")]


def test_a_preload_that_failed_is_tried_again() -> None:
    """It was never used, which is no reason to call its idle time over."""
    failed = crashed("a", last_used=NEVER_USED, since=NOW - 1)
    assert loaded(decide(failed, free=10_000)) == ["a"]


def test_a_crashed_model_with_requests_takes_its_turn() -> None:
    assert stopped(decide(crashed("a", waits=head()), model("b", READY))) == ["b"]


def test_a_crashed_model_whose_file_is_being_read_is_not_loaded_yet() -> None:
    assert decide(crashed("a", need=None), free=10_000) == [Inspect("a")]


@pytest.mark.parametrize(("crashes", "wait"), [(1, 0.5), (2, 1.0), (3, 2.0), (7, 30.0), (99, 30.0)])
def test_the_back_off_doubles_up_to_a_bound(crashes: int, wait: float) -> None:
    assert backoff_s(crashes) == wait


# --- preload


def test_a_preload_takes_free_room() -> None:
    assert decide(model("a", preload=True), free=10_000) == [Load("a", {"0": 6000})]


def test_a_preload_evicts_nobody() -> None:
    actions = decide(model("a", preload=True), model("b", READY))
    assert [(type(x), x.alias) for x in actions] == [(GiveUp, "a")]


def test_a_waiting_request_goes_before_a_preload() -> None:
    assert loaded(decide(model("a", preload=True), model("b", waits=head(LOW)), free=10_000)) == ["b"]


def test_preloads_keep_their_order_while_a_file_is_being_read() -> None:
    first, second = model("a", preload=True, need=None), model("b", preload=True)
    assert decide(first, second, free=10_000) == [Inspect("a")]


# --- idle unloading


def test_an_idle_model_is_unloaded_after_its_time() -> None:
    idle = model("a", READY, idle_timeout_s=300.0, last_used=NOW - 300)
    assert decide(idle) == [Stop("a", StopReason.IDLE)]


def test_an_idle_model_is_looked_at_again_when_its_time_is_over() -> None:
    found = look(model("a", READY, idle_timeout_s=300.0, last_used=NOW - 100))
    assert (found.actions, found.wake_at) == ((), NOW + 200)


def test_a_busy_model_is_not_idle_however_long_its_request_runs() -> None:
    assert decide(model("a", READY, in_flight=1, idle_timeout_s=300.0, last_used=NOW - 5000)) == []
    assert decide(model("a", READY, waits=head(), idle_timeout_s=300.0, last_used=NOW - 5000)) == []


def test_a_pinned_model_is_not_unloaded() -> None:
    assert look(model("a", READY, pinned=True, idle_timeout_s=300.0, last_used=NOW - 900)) == Plan(())


def test_an_idle_model_that_another_waits_for_does_not_keep_the_loop_awake() -> None:
    """Its idle time is over, but it goes only together with a busy model, later."""
    idle = model("idle", READY, mb=3000, idle_timeout_s=300.0, last_used=NOW - 900)
    busy = model("busy", READY, mb=3000, in_flight=1, ready_since=NOW)
    assert look(idle, busy, model("c", waits=head()), free=0).wake_at > NOW


# --- devices


def test_of_equal_devices_the_freest_is_taken() -> None:
    devices = [gpu(6500), gpu(9000, "1")]
    found = plan([model("a", devices=("0", "1"), waits=head())], devices, LIMITS, NOW)
    assert found.actions == (Load("a", {"1": 6000}),)


def test_a_larger_device_is_kept_for_what_needs_it() -> None:
    devices = [gpu(24_000, total_mb=24_000), gpu(8000, "1", total_mb=8000)]
    small, large = (
        model("a", devices=("0", "1"), waits=head()),
        model("b", mb=20_000, devices=("0", "1"), waits=head()),
    )
    found = plan([small, large], devices, LIMITS, NOW)
    assert found.actions == (Load("a", {"1": 6000}), Load("b", {"0": 20_000}))


def test_a_model_goes_only_where_it_may() -> None:
    devices = [gpu(9000), gpu(6500, "1")]
    found = plan([model("a", devices=("0",), waits=head())], devices, LIMITS, NOW)
    assert found.actions == (Load("a", {"0": 6000}),)


def test_a_large_model_is_split_in_proportion_to_what_is_free() -> None:
    need = MemoryNeed(12_000, ("0", "1"), overhead_mb=0)
    found = plan([model("a", need=need, waits=head())], [gpu(10_000), gpu(5000, "1")], LIMITS, NOW)
    assert found.actions == (Load("a", {"0": 8000, "1": 4000}),)


def test_each_device_of_a_split_model_has_its_overhead() -> None:
    need = MemoryNeed(12_000, ("0", "1"), overhead_mb=1000)
    found = plan([model("a", need=need, waits=head())], [gpu(10_000), gpu(5000, "1")], LIMITS, NOW)
    (action,) = found.actions
    assert isinstance(action, Load)
    assert sum(action.placement.values()) == pytest.approx(13_000, abs=2)


def test_a_split_takes_as_few_devices_as_possible() -> None:
    need = MemoryNeed(12_000, ("0", "1", "2"))
    devices = [gpu(5000), gpu(9000, "1"), gpu(9000, "2")]
    (action,) = plan([model("a", need=need, waits=head())], devices, LIMITS, NOW).actions
    assert isinstance(action, Load)
    assert set(action.placement) == {"1", "2"}


def test_victims_on_several_devices_make_room_for_a_split_model() -> None:
    need = MemoryNeed(12_000, ("0", "1"))
    models = [model("a", READY, on="0"), model("b", READY, on="1"), model("wants", need=need, waits=head())]
    actions = list(plan(models, [gpu(1000), gpu(1000, "1")], LIMITS, NOW).actions)
    assert stopped(actions) == ["a", "b"]


def test_a_model_for_a_device_that_is_not_there_is_refused() -> None:
    assert decide(model("a", devices=("7",), waits=head())) == [Refuse("a", False, 6000, 0, ever=False)]


def test_a_device_that_other_programs_have_overfilled_takes_nothing() -> None:
    devices = [gpu(-2000), gpu(7000, "1")]
    found = plan([model("a", devices=("0", "1"), waits=head())], devices, LIMITS, NOW)
    assert found.actions == (Load("a", {"1": 6000}),)


def test_fit_knows_no_fraction_of_a_place() -> None:
    from app.scheduling.placement import Capacity

    assert fit(MemoryNeed(1, ("0",)), Capacity({"0": 10}, 0)) is None
    assert fit(MemoryNeed(0, ()), Capacity({}, 1)) == {}


# --- preview


def ask(*models: ModelView, free: int = 4000, alias: str = "asked") -> Any:
    return preview(models, [only_gpu(models, free)], LIMITS, NOW, alias)


def test_a_preview_names_the_victims_and_changes_nothing() -> None:
    found = ask(model("asked"), model("idle", READY))
    assert (found.fits, found.victims, found.placement, found.wait_s) == (True, ("idle",), {"0": 6000}, 0.0)


def test_a_preview_says_how_long_a_busy_model_may_hold_it_back() -> None:
    found = ask(model("asked"), model("busy", READY, in_flight=1))
    assert (found.fits, found.victims, found.wait_s) == (True, ("busy",), HOLD)


def test_a_preview_of_what_cannot_be_had_says_why() -> None:
    found = ask(model("asked", mb=20_000), model("idle", READY))
    assert not found.fits
    assert found.refusal == Refuse("asked", False, 20_000, 10_000, ever=False)


def test_a_preview_is_a_number_while_another_model_loads() -> None:
    found = ask(model("asked"), model("loads", LOADING, waits=head(arrived=NOW - 1)))
    assert (found.fits, found.wait_s) == (True, HOLD)


def test_a_preview_of_a_model_that_is_leaving_counts_its_own_memory() -> None:
    found = ask(model("asked", STOPPING), model("idle", READY, mb=3000), free=1000)
    assert (found.fits, found.victims, found.placement) == (True, (), {"0": 6000})


# --- no flip-flop


def test_the_same_picture_gives_the_same_plan() -> None:
    models = [model("a", READY, in_flight=1), model("b", waits=head()), model("c", READY, mb=100)]
    assert look(*models) == look(*models)


def test_a_plan_is_stable_once_carried_out() -> None:
    """The step after a Stop neither takes it back nor names another victim."""
    victims = [model(x, READY, mb=3000, in_flight=1, waits=head(), last_used=NOW - 9) for x in "ab"]
    urgent = model("c", mb=3000, waits=head(HIGH))
    (stop,) = decide(*victims, urgent, free=0)
    told = [
        changed(v, DRAINING, stop_reason=StopReason.MEMORY) if v.alias == stop.alias else v for v in victims
    ]
    assert decide(*told, urgent, free=0) == []
