"""What a client sees, told line by line to the test that judges it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator

BASE = sys.argv[1]
"""The router's address, without `/v1`."""

KEY, WRONG_KEY = "secret", "wrong"
CHAT, OTHER, CALLER, EMBED = "chat", "other", "caller", "embed"
NOBODY, BROKEN, ENDLESS = "nobody", "broken", "endless"
NARROW, CRASHING = "narrow", "CRASH-BY-ABORT"
ASK = "Say hello."
MOST_TOKENS = 12
MOST_IN_A_CALL = 200
LONG_S = 600.0
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
}


def step(name: str, call: Callable[[], object]) -> None:
    """What it gives, or the error that it raises."""
    try:
        told = {"saw": call()}
    except Exception as error:
        told = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps({"step": name, **told}), flush=True)


def begun() -> None:
    """The endless stream has: now the test lets it fail."""
    print(json.dumps({"step": "failing", "begun": True}), flush=True)


def until_it_fails(pieces: Iterable[object]) -> Iterator[object]:
    """All pieces of the endless stream."""
    for number, piece in enumerate(pieces):
        if number == 0:
            begun()
        yield piece


def text(pieces: Iterable[object]) -> list[str]:
    return [str(piece) for piece in pieces if piece]
