"""A swap is weighed: who is kept for whom, and for how long."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from app.domain.priority import Priority
from app.domain.views import ModelView
from app.scheduling.policy import preview
from tests.decisions import changed, decide, look, stopped
from tests.views import HIGH, HOLD, LIMITS, LOADING, LOW, NORMAL, NOW, READY, gpu, head, model

AUTO = replace(LIMITS, max_swap_wait_s=None)


def asked(per_s: float) -> dict[str, Any]:
    """Of a model that is asked for that often while others wait, all with normal priority."""
    return {"asked_per_s": (0.0, per_s, 0.0), "popularity": per_s, "service_s": 1.0}


def waits_since(alias: str, seconds: float, count: int = 1, level: Priority = NORMAL) -> ModelView:
    """A newcomer of which a swap takes 4 s."""
    view = model(alias, waits=head(level, NOW - seconds), reload_s=3.0, service_s=1.0)
    high, normal, low = (count if p is level else 0 for p in Priority)
    return replace(view, waiting_by_level=(high, normal, low))


def test_an_idle_model_goes_at_once_if_more_wait_than_would_miss_it() -> None:
    idle = model("a", READY, reload_s=3.0, **asked(0.3))  # in 2 x 4 s: 2.4
    assert stopped(decide(idle, waits_since("b", 0, count=3))) == ["a"]
    assert stopped(decide(idle, waits_since("b", 0, count=2))) == []


def test_an_idle_model_that_is_missed_least_is_kept_for_less_than_a_swap() -> None:
    idle = model("a", READY, reload_s=3.0, **asked(1.0))
    held = look(idle, waits_since("b", 1))
    assert held.actions == ()
    assert held.wake_at == NOW - 1 + 0.9 * 4
    assert stopped(decide(idle, waits_since("b", 3.7))) == ["a"]


def two_loaded(popular: float = 1.2, rare: float = 0.3, **of_rare: Any) -> tuple[ModelView, ModelView]:
    """On a device of 13,000 MB; the one that is missed least is the second."""
    return (
        model("popular", READY, reload_s=3.0, ready_since=NOW - 100, last_used=NOW - 9, **asked(popular)),
        model("rare", READY, reload_s=3.0, ready_since=NOW - 50, **{**asked(rare), **of_rare}),
    )


def test_the_victim_is_the_model_that_is_missed_least_not_the_one_unused_for_longest() -> None:
    assert stopped(decide(*two_loaded(), waits_since("b", 5), free=1000)) == ["rare"]


def test_a_popular_model_stays_while_the_rare_one_is_busy() -> None:
    popular, rare = two_loaded(in_flight=1, waits=head(arrived=NOW - 0.5))
    held = look(popular, rare, waits_since("b", 5), free=1000)
    assert held.actions == ()
    assert held.wake_at == NOW - 5 + HOLD
    assert stopped(decide(popular, rare, waits_since("b", HOLD), free=1000)) == ["rare"]
    loads = changed(rare, LOADING, served=0)
    assert stopped(decide(popular, loads, waits_since("b", HOLD), free=1000)) == ["popular"]


def test_a_model_that_will_be_fetched_back_goes_for_twice_as_many() -> None:
    popular, rare = two_loaded(0.3, 0.1, in_flight=1)  # in 2 x 4 s: 2.4, and the way back as much again
    assert stopped(decide(popular, rare, waits_since("b", 0, count=4), free=1000)) == []
    assert stopped(decide(popular, rare, waits_since("b", 0, count=5), free=1000)) == ["popular"]


def test_the_promise_to_a_newcomer_counts_from_the_last_load_of_the_others_that_take_turns() -> None:
    popular, rare = two_loaded(in_flight=1, waits=head(arrived=NOW - 0.5))
    rare = changed(rare, ready_since=NOW - 2)
    assert stopped(decide(popular, rare, waits_since("b", HOLD + 1), free=1000)) == []
    assert look(popular, rare, waits_since("b", HOLD + 1), free=1000).wake_at == NOW - 2 + HOLD


def test_a_more_urgent_request_is_not_held_back_for_less_urgent_ones_that_are_expected() -> None:
    idle = model("a", READY, reload_s=3.0, **asked(1.0))
    assert stopped(decide(idle, waits_since("b", 0, level=HIGH))) == ["a"]
    assert stopped(decide(idle, waits_since("b", 0, level=LOW))) == []


def test_without_a_hold_nothing_is_kept() -> None:
    idle = model("a", READY, reload_s=3.0, **asked(5.0))
    assert stopped(decide(idle, waits_since("b", 0), limits=replace(LIMITS, max_swap_wait_s=0))) == ["a"]


@pytest.mark.parametrize(("load_s", "promise_s"), [(1.0, 10.0), (4.0, 10.0), (10.0, 22.0)])
def test_the_promise_follows_from_what_a_swap_costs(load_s: float, promise_s: float) -> None:
    busy = model("a", READY, in_flight=1, waits=head(arrived=NOW - 1), ready_since=NOW - 500)
    newcomer = replace(waits_since("b", 1), reload_s=load_s)
    assert look(busy, newcomer, limits=AUTO).wake_at == NOW - 1 + promise_s
    assert preview([changed(busy, served=0), newcomer], [gpu(4000)], AUTO, NOW, "b").wait_s == promise_s
