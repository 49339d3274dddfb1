"""Names of models as clients write them. Pure, and fast whatever they send."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

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
"""A comparison takes some ten microseconds."""


def nearest_first(name: str, known: Sequence[str]) -> list[str]:
    """The known names, those that look like `name` before the others; each group in its own order."""
    near = alike(name, known, _ALIKE)
    return [*near, *(other for other in known if other not in near)]


def alike(text: str, known: Sequence[str], least: float) -> list[str]:
    """What looks like `text`, likest first. `least`: 1 is the same, 0 has nothing in common.

    By the pairs of letters that they share (Dice's coefficient): difflib compares every letter with every
    other one, and took half a minute for a name of 60 MB.
    """
    wanted = _pairs(text[:MAX_NAME])
    compared = [(_likeness(wanted, _pairs(other)), other) for other in known[:MOST_COMPARED]]
    return [other for likeness, other in sorted(compared, key=lambda pair: -pair[0]) if likeness >= least]


_ALIKE = 0.3


def _pairs(name: str) -> Counter[str]:
    text = f" {name.lower()} "
    return Counter(text[at : at + 2] for at in range(len(text) - 1))


def _likeness(one: Counter[str], other: Counter[str]) -> float:
    """0 to 1."""
    shared = sum((one & other).values())
    return 2 * shared / (sum(one.values()) + sum(other.values()))
