"""What tests do on the page."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.e2e.browser import Page, browser, chromium
from tests.gates import Gate
from tests.patience import WAIT_S, Patience
from tests.router_process import MakeRouter, RouterProcess, chat, until
from tests.slow_server import slow

KEY = "secret-key"
TALKS = {"params": {"n_ctx": 4096}, "extra_args": ["--predict", "16"]}
"""For llama-server's own page: its prompt is long, and it sets no end to what a model without sense says."""


@pytest.fixture(scope="module")
def slow_llama_server(llama_server: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return slow(tmp_path_factory.mktemp("binary"), llama_server)


@pytest.fixture(scope="module")
def gate_of_big(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    return Gate(tmp_path_factory.mktemp("gates") / "big")


@pytest.fixture(scope="module")
def gate_of_mute(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    return Gate(tmp_path_factory.mktemp("gates") / "mute")


@pytest.fixture(scope="module")
def router(
    make_shared_router: MakeRouter,
    slow_llama_server: Path,
    tiny_gguf: Path,
    truncated_gguf: Path,
    gate_of_big: Gate,
    gate_of_mute: Gate,
) -> RouterProcess:
    return make_shared_router(
        {
            "quick": {"model_path": tiny_gguf},
            "big": {"model_path": tiny_gguf, "env": {"LOAD_S": "3", **gate_of_big.env}},
            "embed": {"model_path": tiny_gguf, "params": {"embedding": True}},
            "broken": {"model_path": truncated_gguf},
            "mute": {"model_path": tiny_gguf, "env": {"MUTE": "1", **gate_of_mute.env}},
            "talks": {"model_path": tiny_gguf, "keep_cache": "disk"},
        },
        binary=slow_llama_server,
        system={"max_concurrent_models": 1, "max_swap_wait_sec": 600},
    )


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    """A tab that is not allowed to complain."""
    async with browser(chromium()) as page:
        yield page


def row(alias: str) -> str:
    return f'[role="row"]:has(button[aria-label$=" {alias}"])'


async def talk_on(page: Page, router: RouterProcess, chat_page: str) -> None:
    """As a page at that address talks, by the cookie; also on llama-server's own, where the build has one."""
    await page.go(chat_page)
    await until(lambda: page.js(f"location.href === {json.dumps(chat_page)}"))
    body = json.dumps(json.dumps(chat("quick", stream=True)))
    headers = "{'Content-Type': 'application/json'}"
    told = await page.js(
        f"fetch('v1/chat/completions', {{method: 'POST', headers: {headers}, body: {body}}})"
        ".then((answer) => answer.text())"
    )
    assert told.startswith("data: {") and told.endswith("data: [DONE]\n\n"), told
    if await has_a_page(router):
        await talk_on_its_own(page, router, chat_page)


async def has_a_page(router: RouterProcess) -> bool:
    """What llama-server answers is passed on, whatever it is."""
    url, key = router.past_the_router("quick")
    async with httpx.AsyncClient(
        headers={"Authorization": f"Bearer {key}"}, timeout=WAIT_S, trust_env=False
    ) as http:
        own = await http.get(f"{url}/")
    passed = router.client.get("/upstream/quick/")
    assert (passed.status_code, passed.content) == (own.status_code, own.content)
    return own.status_code == 200


REOPEN_S = 20.0
"""Nothing was on its way to llama-server for so long: then its page is opened anew."""


async def talk_on_its_own(page: Page, router: RouterProcess, chat_page: str) -> None:
    generated = partial(router.metric, "router_tokens_total", model="quick", kind="generated")
    before, in_vain = generated(), Patience(REOPEN_S)

    async def answered() -> bool:
        """It throws away what is sent before it has finished drawing itself, and may show it all the same."""
        nonlocal in_vain
        if generated() > before:
            return True
        if "Hello there" not in await page.text():
            if not await page.js("document.querySelector('textarea')?.value"):
                await page.type_into("textarea", "Hello there")
            await page.key("Enter")
        if router.status("quick")["in_flight"]:
            in_vain = Patience(REOPEN_S)
        elif in_vain.is_over:
            in_vain = Patience(REOPEN_S)
            await page.go(chat_page)
        return False

    await page.go(chat_page)
    await until(answered, 4 * REOPEN_S)
    await page.shot("chat")
