"""A long conversation goes on after its model was swapped out, as if it had never been away."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.router_process import MakeRouter, RouterProcess, chat

ASK = "/v1/chat/completions"
NEW_TOKENS = 40  # the follow-up question with the template's words around it
SLACK_S = 0.1  # of two times to first token of a few hundred ms on a machine that others use too

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Answer:
    text: str
    cached: int
    processed: int
    first_token_s: float  # from the start on a slot, so without the load


def long_question(seed: int = 7, sentences: int = 60) -> Messages:
    pick = random.Random(seed)
    facts = " ".join(f"House {i} has {pick.randrange(1000)} windows." for i in range(sentences))
    return [{"role": "user", "content": f"{facts} Tell me about the houses."}]


def follow_up(messages: Messages, answer: Answer, question: str = "And which one is best?") -> Messages:
    said = {"role": "assistant", "content": answer.text}
    return [*messages, said, {"role": "user", "content": question}]


def ask(router: RouterProcess, model: str, messages: Messages, **more: Any) -> Answer:
    """Greedy, streamed: the time to the first token is the client's own."""
    body = {**chat(model, max_tokens=12, **more), "messages": messages, "stream": True}
    del body["ignore_eos"]
    begun, first, text, timings = time.monotonic(), 0.0, "", {}
    with router.client.stream("POST", ASK, json=body) as response:
        assert response.status_code == 200, response.read()
        waited = int(response.headers["x-queue-wait-ms"]) / 1000
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            assert "error" not in event, event
            for choice in event["choices"]:
                first = first or time.monotonic()
                text += choice["delta"].get("content") or ""
            timings = event.get("timings") or timings
    return Answer(text, timings["cache_n"], timings["prompt_n"], first - begun - waited)


@pytest.fixture
def swapping(make_router: MakeRouter, smollm2: Path, tiny_gguf: Path) -> Callable[..., RouterProcess]:
    """Room for one; `a` is the real model."""

    def make(**a: Any) -> RouterProcess:
        entry = {"model_path": smollm2, "params": {"n_ctx": 2048}, "keep_cache": "disk", **a}
        return make_router(
            {"a": entry, "b": {"model_path": tiny_gguf}}, system={"max_concurrent_models": 1}
        )

    return make


def swap(router: RouterProcess) -> None:
    assert router.client.post(ASK, json=chat("b")).status_code == 200
    assert router.state("a") == "off"


def cache_files(router: RouterProcess) -> list[Path]:
    return sorted((router.folder / "cache").rglob("slot-*.kv"))


@pytest.mark.parametrize("where", ["disk", "ram"])
def test_a_conversation_survives_a_swap(swapping: Callable[..., RouterProcess], where: str) -> None:
    router = swapping(keep_cache=where)
    question = long_question()
    first = ask(router, "a", question)
    stayed = ask(router, "a", follow_up(question, first))  # the same follow-up without a swap
    router.eject("a")
    before = ask(router, "a", question)
    assert before.text == first.text
    swap(router)
    assert router.status("a")["kept_tokens"] > before.processed
    back = ask(router, "a", follow_up(question, before))

    assert first.processed > 700
    assert back.cached >= first.processed
    assert back.processed <= NEW_TOKENS
    assert back.text == stayed.text
    assert back.first_token_s <= 1.5 * stayed.first_token_s + SLACK_S
    assert router.metric("router_kv_cache_saves_total", model="a", result="success") == 2
    assert router.metric("router_kv_cache_restores_total", model="a", result="success") == 2
    assert router.metric("router_kv_cache_saves_total", model="b") == 0


def test_kept_files_are_private_and_go_when_the_feature_is_switched_off(
    swapping: Callable[..., RouterProcess],
) -> None:
    router = swapping()
    ask(router, "a", long_question(sentences=10))
    swap(router)

    (file,) = cache_files(router)
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
