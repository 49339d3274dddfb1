"""What is asked instead where a prompt is longer than the model's context. Pure.

llama-server says how many tokens it was and how many there may be, and has computed nothing yet. What is left
out is chosen by its share of the text; where that was too little, it says so again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pydantic_core import to_json

from app.domain.errors import RouterError
from app.proxy.dialects.json_pieces import object_of, written

Message = dict[str, Any]

MOST_TRIES = 8
TOO_LONG = "context_length_exceeded"
_ROOM = 4
"""A part of the context, one in so many, is left for the answer: llama-server does not go on beyond it."""


class Excess(NamedTuple):
    tokens: int
    context: int

    @property
    def surplus(self) -> int:
        return self.tokens - self.context + max(1, self.context // _ROOM)


def excess_of(error: RouterError) -> Excess | None:
    """None: it is refused for something else."""
    tokens, context = error.details.get("n_prompt_tokens"), error.details.get("n_ctx")
    if error.code != TOO_LONG or type(tokens) is not int or type(context) is not int or tokens <= 0:
        return None
    return Excess(tokens, context)


Shorten = Callable[[Message, Excess], bool]
"""Changes a body; false where there is nothing more to be left out."""


class Shortener:
    """Of one request; asked each time that llama-server refuses it. It keeps nothing of it meanwhile."""

    def __init__(self, shorten: Shorten) -> None:
        self._shorten, self._tries_left = shorten, MOST_TRIES

    def __call__(self, error: RouterError, asked: bytes | bytearray) -> bytes | bytearray | None:
        excess = excess_of(error)
        if excess is None or not self._tries_left:
            return None
        self._tries_left -= 1
        body = object_of(asked)
        return written(body, to_json) if self._shorten(body, excess) else None


def of_messages() -> Shortener:
    """The oldest go first; system messages and the last one stay. That one is cut where it alone is too
    long."""
    return Shortener(_shorten_messages)


def of_text(field: str) -> Shortener:
    """Of a prompt the beginning goes."""

    def shorten(body: Message, excess: Excess) -> bool:
        body[field] = _end_of(body[field], excess)
        return True

    return Shortener(shorten)


def _shorten_messages(body: Message, excess: Excess) -> bool:
    kept = _without_oldest(body["messages"], excess)
    if kept is None:
        kept = _with_last_cut(body["messages"], excess)
    if kept is None:
        return False
    body["messages"] = kept
    return True


def _without_oldest(messages: Sequence[Message], excess: Excess) -> list[Message] | None:
    """None where there is nothing that could be left out."""
    sizes = [len(written(message, to_json)) for message in messages]
    tokens_a_byte = excess.tokens / sum(sizes)
    dropped: set[int] = set()
    saved = 0.0
    for place in _droppable(messages):
        if saved >= excess.surplus and messages[place].get("role") == "user":  # templates want it first
            break
        dropped.add(place)
        saved += sizes[place] * tokens_a_byte
    return [m for place, m in enumerate(messages) if place not in dropped] if dropped else None


def _droppable(messages: Sequence[Message]) -> list[int]:
    return [place for place, m in enumerate(messages[:-1]) if m.get("role") != "system"]


def _with_last_cut(messages: Sequence[Message], excess: Excess) -> list[Message] | None:
    """Its end is kept."""
    if not messages:
        return None
    last, content = messages[-1], messages[-1].get("content")
    if isinstance(content, str) and len(content) > 1:
        return [*messages[:-1], {**last, "content": _end_of(content, excess)}]
    if isinstance(content, list) and len(content[-1].get("text", "")) > 1:
        text = {"type": "text", "text": _end_of(content[-1]["text"], excess)}
        return [*messages[:-1], {**last, "content": [*content[:-1], text]}]
    return None


def _end_of(text: str, excess: Excess) -> str:
    """So much that about half of the context is free."""
    kept = int(len(text) * excess.context / 2 / excess.tokens)
    return text[-max(1, min(kept, len(text) - 1)) :]
