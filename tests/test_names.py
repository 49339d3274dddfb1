"""The names of models that look like the one that was asked for."""

from __future__ import annotations

import time

import pytest

from app.domain.names import MAX_NAME, MOST_COMPARED, nearest_first

KNOWN = ["llama-3-8b", "qwen2.5-7b", "embed", "gemma-3-4b"]


@pytest.mark.parametrize(
    ("asked", "first"),
    [("qwen", "qwen2.5-7b"), ("Lama-3-8B", "llama-3-8b"), ("embedding", "embed"), ("gemma3", "gemma-3-4b")],
)
def test_the_nearest_name_comes_first_and_no_name_is_lost(asked: str, first: str) -> None:
    found = nearest_first(asked, KNOWN)
    assert found[0] == first
    assert sorted(found) == sorted(KNOWN)


@pytest.mark.parametrize("asked", ["", "zzz", "\u043a" * 5])
def test_what_looks_like_none_leaves_their_order(asked: str) -> None:
    assert nearest_first(asked, KNOWN) == KNOWN
    assert nearest_first(asked, []) == []


def test_a_long_name_costs_no_more_than_a_short_one() -> None:
    """Compared with the same work for a name of allowed length, in processor time."""

    def seconds(name: str) -> float:
        begun = time.thread_time()
        nearest_first(name, ["ab" * 64] * MOST_COMPARED)
        return time.thread_time() - begun

    allowed = min(seconds("ba" * (MAX_NAME // 2)) for _ in range(3))
    assert min(seconds("ba" * 10_000_000) for _ in range(3)) < 3 * allowed
