"""Who would miss a model: what counts as demand for it, and how it is forgotten."""

from __future__ import annotations

import pytest

from app.domain.priority import Priority
from app.scheduling.demand import DOUBT_S, LARGEST_WEIGHT, MEMORY_S, Demand

HIGH, NORMAL, LOW = Priority.HIGH, Priority.NORMAL, Priority.LOW


def crowded(seconds: int, alias: str = "a", rival: str = "b") -> Demand:
    """A request for one model each second, while another one waits for room."""
    demand = Demand()
    demand.contended_by({rival}, {rival}, 0.0)
    for second in range(1, seconds + 1):
        demand.asked(alias, NORMAL, float(second))
    return demand


def test_what_nobody_asks_for_is_not_missed() -> None:
    assert Demand().per_s("a") == (0, 0, 0)
    assert Demand().popularity("a") == 0


def test_requests_count_while_another_model_waits_for_room() -> None:
    demand = crowded(600)
    assert sum(demand.per_s("a")) == pytest.approx(1.0, rel=0.15)
    assert demand.popularity("a") == sum(demand.per_s("a"))


def test_whoever_uses_two_models_in_turn_competes_with_nobody() -> None:
    demand = Demand()
    for second in range(0, 600, 10):
        alias = "ab"[second // 10 % 2]
        demand.asked(alias, NORMAL, float(second))
        demand.contended_by({alias}, {alias}, float(second))
        demand.contended_by((), (), second + 5.0)
    assert demand.per_s("a") == demand.per_s("b") == (0, 0, 0)


def test_a_burst_for_one_model_is_no_reason_to_keep_it_but_makes_it_popular() -> None:
    demand = Demand()
    demand.contended_by({"a"}, {"a"}, 0.0)
    for _ in range(10):
        demand.asked("a", NORMAL, 1.0)
    assert demand.per_s("a") == (0, 0, 0)
    assert demand.popularity("a") > 0


def test_demand_is_known_by_level() -> None:
    demand = crowded(100)
    demand.asked("a", HIGH, 101.0)
    demand.asked("a", LOW, 102.0)
    high, normal, low = demand.per_s("a")
    assert normal > 10 * low > 0
    assert normal > 10 * high > 0


def test_nobody_is_popular_after_one_request() -> None:
    demand = crowded(1)
    assert sum(demand.per_s("a")) < 1 / DOUBT_S


def test_the_time_for_which_its_own_requests_wait_does_not_count_against_it() -> None:
    loaded, waits = crowded(300, "a", "b"), Demand()
    waits.contended_by({"a", "b"}, {"a", "b"}, 0.0)
    for second in range(1, 301):
        if second % 10 == 5:
            waits.contended_by({"b"}, {"b"}, float(second))
        elif second % 10 == 0:
            waits.contended_by({"a", "b"}, {"a", "b"}, float(second))
        if second % 2:
            waits.asked("a", NORMAL, float(second))
    assert waits.popularity("a") == pytest.approx(loaded.popularity("a"), rel=0.25)


def test_nor_does_the_time_of_a_long_load() -> None:
    loads_long, loads = Demand(), Demand()
    for demand, held_up in ((loads_long, {"a", "b"}), (loads, {"b"})):
        for second in range(1, 301):
            is_loading = second % 20 < 10
            demand.contended_by({"b"}, held_up if is_loading else {"b"}, float(second))
            if not is_loading:
                demand.asked("a", NORMAL, float(second))
    assert loads.popularity("a") == pytest.approx(0.5, rel=0.2)
    assert loads_long.popularity("a") == pytest.approx(1.0, rel=0.2)
    assert sum(loads_long.per_s("a")) == loads_long.popularity("a")


def test_what_was_long_ago_is_forgotten() -> None:
    demand = crowded(300)
    before = demand.popularity("a")
    demand.contended_by((), (), 300.0)
    demand.asked("c", NORMAL, 300.0 + 10 * MEMORY_S)
    assert demand.popularity("a") < before / 100


def test_rates_change_at_arrivals_only() -> None:
    demand = crowded(60)
    before = demand.per_s("a")
    demand.contended_by((), (), 90.0)
    demand.contended_by({"b"}, {"b"}, 120.0)
    assert demand.per_s("a") == before


def test_weights_do_not_grow_without_end() -> None:
    demand = crowded(60)
    demand.contended_by((), (), 60.0)
    for hours in range(1, 1000):
        demand.asked("c", NORMAL, hours * 3600.0)
    demand.contended_by({"b"}, {"b"}, 3.6e6)
    for second in range(1, 601):
        demand.asked("a", NORMAL, 3.6e6 + second)
    assert sum(demand.per_s("a")) == pytest.approx(1.0, rel=0.15)
    assert demand._weight(3.6e6 + 600) <= LARGEST_WEIGHT


def test_a_model_that_is_no_more_is_forgotten() -> None:
    demand = crowded(60)
    demand.forget(["a", "never seen"])
    assert demand.per_s("a") == (0, 0, 0)
