"""Many requests at once: how many go on in a turn of the event loop, and who waits for whom."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from app.proxy.turns import AT_ONCE, MANY, PUT_OFF_S, Turns

TURN_S = PUT_OFF_S / 50


class Crowd:
    """Requests, and in which turn each went on."""

    def __init__(self) -> None:
        self.turns = Turns(lambda: self.turn * TURN_S)
        self.turns.paths = {"/health", "/session"}
        self.turn = 0
        self.went_on: list[tuple[int, str]] = []

    def ask(self, path: str, times: int = 1) -> None:
        for _ in range(times):
            if self.turns.take(path, lambda: self.went_on.append((self.turn, path))):
                self.went_on.append((self.turn, path))

    async def next_turn(self) -> None:
        self.turn += 1
        await asyncio.sleep(0)

    async def until_all_went_on(self, count: int) -> None:
        for _ in range(1000):
            if len(self.went_on) == count:
                return
            await self.next_turn()
        raise AssertionError(self.went_on)

    def in_turn(self, turn: int) -> list[str]:
        return [path for number, path in self.went_on if number == turn]


async def test_few_go_on_in_a_turn_in_their_order() -> None:
    crowd = Crowd()
    crowd.ask("/session", 3 * AT_ONCE)
    await crowd.until_all_went_on(3 * AT_ONCE)
    assert [len(crowd.in_turn(turn)) for turn in range(3)] == [AT_ONCE] * 3


async def test_few_go_on_however_they_are_spread_over_turns() -> None:
    crowd = Crowd()
    for _ in range(10):
        crowd.ask("/session", AT_ONCE - 1)
        await crowd.next_turn()
    await crowd.until_all_went_on(10 * (AT_ONCE - 1))
    assert max(len(crowd.in_turn(turn)) for turn in range(crowd.turn + 1)) <= AT_ONCE
    assert crowd.turn <= 10


async def test_another_path_goes_in_between() -> None:
    crowd = Crowd()
    crowd.ask("/session", 100)
    crowd.ask("/health")
    await crowd.next_turn()
    assert crowd.in_turn(0) == ["/session"] * AT_ONCE
    assert "/health" in [path for _, path in crowd.went_on[: 2 * AT_ONCE]]
    await crowd.until_all_went_on(101)


async def test_paths_that_there_are_not_wait_together() -> None:
    crowd = Crowd()
    for number in range(100):
        crowd.ask(f"/{number}")
    crowd.ask("/health")
    await crowd.next_turn()
    assert "/health" in [path for _, path in crowd.went_on[: 2 * AT_ONCE]]
    await crowd.until_all_went_on(101)
    others = [path for _, path in crowd.went_on if path != "/health"]
    assert others == [f"/{number}" for number in range(100)], "in their order"


async def test_few_who_connect_wait_for_nothing() -> None:
    crowd = Crowd()
    for _ in range(MANY - 1):
        crowd.turns.connected()
        crowd.ask("/health")
        assert crowd.in_turn(crowd.turn) == ["/health"]
        await crowd.next_turn()


async def test_nobody_waits_for_those_who_connected_long_ago() -> None:
    crowd = Crowd()
    for _ in range(4 * MANY):
        crowd.turns.connected()
        for _ in range(3):
            await crowd.next_turn()
        crowd.ask("/health")
        assert crowd.in_turn(crowd.turn) == ["/health"]


@pytest.mark.parametrize("a_turn", [1, 100])
async def test_requests_wait_while_many_connect(a_turn: int) -> None:
    """One connection a turn, as uvloop accepts them, and all in the same."""
    crowd = Crowd()
    for _ in range(40 // a_turn + 1):
        for _ in range(a_turn):
            crowd.turns.connected()
        await crowd.next_turn()
        crowd.ask("/session")
    early = MANY - 1 if a_turn == 1 else 0
    assert len(crowd.went_on) == early
    connected = crowd.turn
    await crowd.until_all_went_on(40 // a_turn + 1)
    assert crowd.in_turn(connected + 1), "nobody connects any more"


async def test_requests_wait_not_for_ever_while_many_connect() -> None:
    crowd = Crowd()
    for _ in range(MANY):
        crowd.turns.connected()
    crowd.ask("/session", 100)
    for _ in range(200):
        crowd.turns.connected()
        await crowd.next_turn()
    busy = sorted({turn for turn, _ in crowd.went_on})
    assert [len(crowd.in_turn(turn)) for turn in busy] == [AT_ONCE] * len(busy)
    assert [later - earlier for earlier, later in pairwise(busy)] == [51] * (len(busy) - 1)
    assert len(busy) == 3
    await crowd.until_all_went_on(100)
