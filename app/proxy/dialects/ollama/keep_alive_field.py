"""`keep_alive` as Go reads it: a number is seconds, a text a duration with units. Pure."""

from __future__ import annotations

import re

from pydantic_core import to_json

from app.domain.errors import BadRequest

_SECONDS = {
    "ns": 1e-9, "us": 1e-6, "\u00b5s": 1e-6, "\u03bcs": 1e-6, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0,
}  # fmt: skip
_PART = re.compile(r"(\d+\.?\d*|\.\d+)([^.\d]*)", re.ASCII)
_LONGEST = 64
"""Characters of a text that anybody means."""


def keep_alive(value: object) -> float | None:
    """Seconds; negative: for ever. None: it does not say. Raises `BadRequest`."""
    if value is None:
        return None
    if isinstance(value, str):
        return _seconds(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    raise _wrong(f"Unsupported type: '{type(value).__name__}'")


def _seconds(text: str) -> float:
    rest = text[1:] if text[:1] in ("+", "-") else text
    if not rest or len(text) > _LONGEST:
        raise _wrong(f"time: invalid duration {_quoted(text)}")
    total = 0.0
    while rest and rest != "0":  # the only one that needs no unit
        part = _PART.match(rest)
        if part is None:
            raise _wrong(f"time: invalid duration {_quoted(text)}")
        number, unit = part.groups()
        if unit not in _SECONDS:
            what = f"unknown unit {_quoted(unit)}" if unit else "missing unit"
            raise _wrong(f"time: {what} in duration {_quoted(text)}")
        total += float(number) * _SECONDS[unit]
        rest = rest[part.end() :]
    return -total if text.startswith("-") else total


def _quoted(text: str) -> str:
    return to_json(text[:_LONGEST]).decode()


def _wrong(message: str) -> BadRequest:
    return BadRequest(message, param="keep_alive")
