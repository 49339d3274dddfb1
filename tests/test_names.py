"""What clients mean by names that are no model's, and which models look like the one that was asked for."""

from __future__ import annotations

import time
from functools import partial

import pytest

from app.domain.model_names import MAX_NAME, MAX_READ, MOST_COMPARED, nearest_first, possible_names
from tests.patience import is_ever

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


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("Qwen", "qwen"),
        ("\u041c\u041e\u0414\u0415\u041b\u042c", "\u043c\u043e\u0434\u0435\u043b\u044c"),
        ("qwen:latest", "qwen"),
        ("qwen[1m]", "qwen"),
        ("qwen [1m]", "qwen"),
        ("qwen:latest[1m]", "qwen"),
        ("qwen", "qwen:latest"),
        ("qwen[1m]:latest", "qwen"),
        ("openai/qwen", "qwen"),
        ("OpenAI/Qwen:latest[1m]", "qwen"),
        ("openai/org/qwen", "org/qwen"),
    ],
)
def test_a_name_is_read_without_what_programs_add_to_it(asked: str, meant: str) -> None:
    assert meant in possible_names(asked)


@pytest.mark.parametrize(
    "asked", ["qwen2", "qwen:8b", "qwen]", "[1m]qwen", "openai/x/qwen", "qwe", "q" * 300]
)
def test_another_name_stays_another_one(asked: str) -> None:
    assert "qwen" not in possible_names(asked)


def test_what_is_nearest_to_the_name_is_read_first() -> None:
    assert next(possible_names("openai/Qwen:latest")) == "openai/qwen:latest"
    found = list(possible_names("openai/qwen:latest"))
    assert found.index("openai/qwen") < found.index("qwen:latest") < found.index("qwen")


def test_a_name_of_any_length_is_read_in_little_time() -> None:
    def is_quick(piece: str) -> bool:
        begun = time.thread_time()
        assert list(possible_names(piece * 10_000_000)) == []
        list(possible_names(piece * (MAX_READ // len(piece))))
        return time.thread_time() - begun < 0.5

    for piece in ("[", "[]", " [", "/", ":latest"):
        assert is_ever(partial(is_quick, piece))
