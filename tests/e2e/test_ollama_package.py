"""The `ollama` package before a router with room for one model: what its programs do, swaps in between."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import ollama
import pytest

from tests.router_process import MakeRouter, RouterProcess, until_now

HI = [{"role": "user", "content": "Hello"}]
SHORT = {"num_predict": 4, "temperature": 0}
SEVEN = {"type": "object", "properties": {"a": {"enum": [7]}}, "required": ["a"]}


@pytest.fixture(scope="module")
def router(make_shared_router: MakeRouter, tiny_gguf: Path) -> RouterProcess:
    models = {
        "chat": {"model_path": tiny_gguf, "params": {"n_ctx": 512}},
        "embed": {"model_path": tiny_gguf, "params": {"embedding": True, "n_ctx": 256}},
    }
    api = {"api_keys": ["secret"]}
    return make_shared_router(models, api=api, system={"max_concurrent_models": 1}, key="secret")


@pytest.fixture(scope="module")
def client(router: RouterProcess) -> Iterator[ollama.Client]:
    yield ollama.Client(router.url, headers={"Authorization": "Bearer secret"}, trust_env=False, timeout=300)


def test_it_finds_the_models(client: ollama.Client) -> None:
    assert {model.model for model in client.list().models} == {"chat:latest", "embed:latest"}
    shown = client.show("chat")
    assert shown.capabilities == ["completion", "tools"]
    assert shown.modelinfo is not None
    assert shown.modelinfo["llama.context_length"] == 4096


def test_it_chats_whole_and_streamed(client: ollama.Client) -> None:
    whole = client.chat("chat", HI, format=SEVEN)
    assert json.loads(whole.message.content or "") == {"a": 7}
    assert (whole.done, whole.done_reason) == (True, "stop")
    assert whole.eval_count
    pieces = list(client.chat("chat", HI, format=SEVEN, stream=True))
    assert json.loads("".join(piece.message.content or "" for piece in pieces)) == {"a": 7}
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert pieces[-1].prompt_eval_count == whole.prompt_eval_count


def test_it_generates_and_embeds_with_a_swap_between(client: ollama.Client) -> None:
    first = client.generate("chat", "Hello", options=SHORT)
    vectors = client.embed("embed", ["the", "of"]).embeddings
    again = client.generate("chat", "And?", context=first.context, options=SHORT)
    assert (len(vectors), first.done, again.done) == (2, True, True)
    assert (again.load_duration or 0) > 0
    assert list(client.embeddings("embed", "the").embedding) == pytest.approx(vectors[0], abs=1e-4)


def test_it_sees_and_ends_what_is_loaded(client: ollama.Client) -> None:
    client.generate("chat", keep_alive=-1)
    (running,) = client.ps().models
    assert (running.model, running.context_length) == ("chat:latest", 512)
    client.generate("chat", keep_alive=0)
    until_now(lambda: not client.ps().models)


def test_it_is_told_what_is_wrong(client: ollama.Client, router: RouterProcess) -> None:
    with pytest.raises(ollama.ResponseError, match="not found") as found:
        client.chat("nope", HI)
    assert found.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="not found"):
        list(client.chat("nope", HI, stream=True))
    with pytest.raises(ollama.ResponseError, match="API key") as refused:
        ollama.Client(router.url, trust_env=False).chat("chat", HI)
    assert refused.value.status_code == 401
    with pytest.raises(ollama.ResponseError, match="store") as missing:
        client.pull("chat")
    assert missing.value.status_code == 501
