"""What becomes of an answer of llama-server on its way to the client."""

from __future__ import annotations

from enum import Enum

HELD_BYTES = 65536
"""A plain answer of up to this announced length is held until it is whole, so that it can be replayed."""

MAX_ERROR_BYTES = 65536
"""Of an error, nobody reads more."""


class AnswerMode(Enum):
    EMPTY = "no head has come from llama-server"
    HELD = "a plain answer, held back until it is whole"
    WHOLE = "a plain answer, held back until it is whole and translated"
    PASSED = "bytes pass as they come"
    EVENT_STREAM = "events pass as they come"
    TRANSLATED = "events pass through the translator"
    REFUSED = "llama-server's error, collected: it is told in the shape of this API"


class Left(Enum):
    """What of llama-server's words its client has not been told yet."""

    NOTHING = "all that has come is told"
    EVENTS = "some of a stream that has begun: they are translated, or on their way"
    ANSWER = "the answer, or what comes in its place"


def untranslated(method: str, status: int, length: int | None, *, is_event_stream: bool) -> AnswerMode:
    """Of an answer that passes as it is; `length` of its body, where it was announced."""
    if is_event_stream:
        return AnswerMode.EVENT_STREAM
    has_body = method != "HEAD" and status not in (204, 304)
    is_short = has_body and length is not None and length <= HELD_BYTES
    return AnswerMode.HELD if is_short else AnswerMode.PASSED
