"""The data path's HTTP client towards llama-server, and the token counts read from the end of an answer."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterable, Mapping

import aiohttp
from yarl import URL

from app.core.events import Usage

IDLE_CONNECTION_S = 2.0
"""llama-server drops an idle connection after 5 s: ours must be gone well before."""

_NOT_OURS_TO_SET = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")


class UpstreamGone(Exception):
    """The connection failed: the process died, or was stopped."""


class Upstream:
    """Two pools: a stream gets a connection of its own, because llama-server closes it after every stream
    although it promises to keep it alive; short answers share a few kept ones."""

    def __init__(self) -> None:
        self._fresh = self._session(aiohttp.TCPConnector(limit=0, force_close=True))
        self._kept = self._session(aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_CONNECTION_S))

    @staticmethod
    def _session(connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None),  # the relay has its own, which ignores SSE comments
            auto_decompress=False,
            skip_auto_headers=_NOT_OURS_TO_SET,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )

    async def send(
        self, url: URL, method: str, headers: Mapping[str, str], body: bytes, *, fresh: bool
    ) -> aiohttp.ClientResponse:
        """The answer's head. The caller closes the response. Raises `UpstreamGone`."""
        if fresh or method != "POST":
            return await self._send(self._fresh, url, method, headers, body)
        try:
            return await self._send(self._kept, url, method, headers, body)
        except UpstreamGone:  # a kept connection may have been closed under our hands
            return await self._send(self._fresh, url, method, headers, body)

    @staticmethod
    async def _send(
        session: aiohttp.ClientSession, url: URL, method: str, headers: Mapping[str, str], body: bytes
    ) -> aiohttp.ClientResponse:
        try:
            return await session.request(
                method, url, headers=headers, data=body or None, allow_redirects=False
            )
        except (aiohttp.ClientError, ConnectionError) as error:
            raise UpstreamGone(str(error) or type(error).__name__) from error

    @property
    def closed(self) -> bool:
        return self._fresh.closed or self._kept.closed

    async def close(self) -> None:
        await self._fresh.close()
        await self._kept.close()


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
        text = b"".join(self._last)[-32768:]
        timings = _last_object(b'"timings":', text)
        usage = _last_object(b'"usage":', text) or _last_object(b'"usage":', self._first)
        cached = _count(timings, "cache_n")
        prompt = _count(timings, "prompt_n") + cached
        details = usage.get("prompt_tokens_details")
        return Usage(
            prompt=prompt or _count(usage, "prompt_tokens", "input_tokens"),
            generated=_count(timings, "predicted_n") or _count(usage, "completion_tokens", "output_tokens"),
            cached=cached or _count(details if isinstance(details, dict) else {}, "cached_tokens"),
            generation_tps=_speed(timings),
        )


_OBJECT = re.compile(rb"\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})")


def _last_object(key: bytes, text: bytes) -> dict[str, object]:
    """The JSON object, at most two levels deep, after the last `key`; empty if there is none."""
    start = text.rfind(key)
    found = _OBJECT.match(text, start + len(key)) if start >= 0 else None
    if found is None:
        return {}
    try:
        value = json.loads(found[1])
    except ValueError:  # a piece of a text that merely looks like it
        return {}
    return value if isinstance(value, dict) else {}


def _count(values: Mapping[str, object], *keys: str) -> int:
    return next((v for v in _numbers(values, keys) if v > 0), 0)


def _numbers(values: Mapping[str, object], keys: Iterable[str]) -> Iterable[int]:
    for key in keys:
        value = values.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            yield value


def _speed(timings: Mapping[str, object]) -> float | None:
    """Tokens per second; None where llama-server gives none or, after one token, no meaningful one."""
    value = timings.get("predicted_per_second")
    if isinstance(value, (int, float)) and _count(timings, "predicted_n") > 1 and 0 < value < 1e6:
        return float(value)
    return None
