"""The page in a real browser, on a real router."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from tests.e2e.browser import Page
from tests.e2e.pages import (
    KEY,
    TALKS,
    gate_of_big,
    gate_of_mute,
    page,
    router,
    row,
    slow_llama_server,
    talk_on,
)
from tests.gates import Gate
from tests.router_process import MakeRouter, RouterProcess, chat

__all__ = ["gate_of_big", "gate_of_mute", "page", "router", "slow_llama_server"]  # fixtures


async def test_a_swap_is_seen_as_it_happens(router: RouterProcess, page: Page, gate_of_big: Gate) -> None:
    router.load("quick")
    served = router.get("/v1/queue/stats")["summary"]["total_processed"]
    await page.open(router.url)
    await page.shows("Ready", row("quick"))
    await page.shot("quiet")
    async with router.open_client() as http:
        with gate_of_big.closed():
            asking = [
                asyncio.create_task(http.post("/v1/chat/completions", json=chat("big"))) for _ in range(3)
            ]
            await page.shows("big", "#now")
            await page.shows("Loading", row("big"))
            await page.shows("%", row("big"))
            await page.shows("3", f"{row('big')} [data-label=Waiting]")
            await page.shows("quick", "#now")
            await page.shows("≈", "#now")
            await page.shows("quick had to stop: only so many models may be loaded at once", "#now")
            await page.shot("swap")
            await page.size(390, 844, dark=True)
            assert await page.js("document.documentElement.scrollWidth <= innerWidth")
            await page.shot("swap-phone")
        await page.shows("Ready", row("big"))
        assert {(await task).status_code for task in asking} == {200}
    await page.shows("Off", row("quick"))
    await page.shows("\u2013", f"{row('big')} [data-label=Waiting]")
    await page.size(1500, 950, dark=True)
    await page.shows("big", "#events")
    await page.shows(f"{served + 3}\u00a0served", "#queue")
    await page.shot("after")
    assert page.complaints == []


async def test_who_waits_for_whom_is_said(router: RouterProcess, page: Page) -> None:
    router.load("big")  # so that the time of its last load is known
    router.load("quick")
    await page.open(router.url)
    async with router.open_client() as http:
        with router.frozen("quick"):
            first = asyncio.create_task(http.post("/v1/chat/completions", json=chat("quick")))
            await page.shows("1", f"{row('quick')} [data-label='In flight']")
            second = asyncio.create_task(http.post("/v1/chat/completions", json=chat("big")))
            await page.shows("big waits for room", "#now")
            await page.shows(
                "It takes the place of quick, which still answers 1 request and takes new ones", "#now"
            )
            await page.shows("to load, last time", "#now")
            await page.shows("waiting for quick", row("big"))
            await page.shot("waiting")
        assert {(await task).status_code for task in (first, second)} == {200}
    assert page.complaints == []


async def test_a_load_that_tells_nothing_shows_its_time(
    router: RouterProcess, page: Page, gate_of_mute: Gate
) -> None:
    bar = "document.querySelector('#now .progress.unknown:not([hidden])')?.ariaLabel"
    await page.open(router.url)
    for seen in ("so far", "last time"):
        router.eject("quick", "big", "mute")
        await page.shows("Off", row("mute"))
        with gate_of_mute.closed():
            await page.click("Load mute")
            await page.shows(seen, "#now")
            await page.shows("Starting mute", "#now")
            assert await page.js(bar) == "Loading mute"
            assert "%" not in await page.text("#now")
        await page.shows("Ready", row("mute"))


async def test_what_is_kept_of_conversations_is_shown(router: RouterProcess, page: Page) -> None:
    await page.open(router.url)
    await page.shows("keeps chats", row("talks"))
    router.client.post("/v1/chat/completions", json=chat("talks")).raise_for_status()
    router.eject("talks")
    await page.shows("tokens", row("talks"))
    kept = router.status("talks")["kept_tokens"]
    assert kept > 8
    await page.shows(f"keeps {kept} tokens", row("talks"))
    await page.click("talks", row("talks"))
    await page.shows(f"kept {kept} tokens on disk", "dialog")


async def test_load_eject_and_reset_do_what_they_say(router: RouterProcess, page: Page) -> None:
    router.load("big")
    await page.open(router.url)
    await page.click("Load quick")
    await page.shows("big", "dialog")
    await page.shot("load")
    await page.click("Load it", "dialog")
    await page.shows("Ready", row("quick"))
    assert (router.state("quick"), router.state("big")) == ("ready", "off")

    await page.click("Eject quick")
    await page.click("Eject", "dialog")
    await page.shows("Off", row("quick"))
    assert router.state("quick") == "off"

    router.client.post("/v1/chat/completions", json=chat("broken"))
    await page.shows("Failed", row("broken"))
    await page.shows("truncated.gguf", "#now")
    await page.shows("\u2013", f"{row('broken')} [data-label=Waiting]")
    await page.shot("failed")
    await page.click("Reset broken")
    await page.click("Reset", "dialog")
    await page.shows("Off", row("broken"))
    assert router.state("broken") == "off"

    router.load("quick")
    await page.click("quick", row("quick"))
    await page.shows("starting quick on port", "dialog pre")
    await page.shot("details")
    assert page.complaints == []


async def test_the_page_comes_back_when_the_router_does(router: RouterProcess, page: Page) -> None:
    await page.open(router.url)
    await page.shows("6 models")
    router.signal(signal.SIGTERM)
    await router.ended()
    await page.shows("Disconnected", "#connection")
    await page.shot("lost")
    router.start()
    router.wait_until_it_answers()
    await page.shows("Live", "#connection")


async def test_a_login_opens_streams_buttons_and_the_chat_page(
    make_router: MakeRouter, slow_llama_server: Path, tiny_gguf: Path, page: Page
) -> None:
    router = make_router(
        {"quick": {"model_path": tiny_gguf, **TALKS}},
        binary=slow_llama_server,
        api={"api_keys": [{"key": KEY, "admin": True}]},
        key=KEY,
    )
    await page.open(router.url)
    await page.shows("wants an API key", "dialog")
    assert page.complaints == []
    await page.type("not-this-one")
    await page.click("Log in", "dialog")
    await page.shows("not accepted", "dialog")
    await page.shot("login")
    await page.type(KEY)  # over the wrong one, which is selected
    await page.click("Log in", "dialog")
    await page.shows("Off", row("quick"))
    await page.click("Load quick")
    await page.shows("Ready", row("quick"))
    await page.click("quick", row("quick"))
    await page.shows("starting quick on port", "dialog pre")
    seen = "document.cookie + location.href + JSON.stringify([localStorage, sessionStorage])"
    assert KEY not in await page.js(seen)
    assert "router_session" not in await page.js(seen)
    chat_page = await page.js("document.querySelector('dialog a').href")

    await page.go(f"{router.url}/")  # a reload needs no key
    await page.shows("Ready", row("quick"))
    await page.click("Log out")
    await page.shows("wants an API key", "dialog")
    assert await page.js("fetch('/v1/models').then((answer) => answer.status)") == 401
    await page.type(KEY)
    await page.click("Log in", "dialog")
    await page.shows("Ready", row("quick"))
    await talk_on(page, router, chat_page)


async def test_a_key_without_admin_may_look(
    make_router: MakeRouter, slow_llama_server: Path, tiny_gguf: Path, page: Page
) -> None:
    router = make_router(
        {"quick": {"model_path": tiny_gguf}},
        binary=slow_llama_server,
        api={"api_keys": [{"key": KEY, "admin": False}]},
        key=KEY,
    )
    await page.open(router.url)
    await page.shows("wants an API key", "dialog")
    await page.type(KEY)
    await page.click("Log in", "dialog")
    await page.shows("Off", row("quick"))
    assert await page.js("document.querySelector('.act').disabled")
    await page.click("quick", row("quick"))
    await page.shows("If it were loaded now", "dialog")
    assert "Log" not in await page.text("dialog")
    assert await page.js("document.querySelector('dialog a').hidden")
    assert page.complaints == []


async def test_a_login_that_has_ended_is_asked_for_again(
    make_router: MakeRouter, slow_llama_server: Path, tiny_gguf: Path, page: Page
) -> None:
    """Sessions do not outlive the router."""
    router = make_router(
        {"quick": {"model_path": tiny_gguf}}, binary=slow_llama_server, api={"api_keys": [KEY]}, key=KEY
    )
    await page.open(router.url)
    await page.type_into("dialog input", KEY)
    await page.click("Log in", "dialog")
    await page.shows("Live", "#connection")
    router.signal(signal.SIGTERM)
    await router.ended()
    router.start()
    router.wait_until_it_answers()
    await page.shows("wants an API key", "dialog")
    await page.type_into("dialog input", KEY)
    await page.click("Log in", "dialog")
    await page.shows("Live", "#connection")
