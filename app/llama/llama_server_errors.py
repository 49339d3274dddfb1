"""llama-server's errors as errors of the router: its words, with a status and a code by their meaning. Pure.

It answers `{"error": {"code": 400, "message": ..., "type": ..., ...}}`: the code is the status once more, a
number, which typed clients cannot read. What is wrong with a request it often tells with status 500, because
most of what goes wrong while a request is read is one kind of exception there; clients repeat such a request.
"""

from __future__ import annotations

import json
import re
from typing import Any

from app.domain.errors import ModelError

ERROR_IN_STREAM = b'data: {"error"'
"""How an event begins that is one. No answer holds it: inside a text its quotation mark would be escaped."""

MAX_MESSAGE = 2000
"""Characters of an answer that is no JSON."""

_EXCEEDS_CONTEXT = "exceed_context_size_error"
_CODES = {_EXCEEDS_CONTEXT: "context_length_exceeded"}
_TAKEN_APART = frozenset({"code", "message", "type", "param"})

_ABOUT_THE_REQUEST = re.compile(
    r"""
      \[json\.exception\.
    | \A(?:image|audio|video)\ input\ is\ not\ supported
    | \AMultimodal\ data\ provided
    | \AFailed\ to\ (?:load|download)\ image
    | \AFailed\ to\ parse\ (?:messages|tools|tool\ call\ arguments)
    | \AFailed\ to\ tokenize\ prompt
    | \AInvalid\ base64
    | \A(?:Only\ no\ echo|Unsupported\ param|Cannot\ (?:use|specify)\ both|Cannot\ specify\ grammar)
    | \A"?(?:prompt|messages|json_schema|input|content|query|documents)"?.{0,3}(?:is\ required|must\ be|:)
    | \A'(?:messages|input|tools)'
    | \AError:\ (?:'lora'|dry_sequence_breakers|no\ triggers)
    | \A(?:JSON\ schema|Unable\ to\ generate\ parser|Unknown\ reasoning\ format)
    | input\ .{0,40}is\ too\ large\ to\ process
    | (?:rendering|applying)\ .{0,20}template | Jinja | roles\ must\ alternate
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""How messages begin that say, with status 500, what is wrong with the request. Of both pinned builds."""

_TOO_LARGE = re.compile(r"\Ainput \((\d{1,9}) tokens\) is too large to process.{0,80}batch size: (\d{1,9})\)")
"""Of a text to embed: what is said of a prompt in fields."""


def read_error(text: bytes, status: int) -> ModelError:
    """The answer with this status, or the event in a stream of status 200: nothing that it says is lost."""
    told = _told(text)
    if status < 400:
        given = told.get("code")
        status = given if type(given) is int and 400 <= given < 600 else 500
    message = told.get("message")
    if not isinstance(message, str):
        message = text.decode("utf-8", "replace")[:MAX_MESSAGE].strip()
        message = message or f"llama-server answered with status {status}"
    given_type = told.get("type")
    type_ = given_type if isinstance(given_type, str) else _type_of(status)
    if status == 500 and _ABOUT_THE_REQUEST.search(message):
        status, type_ = 400, "invalid_request_error"
    if (found := _TOO_LARGE.search(message)) is not None:
        told = {**told, "n_prompt_tokens": int(found[1]), "n_ctx": int(found[2])}
        type_ = _EXCEEDS_CONTEXT
    return ModelError(
        message,
        status=status,
        type_=type_,
        code=_code(told.get("code"), type_),
        param=told["param"] if isinstance(told.get("param"), str) else None,
        details={name: value for name, value in told.items() if name not in _TAKEN_APART},
    )


def _told(text: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(parsed, dict):
        return {}
    inner = parsed.get("error", parsed)
    if isinstance(inner, str):
        return {"message": inner}
    return inner if isinstance(inner, dict) else {}


def _code(given: object, type_: str) -> str:
    """A text, and the one that OpenAI has for it where there is one."""
    if isinstance(given, str) and given:
        return given
    return _CODES.get(type_) or type_.removesuffix("_error") or "error"


def _type_of(status: int) -> str:
    return "server_error" if status >= 500 else "invalid_request_error"
