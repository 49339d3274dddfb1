"""One thing that the router relies on, and how a binary was found to behave."""

from __future__ import annotations

import http.client
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from app.llama.command_line import CommandError
from tools.llama_facts.server import NotServing, Subject


@dataclass(frozen=True)
class Fact:
    """`found` tells what is there instead."""

    area: str
    claim: str
    held: bool
    found: str = ""


Claims = Iterator[tuple[str, bool, object]]
"""What is relied on, whether it holds, what was seen."""

Area = tuple[str, Callable[[Subject], Claims]]

_TROUBLE = (
    NotServing,
    CommandError,
    OSError,
    http.client.HTTPException,
    subprocess.SubprocessError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
)
"""What comes of answers that have another shape than they had."""


def examine(areas: Iterable[Area], subject: Subject) -> Iterator[Fact]:
    """Every fact as it is found. What an area could not even ask is a change too."""
    for area, claims in areas:
        try:
            for claim, held, seen in claims(subject):
                yield Fact(area, claim, held, "" if held else " ".join(str(seen).split())[:300])
        except _TROUBLE as error:
            yield Fact(area, "all of it can be asked", False, f"{type(error).__name__}: {error}"[:600])


def changed(facts: Sequence[Fact]) -> list[Fact]:
    return [fact for fact in facts if not fact.held]
