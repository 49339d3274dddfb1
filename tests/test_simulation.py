"""What scheduling promises to clients, in virtual time, and that the simulator can be believed."""

from __future__ import annotations

import random
from functools import partial

from app.domain.priority import Priority
from app.scheduling.actions import Limits
from bench.simulate import WAYS, Result, alternating, many_models, night, play
from bench.world import Outcome, Request, Spec, World

HIGH, NORMAL, LOW = Priority.HIGH, Priority.NORMAL, Priority.LOW
HOLD, AGING = 10.0, 30.0
LIMITS = Limits(max_models=9, max_swap_wait_s=HOLD, aging_s=AGING)


def room_for_one(*aliases: str, load_s: float = 2.0, slots: int = 1) -> World:
    return World([Spec(a, 6000, load_s, slots=slots) for a in aliases], [10_000], LIMITS)


def closed_loop(
    world: World, alias: str, until: float, priority: Priority = NORMAL, service_s: float = 1.0
) -> None:
    """A client that asks again as soon as it is served."""

    def ask() -> None:
        if world.now < until:
            world.arrive(alias, priority, service_s).then = ask

    world.at(world.now, ask)


def all_served(world: World) -> bool:
    return all(r.outcome is Outcome.SERVED for r in world.requests)


def loads(world: World) -> int:
    return sum(m.loads for m in world.models.values())


def test_a_burst_that_alternates_between_two_models_costs_two_loads() -> None:
    world = room_for_one("a", "b")
    for alias in "ab" * 12:
        world.arrive(alias, service_s=0.4)
    world.run()
    assert all_served(world)
    assert loads(world) == 2
    assert world.requests[-1].ended < 1.3 * (2 * 2.0 + 24 * 0.4)


def test_traffic_without_a_pause_holds_another_model_back_for_a_bounded_time() -> None:
    world = room_for_one("a", "b", load_s=3.0, slots=2)
    for _ in range(3):
        closed_loop(world, "a", until=100, service_s=1.5)
    asked: list[Request] = []
    world.at(20.0, lambda: asked.append(world.arrive("b")))
    world.run()
    assert asked[0].waited_s <= HOLD + 1.5 + 3.0 + 0.5
    assert all_served(world)


def test_under_endless_high_traffic_a_low_request_is_granted_when_it_has_aged() -> None:
    world = room_for_one("a")
    for _ in range(3):
        closed_loop(world, "a", until=200, priority=HIGH)
    low: list[Request] = []
    world.at(20.0, lambda: low.append(world.arrive("a", LOW)))
    world.run()
    earlier = [r for r in world.requests if r.granted < low[0].granted]
    assert all(r.ticket.arrived <= 20.0 + 2 * AGING for r in earlier)
    assert low[0].waited_s > AGING


def test_a_low_request_for_another_model_ages_past_endless_high_traffic_too() -> None:
    world = room_for_one("a", "b")
    for _ in range(3):
        closed_loop(world, "a", until=300, priority=HIGH)
    low: list[Request] = []
    world.at(20.0, lambda: low.append(world.arrive("b", LOW)))
    world.run()
    assert low[0].waited_s <= 2 * AGING + HOLD + 4


def test_two_backlogs_share_the_memory_in_turns() -> None:
    world = room_for_one("a", "b")
    for alias in "ab" * 60:
        world.arrive(alias, service_s=1.0)
    world.run()
    assert all_served(world)
    assert 10 <= loads(world) <= 14  # 120 s of service in turns of ten seconds


def test_a_large_model_gets_its_turn_among_small_ones_that_are_always_loading() -> None:
    specs = [Spec("large", 9000, 2.0), *(Spec(f"small{i}", 4500, 4.0) for i in range(6))]
    world = World(specs, [10_000], LIMITS)

    def ask(alias: str) -> None:
        world.arrive(alias, service_s=0.5)

    for i in range(150):
        world.at(i * 2.0, partial(ask, f"small{i % 6}"))
    large: list[Request] = []
    world.at(30.0, lambda: large.append(world.arrive("large")))
    world.run()
    assert all_served(world)
    assert large[0].waited_s < 60


def test_the_same_seed_gives_the_same_night() -> None:
    def outcome(result: Result) -> tuple[int, int, float]:
        return result.loads, result.failed, result.makespan_s

    nights = [play(night(random.Random(7), hours=1), "router") for _ in range(2)]
    assert outcome(nights[0]) == outcome(nights[1])


def test_the_router_fails_nobody_and_swaps_less_than_one_queue_for_all() -> None:
    results = {way: play(alternating(rounds=10), way) for way in WAYS}
    assert results["router"].failed == results["fifo"].failed == 0
    assert results["router"].loads < results["fifo"].loads / 5
    assert results["router"].makespan_s < results["fifo"].makespan_s / 5


def test_interactive_requests_wait_less_than_in_one_queue_for_all() -> None:
    traffic = night(random.Random(3), hours=1)
    router, fifo = play(traffic, "router"), play(traffic, "fifo")
    assert router.wait_s(HIGH, 0.99) < fifo.wait_s(HIGH, 0.99) / 5


def test_every_request_of_a_busy_hour_is_served() -> None:
    result = play(many_models(random.Random(5), hours=1), "router")
    assert result.failed == 0
