"""What requests to a model have in common in Ollama's API. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json

from app.domain.errors import BadRequest, RouterError
from app.gguf.model_card import ModelCard
from app.proxy.dialects.ollama import tagged_names
from app.proxy.dialects.ollama.keep_alive_field import keep_alive
from app.proxy.dialects.ollama.ollama_errors import OddRequest, not_able, wrong_type

Fields = dict[str, Any]

MAX_TOP_LOGPROBS = 20
_LEVELS = {"low": "low", "medium": "medium", "high": "high", "max": "high"}
"""How hard to think: the highest that models know."""


def normal(given: Mapping[str, Any]) -> Fields:
    """Names of fields in any case, as Go reads them; streamed unless it says otherwise."""
    fields = {name.lower(): value for name, value in given.items() if value is not None}
    return {"stream": True, **fields}


def named(fields: Fields, missing: RouterError, *switches: str) -> Fields:
    """`missing`: what is told where it names no model; `switches` are true or false. `keep_alive` is in
    seconds from here on."""
    model = fields.get("model", "")
    if not isinstance(model, str):
        raise wrong_type("model", "a text")
    if not model:
        raise missing
    for name in switches:
        if not isinstance(fields.get(name, False), bool):
            raise wrong_type(name, "true or false")
    told = {"model": tagged_names.asked_for(model), "asked_model": model}
    return {**fields, **told, "keep_alive": keep_alive(fields.get("keep_alive"))}


def thinking(fields: Mapping[str, Any], card: ModelCard | None) -> Fields:
    """`think`, as chat templates know it."""
    think = fields.get("think")
    if think is None:
        return {}
    if not isinstance(think, bool) and not (isinstance(think, str) and think in _LEVELS):
        raise BadRequest(
            f'invalid think value: {_quoted(think)} (must be "high", "medium", "low", "max", true, or false)',
            param="think",
        )
    if think and card is not None and not card.thinking:
        raise not_able(fields["asked_model"], "thinking")
    told: Fields = {"enable_thinking": bool(think)}
    if isinstance(think, str):
        told["reasoning_effort"] = _LEVELS[think]
    return {"chat_template_kwargs": told}


def schema(fields: Mapping[str, Any]) -> Fields | None:
    """What the answer has to obey; None: nothing."""
    wanted = fields.get("format")
    if wanted is None or wanted == "":
        return None
    if wanted == "json":
        return {"type": "object"}
    if isinstance(wanted, dict):
        return wanted
    raise OddRequest(
        f'invalid format: {_quoted(wanted)}; expected "json" or a valid JSON Schema object', param="format"
    )


def logprobs(fields: Mapping[str, Any]) -> int | None:
    """How many others beside each token are wanted; None: no probabilities at all."""
    most = fields.get("top_logprobs", 0)
    if isinstance(most, bool) or not isinstance(most, int):
        raise wrong_type("top_logprobs", "a whole number")
    if not 0 <= most <= MAX_TOP_LOGPROBS:
        raise BadRequest(f"top_logprobs must be between 0 and {MAX_TOP_LOGPROBS}", param="top_logprobs")
    return most if fields.get("logprobs") is True else None


def text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name, "")
    if not isinstance(value, str):
        raise wrong_type(name, "a text")
    return value


def _quoted(value: object) -> str:
    """As it stood in the request, or the beginning of it."""
    return to_json(value[:80] if isinstance(value, str) else value).decode()[:80]
