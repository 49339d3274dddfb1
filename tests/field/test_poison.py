"""A request that crashes llama-server, sent again and again beside people whose requests are good."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.router_process import MakeRouter, RouterProcess, chat, until, until_now
from tests.shared_library import compile_library

Fragile = Callable[..., RouterProcess]

ABORT, EXIT, KILL = "CRASH-BY-ABORT", "CRASH-BY-EXIT", "KILLED-FROM-OUTSIDE"
CHAT = "/v1/chat/completions"
MODELS = ("fifty", "at-once", "different", "every", "stream", "messages", "reproduced", "waits")
"""One for each test: what another one crashed would count."""


@pytest.fixture(scope="session")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = Path(__file__).parents[1] / "fragile.c"
    return compile_library(source, tmp_path_factory.mktemp("fragile") / "fragile.so")


@pytest.fixture(scope="module")
def fragile(make_shared_router: MakeRouter, tiny_long_gguf: Path, preloaded: Path) -> Fragile:
    """Makes routers whose llama-servers can be crashed."""

    def make(*aliases: str, slots: int = 4, **system: Any) -> RouterProcess:
        entry = {
            "model_path": str(tiny_long_gguf),
            "parallel_requests": slots,
            "env": {"LD_PRELOAD": str(preloaded)},
            "params": {"n_ctx": 2048},
        }
        return make_shared_router(
            dict.fromkeys(aliases, entry), system={"max_concurrent_models": len(aliases), **system}
        )

    return make


@pytest.fixture(scope="module")
def router(fragile: Fragile) -> RouterProcess:
    """A second crash that is held against a model makes it fail."""
    return fragile(*MODELS, max_restarts=1)


@pytest.fixture(scope="module")
def patient(fragile: Fragile) -> RouterProcess:
    """Requests are refused for a moment only, and models are started again and again."""
    return fragile("refused", "killed", slots=1, crash_quarantine_sec=1, max_restarts=20)


def bad(model: str, marker: str = ABORT, **more: Any) -> dict[str, Any]:
    return chat(model, content=f"a secret prompt, {marker}", **more)


def code_of(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["code"])


def deaths(router: RouterProcess, model: str) -> int:
    return len(re.findall(rf"WARNING {model}: crashed", router.log()))


async def post(client: httpx.AsyncClient, body: dict[str, Any]) -> httpx.Response:
    return await client.post(CHAT, json=body)


async def beside_five_clients(router: RouterProcess, model: str, attack: Any) -> list[httpx.Response]:
    """What an attack is answered while five clients ask; each of their requests has to be answered well."""
    over = asyncio.Event()

    async def ask(client: httpx.AsyncClient, number: int) -> int:
        count = 0
        while not over.is_set():
            answer = await post(client, chat(model, max_tokens=30, content=f"client {number}, {count}"))
            assert answer.status_code == 200, answer.text
            count += 1
        return count

    async with router.open_client() as client:
        good = [asyncio.create_task(ask(client, number)) for number in range(5)]
        answers: list[httpx.Response] = await attack(client)
        over.set()
        assert all(await asyncio.gather(*good)), "a client was never answered"
    return answers


async def test_the_same_crashing_request_fifty_times_kills_twice(router: RouterProcess) -> None:
    async def attack(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await post(client, bad("fifty")) for _ in range(50)]

    answers = await beside_five_clients(router, "fifty", attack)
    for answer in answers:
        assert (answer.status_code, code_of(answer)) == (502, "request_crashes_model")
        assert answer.headers["x-should-retry"] == "false"
        assert "retry-after" not in answer.headers
    assert deaths(router, "fifty") == 2
    assert router.metric("router_requests_quarantined_total", model="fifty") == 50
    assert router.state("fifty") == "ready"


async def test_fifty_crashing_requests_at_once_kill_twice(router: RouterProcess) -> None:
    async def attack(client: httpx.AsyncClient) -> list[httpx.Response]:
        return await asyncio.gather(*(post(client, bad("at-once", EXIT)) for _ in range(50)))

    answers = await beside_five_clients(router, "at-once", attack)
    assert {code_of(answer) for answer in answers} == {"request_crashes_model"}
    assert deaths(router, "at-once") <= 3
    assert router.state("at-once") == "ready"


async def test_many_different_crashing_requests_do_not_fail_the_model_of_others(
    router: RouterProcess,
) -> None:
    async def attack(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await post(client, bad("different", seed=number)) for number in range(3)]

    answers = await beside_five_clients(router, "different", attack)
    assert {code_of(answer) for answer in answers} == {"request_crashes_model"}
    assert deaths(router, "different") == 6
    assert router.state("different") == "ready"


def test_a_model_that_every_request_crashes_has_failed(router: RouterProcess) -> None:
    codes = [code_of(router.client.post(CHAT, json=bad("every", seed=number))) for number in range(3)]
    assert codes[0] == "request_crashes_model"
    assert codes[-1] in ("load_failed", "model_failed")
    assert router.state("every") == "failed"


@pytest.mark.parametrize(("model", "path"), [("stream", CHAT), ("messages", "/v1/messages")])
def test_a_crashing_stream_is_told_why_it_ends(router: RouterProcess, model: str, path: str) -> None:
    for _ in range(2):
        answer = router.client.post(path, json=bad(model, stream=True))
        assert f"this request crashed llama-server for {model} twice" in answer.text
    assert deaths(router, model) == 2


def test_what_is_refused_can_be_reproduced_and_no_prompt_is_in_the_log(router: RouterProcess) -> None:
    body = httpx.Request("POST", router.url, json=bad("reproduced")).content
    for _ in range(3):
        answer = router.client.post(CHAT, content=body, headers={"Content-Type": "application/json"})
        assert "secret" not in answer.text
    (line,) = re.findall(r"^.*reproduced: .*is refused for.*$", router.log(), re.M)
    assert f"POST {CHAT}, {len(body)} bytes, sha256 {hashlib.sha256(body).hexdigest()}" in line
    assert "secret" not in router.log()


def test_a_refusal_ends_after_its_time(patient: RouterProcess) -> None:
    def ask() -> httpx.Response:
        answer: httpx.Response = patient.client.post(CHAT, json=bad("refused"))
        return answer

    assert code_of(ask()) == "request_crashes_model"
    until_now(lambda: ask().status_code == 502 and deaths(patient, "refused") > 2)


def test_what_is_killed_from_outside_is_held_against_no_request(patient: RouterProcess) -> None:
    """By the kernel, for instance, when memory runs out: the next time there may be enough."""
    for _ in range(2):
        answer = patient.client.post(CHAT, json=bad("killed", KILL))
        assert (answer.status_code, code_of(answer)) == (502, "model_crashed")
    assert not re.search("killed: .*is refused for", patient.log())
    assert deaths(patient, "killed") == 4
    assert patient.metric("router_requests_quarantined_total", model="killed") == 0


async def test_a_good_stream_that_waits_is_served_although_it_was_there_at_the_crash(
    router: RouterProcess,
) -> None:
    async with router.open_client() as client:
        await post(client, chat("waits"))
        with router.frozen("waits"):
            crashing = asyncio.create_task(post(client, bad("waits", seed=1)))
            good = asyncio.create_task(post(client, chat("waits", stream=True)))
            await until(lambda: router.status("waits")["in_flight"] == 2)
        answer = await good
        assert answer.status_code == 200
        assert answer.text.endswith("data: [DONE]\n\n")
        assert code_of(await crashing) == "request_crashes_model"
    assert deaths(router, "waits") == 2
