"""The lines of a log as they come, for one reader."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from app.llama.output.lines import text

FOLLOWER_LINES = 1000
MAX_LINE = 16 * 1024  # a follower gets longer lines in pieces


class Follower:
    """Lines as they come, for one reader. A reader that is too slow misses lines and is told how many."""

    def __init__(self, forget: Callable[[Follower], None]) -> None:
        self._forget = forget
        self._lines: deque[str] = deque()
        self._partial = b""
        self._missed = 0
        self._closed = False
        self._news = asyncio.Event()

    def push(self, data: bytes) -> None:
        *lines, self._partial = (self._partial + data).split(b"\n")
        if len(self._partial) > MAX_LINE:
            lines.append(self._partial)
            self._partial = b""
        for line in lines:
            if len(self._lines) >= FOLLOWER_LINES:
                self._lines.popleft()
                self._missed += 1
            self._lines.append(text(line))
        if lines:
            self._news.set()

    def close(self) -> None:
        """The iteration ends after the lines that are there. Safe to call twice."""
        self._closed = True
        self._forget(self)
        self._news.set()

    def __aiter__(self) -> Follower:
        return self

    async def __anext__(self) -> str:
        while not self._lines:
            if self._closed:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        if self._missed:
            missed, self._missed = self._missed, 0
            return f"[router: {missed} lines left out, the reader was too slow]"
        return self._lines.popleft()

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
