"""Ollama's API before real llama-servers: what its programs ask, and a swap in between."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
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


COUNT, AT_ONCE = 600, 100


async def test_600_mixed_requests_over_both_apis_lose_nothing(router: RouterProcess) -> None:
    """Two models share one place; nothing is left behind."""
    router.load("one")
    before = router.metric("router_requests_total", status="success")
    gate = asyncio.Semaphore(AT_ONCE)
    async with router.open_client() as http:
        http.timeout = httpx.Timeout(300)  # while one waits nothing is sent
        asked = [_one(http, gate, number) for number in range(COUNT)]
        found = await asyncio.gather(*asked)
    assert found == ["ok"] * COUNT
    await until(lambda: router.metric("router_requests_total", status="success") == before + COUNT)
    assert router.is_quiet("one")
    assert router.is_quiet("embed")
    assert router.metric("router_queue_depth") == router.metric("router_requests_in_flight") == 0


async def _one(http: httpx.AsyncClient, gate: asyncio.Semaphore, number: int) -> str:
    async with gate:
        kind = number % 6
        if kind == 0:
            answer = await http.post("/api/chat", json={"model": "one", "messages": HI, "options": SHORT})
            return "ok" if json.loads(answer.text.splitlines()[-1])["done"] else answer.text
        if kind == 1:
            answer = await http.post("/v1/chat/completions", json=chat("one", max_tokens=4))
            return "ok" if answer.json()["choices"] else answer.text
        if kind == 2:
            body = {"model": "one", "prompt": "Hello", "options": SHORT, "stream": False}
            answer = await http.post("/api/generate", json=body)
            return "ok" if answer.json()["done"] else answer.text
        if kind == 3:
            answer = await http.post("/v1/chat/completions", json=chat("one", max_tokens=4, stream=True))
            return "ok" if answer.text.endswith("data: [DONE]\n\n") else answer.text
        if kind == 4:
            answer = await http.post("/api/embed", json={"model": "embed", "input": "the"})
            return "ok" if answer.json()["embeddings"] else answer.text
        answer = await http.post("/v1/embeddings", json={"model": "embed", "input": "the"})
        return "ok" if answer.json()["data"] else answer.text
