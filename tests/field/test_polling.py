"""Scrapes, browser tabs and other programs that only look: they keep no model, and load none."""

from __future__ import annotations

import pytest

from app.domain.status import Status
from tests.event_loops import on_the_loop_of_production
from tests.proxy_environment import ANSWER, CHAT, USAGE, MakeRouter, Router, make_router, request, router
from tests.router_process import until
from tests.serving import Client, Reply, soon
from tests.upstreams import SIZED

__all__ = ["make_router", "on_the_loop_of_production", "router"]

POLLED = ("/metrics", "/props", "/slots", "/health", "/sw.js", "/favicon.ico", "/", "/v1/models")


def reading(path: str = "/props", *headers: str, method: str = "GET") -> bytes:
    head = "\r\n".join([f"{method} /upstream/m{path} HTTP/1.1", "Host: localhost", *headers, "", ""])
    return head.encode()


async def read(client: Client, *given: str, method: str = "GET") -> Reply:
    return await client.ask(reading(*given, method=method), method=method)


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
async def test_a_scrape_of_a_model_that_was_ejected_does_not_load_it(router: Router, method: str) -> None:
    client = await router.client()
    for path in POLLED:
        reply = await read(client, path, method=method)
        assert reply.status == 503
        if method != "HEAD":
            assert reply.code == "model_not_loaded"
            assert b"/v1/models/load" in reply.body
    assert (router.launcher.loads("m"), router.instance().queue.waiting) == (0, 0)
    metrics = await router.services.metrics.render()
    assert b'router_requests_total{model="m",status="rejected"} 0.0' in metrics, "an alert watches these"


async def test_a_scrape_of_a_loaded_model_is_no_use_of_it(router: Router) -> None:
    client, line = await router.warm()
    last_used = router.instance().lifecycle.last_used
    for path in POLLED:
        client.say(reading(path))
        if path != POLLED[0]:  # each takes its connection along
            line = await router.line()
        assert (await line.asked()).startswith(b"GET %b HTTP/1.1\r\n" % path.encode())
        assert router.instance().queue.in_flight == 0
        line.say(SIZED)
        assert (await client.reply(to="GET")).status == 200
    assert router.instance().lifecycle.last_used == last_used


async def test_a_model_that_is_polled_is_unloaded_when_it_is_idle(make_router: MakeRouter) -> None:
    router = await make_router(idle_timeout_sec=1)
    client, _ = await router.warm()
    router.answers = SIZED

    async def is_gone() -> bool:
        return (await read(client)).status == 503

    await until(is_gone)
    assert router.instance().status is not Status.READY
    assert router.launcher.loads("m") == 1


async def test_a_scrape_waits_for_nobody_and_nobody_for_it(router: Router) -> None:
    """Its model has one slot."""
    client, line = await router.warm()
    client.say(request())
    await line.asked()
    prometheus = await router.client()
    prometheus.say(reading("/metrics"))
    its_line = await router.line()
    await its_line.asked()
    line.say(ANSWER)
    assert (await client.reply()).body == USAGE
    await until(lambda: not router.instance().queue.in_flight)
    client.say(request())
    await line.answer(ANSWER)
    assert (await client.reply()).body == USAGE
    its_line.say(SIZED)
    assert (await prometheus.reply(to="GET")).status == 200


async def test_who_reads_does_not_hold_up_the_end_of_a_model(router: Router) -> None:
    client, line = await router.warm()
    client.say(reading("/slots"))
    await line.asked()
    instance = router.instance()
    assert await soon(router.services.manager.eject(instance, now=False, timeout_s=3600))
    reply = await client.reply(to="GET")
    assert (reply.status, reply.code) == (503, "model_not_loaded")
    assert (router.launcher.loads("m"), instance.readers) == (1, set())


async def test_who_reads_while_the_process_dies_does_not_load_it_again(router: Router) -> None:
    client, kept = await router.warm()
    client.say(reading("/props"))
    await kept.answer(SIZED)
    await client.reply(to="GET")
    client.say(reading("/props"))
    line = await router.line()  # a fresh one: a kept one that is lost says nothing of the process
    await line.asked()
    router.launcher.newest("m").die()
    line.reset()
    reply = await client.reply(to="GET")
    assert (reply.status, reply.code) == (503, "model_not_loaded")


KEY = "Authorization: Bearer secret"


@pytest.mark.parametrize(
    ("headers", "api"),
    [
        (["Sec-Fetch-Mode: navigate"], {}),
        (["Upgrade-Insecure-Requests: 1", KEY], {"api_keys": ["secret"]}),
    ],
    ids=["TLS", "plain HTTP"],
)
async def test_a_person_who_opens_the_chat_page_has_it_loaded(
    make_router: MakeRouter, headers: list[str], api: dict[str, list[str]]
) -> None:
    router = await make_router(api=api)
    router.answers = SIZED
    client = await router.client()
    assert (await read(client, "/", *headers)).status == 200
    assert (await read(client, "/bundle.js", "Sec-Fetch-Mode: no-cors", *headers[1:])).status == 200
    assert router.launcher.loads("m") == 1


async def test_a_frame_in_a_strangers_page_loads_nothing(router: Router) -> None:
    """From plain HTTP it looks like a person who opens the page."""
    client = await router.client()
    assert (await read(client, "/", "Upgrade-Insecure-Requests: 1")).status == 503
    assert router.launcher.loads("m") == 0


@pytest.mark.parametrize("mode", ["no-cors", "cors", "same-origin"])
async def test_what_a_page_fetches_by_itself_loads_nothing(router: Router, mode: str) -> None:
    client = await router.client()
    headers = (f"Sec-Fetch-Mode: {mode}", "Sec-Fetch-Site: same-origin", "Upgrade-Insecure-Requests: 1")
    assert (await read(client, "/favicon.ico", *headers)).status == 503
    assert router.launcher.loads("m") == 0


async def test_who_asks_something_has_it_loaded(router: Router) -> None:
    router.answers = ANSWER
    client = await router.client()
    assert (await client.ask(request(target="/upstream/m/tokenize"))).body == USAGE
    assert router.launcher.loads("m") == 1
    assert (await client.ask(request(target=CHAT))).body == USAGE


async def test_prompts_in_slots_are_for_admins(make_router: MakeRouter) -> None:
    router = await make_router(api={"api_keys": ["boss", {"key": "guest", "name": "guest"}]})
    router.answers = SIZED
    client = await router.client()
    boss, guest = "Authorization: Bearer boss", "Authorization: Bearer guest"
    assert (await client.ask(request(None, guest))).status == 200
    assert (await read(client, "/slots", guest)).code == "forbidden"
    assert (await read(client, "/slots", boss)).status == 200
