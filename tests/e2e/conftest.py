"""What the end-to-end tests share. Each module starts its own `router`."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.router_process import RouterProcess


@pytest.fixture
async def http(router: RouterProcess) -> AsyncIterator[httpx.AsyncClient]:
    async with router.open_client() as client:
        yield client
