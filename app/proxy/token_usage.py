"""Token counts, generation speed, and whether all has come: read from the end of an answer without parsing
its chunks."""

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
        self._first = chunk[:FIRST_BYTES]

    def usage(self) -> Usage:
        return usage_in(self._first, b"".join(self._last))

    @property
    def is_over(self) -> bool:
        """Of a stream: what follows, if anything does, is not of the answer."""
        text = b"".join(self._last)
        return text.endswith(b"\n\n") and _LAST_EVENT.search(text) is not None


_LAST_EVENT = re.compile(rb'^data: \[DONE\]|^data: \{.*"stop":true', re.MULTILINE)
"""Of chat and text completions, and of llama-server itself. In a text its quotation marks are escaped."""


FIRST_BYTES, LAST_BYTES = 2048, 32768


def usage_of(answer: bytes) -> Usage:
    """Of a plain one, as a whole."""
    return usage_in(answer if len(answer) > LAST_BYTES else b"", answer)


def usage_in(first: bytes, text: bytes) -> Usage:
    """The counts in the end of `text`, or in the `first` bytes of the answer."""
    text = text[-LAST_BYTES:]
    timings = _last_object(b'"timings":', text)
    prompt = generated = cached = 0
    tps = None
    if timings:
        cached = _count(timings, "cache_n")
        prompt, generated = _count(timings, "prompt_n") + cached, _count(timings, "predicted_n")
        tps = _speed(timings, generated)
    if prompt and generated:  # they say it all
        return Usage(prompt, generated, cached, tps)
    usage = _last_object(b'"usage":', text)
    if first:
        usage = {**_last_object(b'"usage":', first[:FIRST_BYTES]), **usage}
    read = _count(usage, "cache_read_input_tokens")  # Anthropic's, which counts cached tokens apart
    return Usage(
        prompt or read + (_count(usage, "prompt_tokens") or _count(usage, "input_tokens")),
        generated or _count(usage, "completion_tokens") or _count(usage, "output_tokens"),
        cached or read or _cached(usage),
        tps,
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


def _count(values: Mapping[str, object], key: str) -> int:
    value = values.get(key)
    return value if type(value) is int and value > 0 else 0  # no bool


def _speed(timings: Mapping[str, object], generated: int) -> float | None:
    """Tokens per second; None where llama-server gives none or, after one token, no meaningful one."""
    value = timings.get("predicted_per_second")
    if generated > 1 and isinstance(value, (int, float)) and 0 < value < 1e6:
        return float(value)
    return None
