"""How long a model stays loaded after a request, as that request says it. Pure."""

from __future__ import annotations

import math
import re

from app.access.api_keys import Client
from app.access.header_lookup import Headers
from app.domain.errors import BadRequest
from app.domain.model_spec import ModelSpec

HEADER, FIELD = "X-Model-TTL", "keep_alive"

_NUMBER = re.compile(r"-?\d{1,12}(?:\.\d{1,6})?\Z")
_PART = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)(ms|s|m|h)")
_DURATION = re.compile(rf"-?(?:{_PART.pattern})+\Z")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def in_header(headers: Headers) -> float | None:
    """Seconds; `inf` for ever; None without one. Raises `BadRequest`."""
    text = headers.get("x-model-ttl")
    return None if text is None else _seconds(text.strip(), HEADER)


def in_field(value: object) -> float | None:
    """As `in_header`. Ollama's programs write `"5m"`, `"1h30m"`, 0 and -1 there."""
    if value is None:
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _from_number(float(value))
    if not isinstance(value, str):
        raise _unreadable(FIELD)
    return _seconds(value.strip(), FIELD)


def allowed(asked_s: float, spec: ModelSpec, client: Client) -> float:
    """Keys that may not manage can let a model go sooner, but not keep it longer than it is configured."""
    if client.admin or spec.idle_timeout_s is None:
        return asked_s
    return min(asked_s, spec.idle_timeout_s)


def _seconds(text: str, where: str) -> float:
    if _NUMBER.match(text):
        return _from_number(float(text))
    if len(text) > 64 or not _DURATION.match(text):
        raise _unreadable(where)
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
    return _from_number(-seconds if text.startswith("-") else seconds)


def _from_number(seconds: float) -> float:
    return seconds if 0 <= seconds < math.inf else math.inf


def _unreadable(where: str) -> BadRequest:
    return BadRequest(
        f"{where} must be seconds, or a duration such as 5m; 0: let the model go, negative: keep it",
        param=where,
    )
