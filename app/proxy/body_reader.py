"""Reading bodies beside the event loop."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.to_thread

from app.proxy.body import SMALL_BYTES, fields_of
from app.proxy.content_encoding import gunzip


class BodyReader:
    """Large bodies are read in a thread, one at a time: two that compute would share the loop's turns."""

    def __init__(self) -> None:
        self._one = anyio.CapacityLimiter(1)

    async def unpacked(self, body: bytes, limit: int) -> bytes:
        """As `gunzip`."""
        return await anyio.to_thread.run_sync(gunzip, body, limit, limiter=self._one)

    async def fields(self, body: bytes) -> dict[str, Any]:
        """As `fields_of`."""
        if len(body) <= SMALL_BYTES:
            return fields_of(body)
        return await anyio.to_thread.run_sync(fields_of, body, limiter=self._one)
