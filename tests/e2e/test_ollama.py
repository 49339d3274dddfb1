"""Ollama's API before real llama-servers: what its programs ask, and a swap in between."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.router_process import MakeRouter, RouterProcess, chat, until, until_now

HI = [{"role": "user", "content": "Hello"}]
SHORT = {"num_predict": 4, "temperature": 0}
SEVEN = {"type": "object", "properties": {"a": {"enum": [7]}}, "required": ["a"]}


@pytest.fixture(scope="module")
def router(make_shared_router: MakeRouter, tiny_gguf: Path) -> RouterProcess:
    """With room for one model."""
    models = {
        "one": {"model_path": tiny_gguf, "params": {"n_ctx": 512}, "parallel_requests": 4},
        "two": {"model_path": tiny_gguf, "params": {"n_ctx": 512}},
        "embed": {"model_path": tiny_gguf, "params": {"embedding": True, "n_ctx": 256}},
    }
    return make_shared_router(models, system={"max_concurrent_models": 1})


def ask(router: RouterProcess, path: str, **body: Any) -> Any:
    """As curl sends it: without a type."""
    answer = router.client.post(f"/api/{path}", content=json.dumps(body))
    assert answer.status_code == 200, answer.text
    return answer.json()


def lines(router: RouterProcess, path: str, **body: Any) -> list[dict[str, Any]]:
    answer = router.client.post(f"/api/{path}", content=json.dumps(body))
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-ndjson"), answer.text
    assert answer.text.endswith("\n")
    return [json.loads(line) for line in answer.text.splitlines()]


def check_counts(last: dict[str, Any]) -> None:
    counts = ("total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count",
              "eval_duration")  # fmt: skip
    assert all(type(last[name]) is int and last[name] > 0 for name in counts), last
    assert last["total_duration"] >= last["load_duration"]


def test_a_chat_is_streamed_in_lines(router: RouterProcess) -> None:
    """Its text is forced: what a model of random weights says is another thing on another processor."""
    *pieces, last = lines(router, "chat", model="ONE:latest", messages=HI, format=SEVEN)
    assert json.loads("".join(piece["message"]["content"] for piece in pieces)) == {"a": 7}
    assert not any(piece["done"] for piece in pieces)
    assert {piece["model"] for piece in [*pieces, last]} == {"ONE:latest"}
    assert last["message"] == {"role": "assistant", "content": ""}
    assert (last["done"], last["done_reason"]) == (True, "stop")
    check_counts(last)


def test_the_whole_answer_is_one_object_and_counts_as_the_other_api_does(router: RouterProcess) -> None:
    whole = ask(router, "chat", model="one", messages=HI, format=SEVEN, stream=False)
    assert json.loads(whole["message"]["content"]) == {"a": 7}
    check_counts(whole)
    answer = router.client.post("/v1/chat/completions", json=chat("one")).json()
    assert whole["prompt_eval_count"] == answer["usage"]["prompt_tokens"]


def test_a_prompt_is_answered_and_goes_on(router: RouterProcess) -> None:
    *pieces, last = lines(router, "generate", model="one", prompt="Hello", format=SEVEN)
    assert json.loads("".join(piece["response"] for piece in pieces)) == {"a": 7}
    again = ask(router, "generate", model="one", prompt="And?", context=last["context"], options=SHORT,
                stream=False)  # fmt: skip
    assert again["prompt_eval_count"] > last["prompt_eval_count"]
    *pieces, last = lines(router, "generate", model="one", prompt="Hello", raw=True, format=SEVEN)
    assert json.loads("".join(piece["response"] for piece in pieces)) == {"a": 7}
    assert "context" not in last
    check_counts(last)
    raw = ask(router, "generate", model="one", prompt="Hello", raw=True, format=SEVEN, stream=False)
    assert json.loads(raw["response"]) == {"a": 7}


def test_a_prompt_that_is_too_long_is_shortened(router: RouterProcess) -> None:
    talk = [{"role": "user", "content": "of " * 150}, {"role": "assistant", "content": "to " * 150}] * 6
    for messages in (talk + HI, [{"role": "user", "content": "of " * 2000}]):
        answer = ask(router, "chat", model="one", messages=messages, options=SHORT, stream=False)
        assert answer["done"]
        assert 100 < answer["prompt_eval_count"] < 512
    assert ask(router, "generate", model="one", prompt="of " * 2000, raw=True, options=SHORT, stream=False)
    refused = router.client.post(
        "/api/chat", json={"model": "one", "messages": talk + HI, "truncate": False, "stream": False}
    )
    assert (refused.status_code, "exceed" in refused.json()["error"]) == (400, True)


def test_texts_become_vectors(router: RouterProcess) -> None:
    told = ask(router, "embed", model="embed", input=["the of", "and"])
    assert len(told["embeddings"]) == 2
    assert abs(sum(number**2 for number in told["embeddings"][0]) - 1) < 1e-3
    assert told["prompt_eval_count"] > 0
    same = router.client.post("/v1/embeddings", json={"model": "embed", "input": "the of"}).json()
    assert told["embeddings"][0] == pytest.approx(same["data"][0]["embedding"], abs=1e-4)
    assert ask(router, "embeddings", model="embed", prompt="the of")["embedding"] == pytest.approx(
        told["embeddings"][0], abs=1e-4
    )
    long = ask(router, "embed", model="embed", input=["of " * 5000, "and"])
    assert len(long["embeddings"]) == 2


def test_a_model_is_loaded_kept_and_let_go(router: RouterProcess) -> None:
    assert ask(router, "generate", model="two", keep_alive=-1)["done_reason"] == "load"
    (model,) = router.get("/api/ps")["models"]
    assert (model["name"], int(model["expires_at"][:4]) > 2200) == ("two:latest", True)
    lines(router, "chat", model="two", messages=HI, options=SHORT)
    (model,) = router.get("/api/ps")["models"]
    assert int(model["expires_at"][:4]) > 2200, "a request that does not say leaves it as it was"
    loads = router.loads("two")
    answer = ask(router, "chat", model="two", messages=[], keep_alive="0s")
    assert (answer["done_reason"], answer["message"]["content"]) == ("unload", "")
    until_now(lambda: router.get("/api/ps")["models"] == [])
    assert ask(router, "generate", model="two", keep_alive=0)["done_reason"] == "unload"
    assert router.loads("two") == loads


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("chat", {"model": "nope", "messages": HI}, 404),
        ("generate", {}, 404),
        ("chat", {}, 400),
        ("chat", {"model": "embed", "messages": HI}, 400),
        ("embed", {"model": "one", "input": "a"}, 501),
        ("embeddings", {"model": "one", "prompt": "a"}, 500),
        ("generate", {"model": "one", "prompt": "a", "format": {"type": "nonsense"}}, 400),
        ("generate", {"model": "one", "prompt": "a", "options": {"seed": "x"}}, 500),
        ("generate", {"model": "one", "prompt": "a", "images": ["aGVsbG8="]}, 400),
    ],
)
def test_a_mistake_is_told_before_the_first_line(
    router: RouterProcess, path: str, body: dict[str, Any], status: int
) -> None:
    answer = router.client.post(f"/api/{path}", json=body)
    assert (answer.status_code, answer.json().keys()) == (status, {"error"}), answer.text
    assert answer.headers["content-type"].startswith("application/json")
    assert isinstance(answer.json()["error"], str)


async def test_a_stream_whose_process_dies_ends_with_an_error_line(
    make_router: MakeRouter, tiny_long_gguf: Path
) -> None:
    router = make_router({"long": {"model_path": tiny_long_gguf, "params": {"n_ctx": 131072}}})
    body = {"model": "long", "messages": HI, "options": {"num_predict": 100_000}}
    async with router.open_client() as http, http.stream("POST", "/api/chat", json=body) as answer:
        found = answer.aiter_lines()
        assert json.loads(await anext(found))["done"] is False
        router.child("long").kill()
        rest = [json.loads(line) async for line in found]
    assert rest[-1].keys() == {"error"}
    assert not any(line.get("done") for line in rest)


COUNT = int(os.environ.get("MIXED_REQUESTS", "150"))
AT_ONCE = 50
ENDLESS = {"num_predict": 400}
Ask = Callable[[httpx.AsyncClient], Awaitable[bool]]


async def test_mixed_requests_over_both_apis_lose_nothing_and_leave_nothing(router: RouterProcess) -> None:
    """Two models share one place, so that a request for the other one is a swap. MIXED_REQUESTS: how many."""
    router.load("one")
    before = await until(lambda: left(router))
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(number: int, http: httpx.AsyncClient) -> tuple[str, bool]:
        ask = MIXED[number % len(MIXED)]
        async with gate:
            return ask.__name__, await ask(http)

    async with router.open_client() as http:
        http.timeout = httpx.Timeout(300)  # while one waits nothing is sent
        found = await asyncio.gather(*[one(number, http) for number in range(COUNT)])
    assert [name for name, is_answered in found if not is_answered] == []
    await until(lambda: grown(before, left(router)) == [], 60)


def grown(before: Left, after: Left | None) -> list[int] | None:
    return None if after is None else [new for old, new in zip(before, after, strict=True) if new > old]


Left = tuple[int, int, int]
"""Tasks, connections, open files."""


def left(router: RouterProcess) -> Left | None:
    """What must be the same when nobody asks and nothing is loaded; None while something is."""
    router.eject("one", "two", "embed")
    if router.children() or any(router.metric(name) for name in OF_REQUESTS):
        return None
    if router.metric("router_host_memory_bytes", kind="clients"):
        return None
    process, tasks = psutil.Process(router.pid), router.get("/health")["checks"]["manager"]["asyncio_tasks"]
    ours = [c for c in process.net_connections("tcp") if c.status != psutil.CONN_LISTEN]
    return tasks, len(ours), process.num_fds()


OF_REQUESTS = (
    "router_queue_depth",
    "router_requests_in_flight",
    "router_models_loaded",
    "router_model_memory_reserved_bytes",
)


async def chats_in_lines(http: httpx.AsyncClient) -> bool:
    answer = await http.post("/api/chat", json={"model": "one", "messages": HI, "options": SHORT})
    return bool(json.loads(answer.text.splitlines()[-1])["done"])


async def chats(http: httpx.AsyncClient) -> bool:
    return bool((await http.post("/v1/chat/completions", json=chat("one", max_tokens=4))).json()["choices"])


async def generates(http: httpx.AsyncClient) -> bool:
    body = {"model": "one", "prompt": "Hello", "options": SHORT, "stream": False, "keep_alive": "5m"}
    return (await http.post("/api/generate", json=body)).json()["done"] is True


async def streams(http: httpx.AsyncClient) -> bool:
    answer = await http.post("/v1/chat/completions", json=chat("one", max_tokens=4, stream=True))
    return answer.text.endswith("data: [DONE]\n\n")


async def embeds(http: httpx.AsyncClient) -> bool:
    answer = await http.post("/api/embed", json={"model": "embed", "input": "the"})
    return len(answer.json()["embeddings"]) == 1


async def embeds_as_openai_has_it(http: httpx.AsyncClient) -> bool:
    return bool((await http.post("/v1/embeddings", json={"model": "embed", "input": "the"})).json()["data"])


async def leaves_after_the_first_line(http: httpx.AsyncClient) -> bool:
    body = {"model": "one", "messages": HI, "options": ENDLESS}
    async with http.stream("POST", "/api/chat", json=body) as answer:
        async for line in answer.aiter_lines():
            return "message" in json.loads(line)
    return False


async def leaves_before_an_answer(http: httpx.AsyncClient) -> bool:
    body = json.dumps({"model": "one", "messages": HI, "options": ENDLESS, "stream": False}).encode()
    _, writer = await asyncio.open_connection(http.base_url.host, http.base_url.port)
    writer.write(
        b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )
    await writer.drain()
    writer.close()
    return True


async def names_no_model(http: httpx.AsyncClient) -> bool:
    answer = await http.post("/api/chat", json={"model": "nope", "messages": HI})
    return answer.status_code == 404


async def is_mistaken(http: httpx.AsyncClient) -> bool:
    body = {"model": "one", "prompt": "Hello", "options": {"seed": "x"}}
    return (await http.post("/api/generate", json=body)).status_code == 500


async def lets_go_after_it(http: httpx.AsyncClient) -> bool:
    body = {"model": "two", "prompt": "Hello", "options": SHORT, "stream": False, "keep_alive": 0}
    return (await http.post("/api/generate", json=body)).json()["done"] is True


async def lets_go(http: httpx.AsyncClient) -> bool:
    answer = await http.post("/api/generate", json={"model": "one", "keep_alive": 0})
    return bool(answer.json()["done_reason"] == "unload")


MIXED: list[Ask] = [
    chats_in_lines, chats, generates, streams, embeds, chats_in_lines, leaves_after_the_first_line,
    names_no_model, streams, leaves_before_an_answer, generates, is_mistaken, chats, embeds_as_openai_has_it,
    lets_go_after_it, chats, lets_go,
]  # fmt: skip
