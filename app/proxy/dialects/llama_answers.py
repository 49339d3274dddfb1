"""What llama-server's answers say, whole or an event of a stream, of chat or of plain text. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Body = Mapping[str, Any]

_NOTHING: Body = {}


class Piece(NamedTuple):
    """Some of an answer, or all of it."""

    text: str = ""
    thinking: str = ""
    calls: Sequence[Body] = ()
    """Of functions, as OpenAI has them; in a stream the text of their arguments comes in parts."""
    logprobs: Sequence[Body] = ()
    reason: str | None = None
    """Why it ended; None while it goes on."""
    timings: Body = _NOTHING

    @property
    def says_something(self) -> bool:
        return bool(self.text or self.thinking or self.logprobs)


def of_chat(others: int, told: Body) -> Piece:
    """Of `/v1/chat/completions`: an event, or the whole answer. `others`: how many tokens are told beside
    each that comes with its probability."""
    choices = told.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else _NOTHING
    message = choice.get("delta") or choice.get("message") or _NOTHING
    reason = choice.get("finish_reason")
    return Piece(
        message.get("content") or "",
        message.get("reasoning_content") or "",
        message.get("tool_calls") or (),
        _logprobs((choice.get("logprobs") or _NOTHING).get("content"), others),
        None if reason is None else "length" if reason == "length" else "stop",
        told.get("timings") or _NOTHING,
    )


def of_text(others: int, told: Body) -> Piece:
    """Of `/completion` and `/infill`, as `of_chat`."""
    reason = ("length" if told.get("stop_type") == "limit" else "stop") if told.get("stop") else None
    return Piece(
        text=told.get("content") or "",
        logprobs=_logprobs(told.get("completion_probabilities"), others),
        reason=reason,
        timings=told.get("timings") or _NOTHING,
    )


_OF_A_TOKEN = ("token", "logprob", "bytes")


def _logprobs(given: object, others: int) -> list[Body]:
    if not isinstance(given, list):
        return []
    return [_of_token(token) | _others(token, others) for token in given if isinstance(token, dict)]


def _others(token: Body, most: int) -> dict[str, Any]:
    others = [_of_token(other) for other in (token.get("top_logprobs") or ())[:most]]
    return {"top_logprobs": others} if others else {}


def _of_token(token: Body) -> dict[str, Any]:
    return {name: token[name] for name in _OF_A_TOKEN if name in token}
