"""Streams as clients read them that notice everything."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx


async def pieces_of(answer: httpx.Response) -> AsyncIterator[str]:
    """The text as it comes. A stream that failed breaks off behind the event that says so, only there."""
    text = ""
    try:
        async for piece in answer.aiter_text():
            text += piece
            yield piece
    except httpx.RemoteProtocolError:
        last = text.strip("\n").rpartition("\n\n")[2].lstrip("\n")  # heartbeats are empty lines
        if not (text.endswith("\n\n") and last.startswith('data: {"error"')):
            raise
