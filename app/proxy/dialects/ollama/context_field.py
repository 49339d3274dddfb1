"""`context`: numbers that a client sends back to go on where an answer ended. Pure.

Ollama's are tokens. llama-server tells none of a chat, so these are the conversation itself, three bytes a
number, which clients do not look into.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic_core import to_json

from app.proxy.dialects.ollama.ollama_errors import wrong_type
from app.proxy.dialects.sse_format import object_in

Turn = tuple[str, str]
"""Who said what."""

_MARK = 0x6D5B2E
"""First of all: others come from another server, and say nothing here."""

_BYTES = 3
MOST_NUMBERS = 100_000
"""A longer one would hold up everybody else while it is made or read: there is none then."""

MOST_BYTES = MOST_NUMBERS * _BYTES


def size_of(turns: Sequence[Turn]) -> int:
    return sum(len(text) for _, text in turns)


def packed(turns: Sequence[Turn]) -> list[int]:
    if size_of(turns) > MOST_BYTES:
        return []
    text = to_json({"turns": turns})
    text += b" " * (-len(text) % _BYTES)
    numbers = [int.from_bytes(text[at : at + _BYTES], "big") for at in range(0, len(text), _BYTES)]
    return [_MARK, *numbers]


def unpacked(given: object) -> list[Turn]:
    """What was said; nothing where it was not packed here. Raises `BadRequest`."""
    if given is None:
        return []
    if not isinstance(given, list):
        raise wrong_type("context", "a list of whole numbers")
    if len(given) > 2 * MOST_NUMBERS:
        return []
    if not all(type(number) is int for number in given):
        raise wrong_type("context", "a list of whole numbers")
    if not given or given[0] != _MARK or not all(0 <= number < 1 << 8 * _BYTES for number in given):
        return []
    text = b"".join([number.to_bytes(_BYTES, "big") for number in given[1:]])
    found = object_in(text)
    turns = found.get("turns") if found is not None else None
    return [(turn[0], turn[1]) for turn in turns if _is_turn(turn)] if isinstance(turns, list) else []


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, list) and len(turn) == 2 and all(isinstance(part, str) for part in turn)
