"""What people feel in front of the scheduler, by the simulator's figures."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from app.domain.priority import Priority
from bench.crowd import AUTO, WAYS, Crowd, Evening, Thinking, Way, play
from bench.other_routers import FirstComeWorld, FixedSetsWorld, LruWorld
from bench.world import Code, Request, World
from tests.mutations import POLICY, SWAPS, Mutation, mutated

MINUTES = 60.0
THREE = Crowd({"a": 6, "b": 4, "c": 2}, (3.0,))
OURS = Way("ours", World)
IN_THE_BEST_ORDER = Way("fixed sets", FixedSetsWorld)


def evening(crowd: Crowd = THREE, way: Way = OURS, seed: int = 1, code: Code | None = None) -> Evening:
    return play(crowd, way, 10 * MINUTES, seed, code)


def test_the_same_seed_gives_the_same_evening() -> None:
    assert evening().questions == evening().questions
    assert evening().questions != evening(seed=2).questions


@pytest.mark.parametrize("load_s", [1.0, 3.0, 10.0])
def test_people_wait_no_longer_than_with_the_best_fixed_sets(load_s: float) -> None:
    crowd = replace(THREE, load_s=(load_s,))
    ours, other = evening(crowd), evening(crowd, IN_THE_BEST_ORDER)
    assert ours.quantile(0.5) <= 1.2 * other.quantile(0.5)
    assert ours.quantile(0.99) <= 1.05 * other.quantile(0.99)
    assert ours.mean <= 1.05 * other.mean
    assert ours.loads <= 1.2 * other.loads
    assert ours.lost == 0


def test_nobody_has_to_say_which_model_is_popular() -> None:
    turned = replace(THREE, users={"a": 2, "b": 4, "c": 6})
    assert evening(turned).mean < 0.6 * evening(turned, IN_THE_BEST_ORDER).mean


def test_people_wait_less_than_where_any_idle_model_goes() -> None:
    ours, other = evening(), evening(way=Way("first come", FirstComeWorld))
    assert ours.mean < 0.7 * other.mean
    assert ours.waits()[-1] < other.waits()[-1]


def test_the_popular_model_is_loaded_once_whatever_the_others_do() -> None:
    waits = evening(replace(THREE, thinking=Thinking.EVEN)).waits(lambda q: q.alias == "a" and q.asked > 120)
    assert waits[int(len(waits) * 0.95)] < 2.0


def test_urgent_questions_wait_less_than_half_as_long_as_others() -> None:
    seen = evening(replace(THREE, high=0.25))
    urgent = seen.quantile(0.95, lambda q: q.level is Priority.HIGH)
    assert urgent <= seen.quantile(0.95, lambda q: q.level is Priority.NORMAL) / 2


def test_a_single_person_who_uses_two_models_in_turn_never_waits_for_more_than_a_load() -> None:
    world = World(THREE.specs[:2], [7000], AUTO)
    waits: list[float] = []

    def ask(number: int = 0) -> None:
        request = world.arrive("ab"[number % 2], service_s=1.0)
        if number < 50:
            request.then = partial(answered, request, number)

    def answered(request: Request, number: int) -> None:
        waits.append(request.waited_s)
        ask(number + 1)

    world.at(0.0, ask)
    world.run()
    assert max(waits) < 3.0 + 0.5


def test_lost_questions_are_counted_and_asked_again() -> None:
    lossy = evening(way=Way("least recently used", LruWorld))
    assert lossy.lost > 100
    assert lossy.questions[-1].asked > 9 * MINUTES


def test_every_way_of_the_table_answers() -> None:
    for way in WAYS:
        assert play(THREE, way, 2 * MINUTES, 1).waits()


# --- mistakes that break no rule, and are found by the figures


@pytest.mark.parametrize(
    "mistake",
    [
        Mutation("the victim's rate is ignored", SWAPS, "sum(victim.asked_per_s[: level + 1])", "0.0"),
        Mutation("all are missed alike", SWAPS, "return model.popularity * swap_s(model)", "return 0.0"),
        Mutation("nobody is patient", SWAPS, "limits.patience_swaps * swap", "0.0 * swap"),
    ],
    ids=lambda m: m.name.replace(" ", "-"),
)
def test_a_scheduler_that_does_not_weigh_is_found(mistake: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = evening(code=mutated(mistake, monkeypatch))
    assert wrong.mean > 1.1 * evening().mean
    assert wrong.loads > 1.15 * evening().loads


def test_time_in_long_loads_would_make_a_popular_model_seem_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    forgets = Mutation("long loads count", POLICY, "contended | self._loading_for_long()", "contended")
    crowd = replace(THREE, load_s=(10.0,))
    right, wrong = (evening(crowd, seed=2, code=c) for c in (None, mutated(forgets, monkeypatch)))
    assert wrong.mean > 1.3 * right.mean
