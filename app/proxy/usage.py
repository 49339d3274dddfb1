"""Token counts and generation speed, read from the end of an answer without parsing its chunks."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping

from pydantic_core import from_json

from app.domain.events import Usage


class UsageScanner:
    """Keeps the first and the last chunks of an answer and reads its token counts once, at the end.

    llama-server writes `timings` and `usage` into its last event, or near the start or the end of a body.
    """

    def __init__(self) -> None:
        self._first = b""
        self._last: deque[bytes] = deque(maxlen=8)
        self.feed = self._last.append  # called for every chunk: nothing is looked at here

    def start(self, chunk: bytes) -> None:
        self._first = chunk[:2048]

    def usage(self) -> Usage:
        return usage_in(self._first, b"".join(self._last))


def usage_in(first: bytes, text: bytes) -> Usage:
    """The counts in the end of `text`, or in the `first` bytes of the answer, which may be the same."""
    text = text[-32768:]
    timings = _last_object(b'"timings":', text)
    cached = _count(timings, "cache_n")
    prompt = _count(timings, "prompt_n") + cached
    if prompt and (generated := _count(timings, "predicted_n")):  # they say it all
        return Usage(prompt, generated, cached, _speed(timings))
    usage = {**_last_object(b'"usage":', first[:2048]), **_last_object(b'"usage":', text)}
    read = _count(usage, "cache_read_input_tokens")  # Anthropic's, which counts cached tokens apart
    return Usage(
        prompt=prompt or read + _count(usage, "prompt_tokens", "input_tokens"),
        generated=_count(timings, "predicted_n") or _count(usage, "completion_tokens", "output_tokens"),
        cached=cached or read or _cached(usage),
        generation_tps=_speed(timings),
    )


def _cached(usage: Mapping[str, object]) -> int:
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
    return _count(details, "cached_tokens") if isinstance(details, dict) else 0


_OBJECT = re.compile(rb"\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})")


def _last_object(key: bytes, text: bytes) -> dict[str, object]:
    """The JSON object, at most two levels deep, after the last `key`; empty if there is none."""
    start = text.rfind(key)
    found = _OBJECT.match(text, start + len(key)) if start >= 0 else None
    if found is None:
        return {}
    try:
        value = from_json(found[1])
    except ValueError:  # a piece of a text that merely looks like it
        return {}
    return value if isinstance(value, dict) else {}


def _count(values: Mapping[str, object], *keys: str) -> int:
    for key in keys:
        value = values.get(key)
        if type(value) is int and value > 0:  # no bool
            return value
    return 0


def _speed(timings: Mapping[str, object]) -> float | None:
    """Tokens per second; None where llama-server gives none or, after one token, no meaningful one."""
    value = timings.get("predicted_per_second")
    if isinstance(value, (int, float)) and _count(timings, "predicted_n") > 1 and 0 < value < 1e6:
        return float(value)
    return None
