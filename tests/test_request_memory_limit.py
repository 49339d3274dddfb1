"""Bytes that are held for clients: who has a place, what the others are told, and that it comes back."""

from __future__ import annotations

import asyncio

import pytest

from app.configuration.file import parse
from app.core.config import Config
from app.domain.errors import Overloaded, RequestTooLarge
from app.domain.units import MIB
from app.proxy.request_body import RequestBody
from app.proxy.request_memory_limit import LARGE_BYTES, STRANGERS_PART, ClientMemory


def memory(mb: int | None = 4, machine_mb: int = 16384) -> ClientMemory:
    config = Config()
    api = config.api.model_copy(update={"max_memory_mb": mb})
    return ClientMemory(config.model_copy(update={"api": api}), machine_mb)


@pytest.mark.parametrize(
    ("set_mb", "machine_mb", "limit_mb"),
    [(None, 1000, 250), (None, 65536, 2048), (None, 2, 1), (5000, 65536, 5000), (1, 65536, 1)],
)
def test_the_limit_is_what_is_set_or_a_quarter_of_the_memory(
    set_mb: int | None, machine_mb: int, limit_mb: int
) -> None:
    assert memory(set_mb, machine_mb).limit == limit_mb * MIB


def test_a_body_has_its_place_from_its_announcement_to_its_end() -> None:
    held = memory()
    body = RequestBody(held, 3 * MIB)
    assert held.figures() == {"clients": 3 * MIB, "clients_limit": 4 * MIB}
    body.add(b"a" * MIB)
    body.add(b"b" * MIB)
    assert held.held == 3 * MIB
    assert body.data == b"a" * MIB + b"b" * MIB
    del body
    assert held.held == 0


def test_a_body_without_an_announcement_is_counted_as_it_comes() -> None:
    held = memory()
    body = RequestBody(held)
    body.add(b"a" * MIB)
    body.add(b"b" * MIB)
    assert held.held == 2 * MIB
    with pytest.raises(Overloaded) as told:
        body.add(b"c" * (2 * MIB + 1))
    assert told.value.retry_after_s
    assert held.held == 2 * MIB == len(body)


def test_what_replaces_a_body_has_its_place_before_and_the_body_none_afterwards() -> None:
    held = memory()
    body = RequestBody(held)
    body.add(b"a" * MIB)
    body.expect(2 * MIB)
    assert held.held == 3 * MIB
    with pytest.raises(Overloaded):
        body.expect(MIB + 1)
    body.replace(b"b" * (2 * MIB))
    assert held.held == 2 * MIB
    body.replace(b"c")
    assert held.held == 1
    del body
    assert held.held == 0


def test_who_has_no_place_takes_none() -> None:
    held = memory()
    first = RequestBody(held, 3 * MIB)
    with pytest.raises(Overloaded, match=r"4 MB.*api\.max_memory_mb"):
        RequestBody(held, 2 * MIB)
    assert held.held == 3 * MIB
    second = RequestBody(held, MIB)
    del first, second
    assert held.held == 0


def test_what_can_never_have_a_place_is_too_large() -> None:
    with pytest.raises(RequestTooLarge, match=r"api\.max_memory_mb"):
        RequestBody(memory(), 4 * MIB + 1)


def test_a_change_counts_from_the_next_body_on(tmp_path: object) -> None:
    held = memory()
    body = RequestBody(held, 3 * MIB)
    held.apply(parse('{"api": {"max_memory_mb": 1}}', tmp_path, {}))  # type: ignore[arg-type]
    assert held.held == 3 * MIB
    with pytest.raises(Overloaded):
        RequestBody(held, 1)
    del body
    RequestBody(held, MIB)


def test_strangers_have_a_tiny_part() -> None:
    held = memory(STRANGERS_PART)
    assert held.count(MIB)
    assert not held.count(1)
    assert held.held == MIB + 1
    held.count(-2)
    assert held.count(1)
    RequestBody(held, (STRANGERS_PART - 1) * MIB)  # what is theirs is taken from the others


async def test_large_ones_are_freed_one_in_a_turn_of_the_event_loop() -> None:
    held = memory(64)
    bodies = []
    for _ in range(3):
        body = RequestBody(held)
        body.add(b"a" * LARGE_BYTES)
        bodies.append(body)
    del body
    bodies.clear()
    assert held.held == 0
    for left in (3, 2, 1, 0):
        assert len(held._unused) == left
        await asyncio.sleep(0)
