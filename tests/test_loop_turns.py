"""Many requests at once: how many go on in a turn of the event loop, and who waits for whom."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from app.proxy.loop_turns import (
    BURST_S,
    FEW_IN_A_ROW,
    MANY_IN_A_ROW,
    MODEL_COST,
    OWN_COST,
    PUT_OFF_S,
    READ_COST,
    READS,
    ROW_COST,
    TURN_COST,
    LoopTurns,
    costs_of,
)

TURN_S = PUT_OFF_S / 50
AT_ONCE = TURN_COST // OWN_COST


class Crowd:
    """Requests, and in which turn each went on."""

    def __init__(self, turn_s: float = TURN_S) -> None:
        costs = {"/health": OWN_COST, "/session": OWN_COST, "/chat": MODEL_COST, READS: READ_COST}
        self.turns = LoopTurns(costs, lambda: self.turn * turn_s)
        self.turn = 0
        self.went_on: list[tuple[int, str]] = []

    def ask(self, path: str, times: int = 1, *, can_wait: bool = False) -> None:
        def go_on() -> bool:
            self.went_on.append((self.turn, path))
            return True

        for _ in range(times):
            if self.turns.take(self.turns.group_of(path), go_on, can_wait=can_wait):
                go_on()

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


@pytest.mark.parametrize(
    ("path", "at_once"), [("/session", AT_ONCE), ("/chat", TURN_COST // MODEL_COST), ("/nowhere", AT_ONCE)]
)
async def test_few_go_on_in_a_turn(path: str, at_once: int) -> None:
    crowd = Crowd()
    crowd.ask(path, 3 * at_once)
    await crowd.until_all_went_on(3 * at_once)
    assert [len(crowd.in_turn(turn)) for turn in range(3)] == [at_once] * 3


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
    assert "/health" in crowd.in_turn(1)
    await crowd.until_all_went_on(101)


async def test_paths_that_there_are_not_wait_together() -> None:
    crowd = Crowd()
    for number in range(100):
        crowd.ask(f"/{number}")
    crowd.ask("/health")
    await crowd.next_turn()
    assert "/health" in crowd.in_turn(1)
    await crowd.until_all_went_on(101)
    others = [path for _, path in crowd.went_on if path != "/health"]
    assert others == [f"/{number}" for number in range(100)], "in their order"


async def test_who_has_left_takes_no_place() -> None:
    crowd = Crowd()
    crowd.ask("/session", AT_ONCE)
    for _ in range(100):
        assert not crowd.turns.take("/session", lambda: False, can_wait=False)
    crowd.ask("/session")
    await crowd.next_turn()
    assert crowd.in_turn(1) == ["/session"]


async def test_less_goes_on_in_a_turn_while_some_connect() -> None:
    """uvloop accepts one in each turn: the last of them waits for all these turns."""
    crowd = Crowd()
    crowd.ask("/chat", 100)
    for _ in range(MANY_IN_A_ROW):
        crowd.turns.connected()
        await crowd.next_turn()
    found = [len(crowd.in_turn(turn)) for turn in range(1, MANY_IN_A_ROW + 1)]
    usual, short = TURN_COST // MODEL_COST, ROW_COST // MODEL_COST
    assert found == [usual] * (FEW_IN_A_ROW - 1) + [short] * (MANY_IN_A_ROW - FEW_IN_A_ROW + 1)
    await crowd.until_all_went_on(100)


async def test_few_who_connect_wait_for_nothing() -> None:
    crowd = Crowd()
    for _ in range(MANY_IN_A_ROW - 1):
        crowd.turns.connected()
        crowd.ask("/health", can_wait=True)
        assert crowd.in_turn(crowd.turn) == ["/health"]
        await crowd.next_turn()


async def test_nobody_waits_for_those_who_connected_before() -> None:
    crowd = Crowd()
    for _ in range(4 * MANY_IN_A_ROW):
        crowd.turns.connected()
        for _ in range(3):
            await crowd.next_turn()
        crowd.ask("/health", can_wait=True)
        assert crowd.in_turn(crowd.turn) == ["/health"]


@pytest.mark.parametrize("a_turn", [1, 100])
async def test_what_new_clients_ask_waits_while_many_connect_and_others_go_on(a_turn: int) -> None:
    """One connection a turn, as uvloop accepts them, and all in the same."""
    crowd = Crowd()
    turns = 40 // a_turn + 1
    for _ in range(turns):
        for _ in range(a_turn):
            crowd.turns.connected()
        await crowd.next_turn()
        crowd.ask("/chat")
        crowd.ask("/session", can_wait=True)
        assert "/chat" in crowd.in_turn(crowd.turn)
    early = MANY_IN_A_ROW - 1 if a_turn == 1 else 0
    assert [path for _, path in crowd.went_on].count("/session") == early
    connected = crowd.turn
    await crowd.until_all_went_on(2 * turns)
    assert "/session" in crowd.in_turn(connected + 1), "nobody connects any more"


async def test_nobody_waits_for_ever_while_many_connect() -> None:
    crowd = Crowd()
    for _ in range(MANY_IN_A_ROW):
        crowd.turns.connected()
    crowd.ask("/session", 100, can_wait=True)
    for _ in range(200):
        crowd.turns.connected()
        await crowd.next_turn()
        crowd.ask("/chat", TURN_COST)
    busy = sorted({turn for turn, path in crowd.went_on if path == "/session"})
    assert [crowd.in_turn(turn) for turn in busy] == [["/session"]] * len(busy), "it costs more"
    assert [later - earlier for earlier, later in pairwise(busy)] == [51] * (len(busy) - 1)
    assert len(busy) == 3


async def test_large_reads_have_a_share_of_their_own_while_many_connect() -> None:
    """Whatever new clients ask."""
    crowd = Crowd()
    for _ in range(MANY_IN_A_ROW):
        crowd.turns.connected()
    for path in ("/session", "/health", "/nowhere", READS):
        crowd.ask(path, 100, can_wait=True)
    for _ in range(200):
        crowd.turns.connected()
        await crowd.next_turn()
    paths = [path for _, path in crowd.went_on]
    assert (len(paths), paths.count(READS)) == (9, 3 * ROW_COST // READ_COST)


@pytest.mark.parametrize("turn_s", [TURN_S, BURST_S / 10])
async def test_who_connects_all_the_time_waits_for_no_crowd(turn_s: float) -> None:
    """One connection in each turn for longer than any crowd needs, and each asks for something."""
    crowd = Crowd(turn_s)
    for _ in range(round(4 * BURST_S / turn_s)):
        crowd.turns.connected()
        crowd.ask("/chat", can_wait=True)
        await crowd.next_turn()
    assert crowd.turns.waiting <= 1


async def test_a_bug_in_one_of_them_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    def fails() -> bool:
        raise RuntimeError("of one request")

    crowd = Crowd()
    crowd.ask("/session", AT_ONCE)
    for _ in range(AT_ONCE):
        crowd.turns.take("/session", fails, can_wait=False)
    crowd.ask("/session")
    await crowd.until_all_went_on(AT_ONCE + 1)
    crowd.ask("/session", 2 * AT_ONCE)
    crowd.turns.take("/session", fails, can_wait=False)
    crowd.ask("/session")
    crowd.turns.end()
    assert len(crowd.went_on) == 3 * AT_ONCE + 2
    assert caplog.text.count("a request could not go on") == AT_ONCE + 1


@pytest.mark.parametrize(
    ("path", "group"),
    [
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("//v1/v1/chat/completions/", "/v1/chat/completions"),
        ("/v1/models/qwen/status", "/v1/models"),
        ("/upstream/qwen/any/path", "/upstream"),
        ("/ui/page.js", "/ui"),
        ("/v1/health", "/health"),
        ("/nowhere", ""),
        ("bodies", ""),
        ("chunked%20bodies", ""),
        ("*", ""),
        ("", ""),
        ("/", ""),
        ("//upstream///" + "//a" * 20_000, "/upstream"),
        ("/" * 60_000, ""),
        ("/v1" * 20_000, ""),
    ],
)
def test_paths_that_belong_together_are_one_group(path: str, group: str) -> None:
    own = ["/health", "/v1/models", "/v1/models/{alias:path}/status", "/upstream/{target:path}", "/ui"]
    costs = costs_of(own)
    assert LoopTurns(costs).group_of(path) == group
    assert costs["/upstream"] == costs["/v1/chat/completions"] == MODEL_COST
    assert costs["/health"] == costs["/ui"] == OWN_COST


async def test_at_the_end_the_rest_of_a_body_waits_again() -> None:
    """A body may have hundreds of parts in what has come of it."""
    crowd, parts = Crowd(), 0

    def go_on() -> bool:
        nonlocal parts
        parts += 1
        while parts < 100 and crowd.turns.take("/session", go_on, can_wait=False):
            parts += 1
        return True

    crowd.ask("/session", AT_ONCE)
    assert not crowd.turns.take("/session", go_on, can_wait=False)
    crowd.ask("/session")
    crowd.turns.end()
    assert (len(crowd.went_on), parts) == (AT_ONCE + 1, 1)
    for _ in range(100):
        await crowd.next_turn()
    assert parts == 100


async def test_at_the_end_all_go_on() -> None:
    crowd = Crowd()
    for _ in range(MANY_IN_A_ROW):
        crowd.turns.connected()
    crowd.ask("/session", 20)
    crowd.ask("/session", 20, can_wait=True)
    crowd.turns.end()
    assert len(crowd.in_turn(0)) == 40
    await crowd.next_turn()
    assert len(crowd.went_on) == 40
