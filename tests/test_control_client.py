"""What a probe of a dying llama-server may raise."""

from __future__ import annotations

import httpx
import pytest

from app.llama.control_client import open_client


async def test_a_connection_that_is_reset_at_once_is_an_error_of_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On uvloop one in a hundred such connections ended like this, and took the health monitor along."""

    async def ask_a_closed_socket(*_: object) -> httpx.Response:
        raise AttributeError("'NoneType' object has no attribute 'getpeername'")

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", ask_a_closed_socket)
    async with open_client() as client:
        with pytest.raises(httpx.RequestError):
            await client.get("http://127.0.0.1:1/health")
