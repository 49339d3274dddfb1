"""The page at https://nas/llm/, behind a real nginx, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest

from tests.e2e.browser import browser, chromium
from tests.e2e.nginx import in_front
from tests.e2e.pages import KEY, TALKS, row, talk_on
from tests.patience import WAIT_S
from tests.router_process import MakeRouter, RouterProcess


@pytest.fixture
def router(make_router: MakeRouter, tiny_gguf: Path) -> RouterProcess:
    quick = {"model_path": tiny_gguf, **TALKS}
    return make_router({"quick": quick}, api={"api_keys": [KEY]}, key=KEY)


@pytest.fixture
def address(router: RouterProcess, tmp_path: Path) -> Iterator[str]:
    with in_front(tmp_path, router.url) as url:
        yield f"{url}/llm"


def test_the_interactive_documentation_finds_its_document_there(address: str) -> None:
    with httpx.Client(headers={"Authorization": f"Bearer {KEY}"}, timeout=WAIT_S, trust_env=False) as client:
        page = client.get(f"{address}/docs").raise_for_status()
        (document,) = re.findall('href="([^"]+json)">OpenAPI', page.text)
        found = client.get(urljoin(str(page.url), document)).raise_for_status().json()
        (server,) = found["servers"]
        assert urljoin(f"{address}/openapi.json", server["url"]) == f"{address}/"


async def test_login_streams_buttons_log_and_chat_work_there(router: RouterProcess, address: str) -> None:
    async with browser(chromium()) as page:
        await page.open(address)  # nginx adds the slash
        await page.type_into("dialog input[type=password]", KEY)
        await page.click("Log in", "dialog")
        await page.shows("Live", "#connection")
        await page.shows("Host memory", "#memory")  # the other stream
        await page.click("Load quick")
        await page.shows("Ready", row("quick"))
        await page.click("quick", row("quick"))
        await page.shows("starting quick on port", "dialog pre")
        await page.shows("It is ready already", "dialog")
        assert page.complaints == []
        (cookie,) = (await page.command("Network.getAllCookies"))["cookies"]
        assert (cookie["path"], cookie["httpOnly"], cookie["sameSite"]) == ("/llm", True, "Strict")
        chat_page = await page.js("document.querySelector('dialog a').href")
        assert chat_page == f"{address}/upstream/quick/"
        await page.click("Close", "dialog")
        await page.click("Log out")
        await page.shows("wants an API key", "dialog")
        assert (await page.command("Network.getAllCookies"))["cookies"] == []
        await page.type_into("dialog input[type=password]", KEY)
        await page.click("Log in", "dialog")
        await page.shows("Ready", row("quick"))
        await talk_on(page, router, chat_page)
