"""Names of models as clients write them. Pure, and fast whatever they send."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache

MAX_NAME = 128
"""Characters of an alias."""

MAX_READ = 2 * MAX_NAME
"""A longer name stands for none but itself."""

_TAG = ":latest"
_ADDED = re.compile(r" ?\[[^\[\]]*\]\Z")


def folded(name: str) -> str:
    """Names that differ only in case have the same."""
    return name.casefold()


def possible_names(name: str) -> Iterator[str]:
    """Names, folded, that a client may mean by one that is no model's: without what programs add to it.

    Ollama's programs add a tag or leave it out, Claude Code adds a size of context in brackets, and programs
    that know several providers write the provider before it. Likeliest first.
    """
    if len(name) > MAX_READ:
        return
    whole = folded(name)
    for text in (whole, whole.partition("/")[2]):
        bare = _ADDED.sub("", text)
        yield from (text, text.removesuffix(_TAG), bare, bare.removesuffix(_TAG), f"{bare}{_TAG}")
        yield _ADDED.sub("", text.removesuffix(_TAG))


MOST_COMPARED = 200
"""A comparison takes some microseconds."""


def nearest_first(name: str, known: Sequence[str]) -> list[str]:
    """The known names, those that look like `name` before the others; each group in its own order."""
    near = dict.fromkeys(alike(name, known, _ALIKE))
    return [*near, *(other for other in known if other not in near)]


def alike(text: str, known: Sequence[str], least: float) -> list[str]:
    """What looks like `text`, likest first. `least`: 1 is the same, 0 has nothing in common.

    By the pairs of letters that they share (Dice's coefficient): difflib compares every letter with every
    other one, and took half a minute for a name of 60 MB.
    """
    wanted = _pairs(text[:MAX_NAME])
    compared = [(_likeness(wanted, _pairs_of_known(other)), other) for other in known[:MOST_COMPARED]]
    return [other for likeness, other in sorted(compared, key=lambda pair: -pair[0]) if likeness >= least]


_ALIKE = 0.3


Pairs = frozenset[tuple[str, int]]
"""Of letters, each with how often it has come before."""


def _pairs(name: str) -> Pairs:
    text, seen, pairs = f" {name.lower()} ", Counter[str](), []
    for at in range(len(text) - 1):
        pair = text[at : at + 2]
        pairs.append((pair, seen[pair]))
        seen[pair] += 1
    return frozenset(pairs)


_pairs_of_known = lru_cache(2 * MOST_COMPARED)(_pairs)


def _likeness(one: Pairs, other: Pairs) -> float:
    """0 to 1."""
    return 2 * len(one & other) / (len(one) + len(other))
