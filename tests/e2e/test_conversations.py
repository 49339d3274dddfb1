"""A long conversation goes on after its model was swapped out, as if it had never been away."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from app.models.kv_store import KvStore
from tests.router_process import MakeRouter, RouterProcess, chat, until_now

ASK = "/v1/chat/completions"
NEW_TOKENS = 40  # the follow-up question with the template's words around it

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Answer:
    text: str
    cached: int  # tokens of the prompt that were there, ...
    processed: int  # ... and those that had to be computed: all that a user waits for


def long_question(seed: int = 7, sentences: int = 60) -> Messages:
    pick = random.Random(seed)
    facts = " ".join(f"House {i} has {pick.randrange(1000)} windows." for i in range(sentences))
    return [{"role": "user", "content": f"{facts} Tell me about the houses."}]


def follow_up(messages: Messages, answer: Answer, question: str = "And which one is best?") -> Messages:
    said = {"role": "assistant", "content": answer.text}
    return [*messages, said, {"role": "user", "content": question}]


def ask(router: RouterProcess, model: str, messages: Messages, **more: Any) -> Answer:
    """Greedy, streamed."""
    body = {**chat(model, max_tokens=12, **more), "messages": messages, "stream": True}
    del body["ignore_eos"]
    text, timings = "", dict[str, Any]()
    with router.client.stream("POST", ASK, json=body) as response:
        assert response.status_code == 200, response.read()
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            assert "error" not in event, event
            for choice in event["choices"]:
                text += choice["delta"].get("content") or ""
            timings = event.get("timings") or timings
    return Answer(text, timings["cache_n"], timings["prompt_n"])


Swapping = Callable[..., RouterProcess]


@pytest.fixture
def swapping(make_router: MakeRouter, smollm2: Path, tiny_gguf: Path) -> Iterator[Swapping]:
    """Room for one; `a` is the real model."""
    made: list[RouterProcess] = []

    def make(
        *, binary: Mapping[str, Path] | None = None, system: Mapping[str, Any] | None = None, **a: Any
    ) -> RouterProcess:
        entry = {"model_path": smollm2, "params": {"n_ctx": 2048}, "keep_cache": "disk", **a}
        models = {"a": entry, "b": {"model_path": tiny_gguf}}
        made.append(
            make_router(models, system={"max_concurrent_models": 1, **(system or {})}, **(binary or {}))
        )
        return made[-1]

    yield make
    for router in made:
        router.stop()
        shutil.rmtree(KvStore(router.folder / "cache").roots["ram"], ignore_errors=True)


@pytest.fixture(scope="module")
def shared(make_shared_router: MakeRouter, smollm2: Path, tiny_gguf: Path) -> RouterProcess:
    a = {"model_path": smollm2, "params": {"n_ctx": 2048}, "keep_cache": "disk"}
    return make_shared_router({"a": a, "b": {"model_path": tiny_gguf}}, system={"max_concurrent_models": 1})


def swap(router: RouterProcess) -> None:
    assert router.client.post(ASK, json=chat("b")).status_code == 200
    assert router.state("a") == "off"


def cache_files(router: RouterProcess) -> list[Path]:
    store = KvStore(router.folder / "cache")
    return sorted(file for root in store.roots.values() for file in root.rglob("slot-*.kv"))


def forget(router: RouterProcess) -> None:
    for file in cache_files(router):
        _remove(file)


def _remove(file: Path) -> None:
    shutil.rmtree(file) if file.is_dir() else file.unlink()


@pytest.mark.parametrize("where", ["disk", "ram"])
def test_a_conversation_survives_a_swap(swapping: Swapping, where: str) -> None:
    router = swapping(keep_cache=where)
    question = long_question()
    first = ask(router, "a", question)
    stayed = ask(router, "a", follow_up(question, first))  # the same follow-up without a swap
    router.eject("a")
    forget(router)
    again = ask(router, "a", question)
    swap(router)
    kept = router.status("a")["kept_tokens"]
    router.load("a")
    back = ask(router, "a", follow_up(question, again))

    assert (again.text, again.processed) == (first.text, first.processed)
    assert first.processed > 600
    assert kept > first.processed
    assert stayed.cached >= first.processed
    assert stayed.processed <= NEW_TOKENS
    assert back == stayed  # word for word, and with not one token more to compute
    assert router.metric("router_kv_cache_saves_total", model="a", result="success") == 2
    assert router.metric("router_kv_cache_restores_total", model="a", result="success") == 1
    assert router.metric("router_kv_cache_saves_total", model="b") == 0


def test_each_of_two_slots_gets_its_own_conversation_back(swapping: Swapping) -> None:
    router = swapping(parallel_requests=2, system={"prompt_cache_mb": 1024})
    questions = [long_question(seed, sentences=40) for seed in (1, 2)]
    firsts = [ask(router, "a", question) for question in questions]
    swap(router)

    for question, first in reversed(list(zip(questions, firsts, strict=True))):
        back = ask(router, "a", follow_up(question, first))
        assert back.cached >= first.processed
        assert back.processed <= NEW_TOKENS


def _cut_short(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def _change_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


def _replace_by_garbage(file: Path) -> None:
    file.write_bytes(b"this is no cache" * 1000)


def _vouch_for_garbage(file: Path) -> None:
    """Only llama-server can find out."""
    _replace_by_garbage(file)
    KvStore(Path("unused")).publish(file.parent, 0, 100)


def _replace_by_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _spoil_the_note(file: Path) -> None:
    file.with_suffix(".json").write_text("[" * 100_000)


@pytest.mark.parametrize(
    "damage",
    [
        _cut_short,
        _change_a_byte,
        _replace_by_garbage,
        _vouch_for_garbage,
        _replace_by_a_folder,
        _spoil_the_note,
        _remove,
    ],
    ids=lambda f: f.__name__.strip("_"),
)
def test_damaged_files_cost_nothing_but_the_prefill(
    shared: RouterProcess, damage: Callable[[Path], None]
) -> None:
    shared.eject("a")
    forget(shared)
    loads = shared.loads("a")
    question = long_question(sentences=12)
    first = ask(shared, "a", question)
    swap(shared)
    (file,) = cache_files(shared)
    damage(file)

    back = ask(shared, "a", follow_up(question, first))
    assert back.text
    assert back.cached == 0
    assert shared.loads("a") == loads + 2

    swap(shared)
    third = ask(shared, "a", follow_up(follow_up(question, first), back))
    assert third.text
    assert shared.metric("router_requests_total", model="a") == shared.metric(
        "router_requests_total", model="a", status="success"
    )
    assert shared.metric("router_model_restarts_total", model="a") == 0


def test_kept_files_are_private_and_go_when_the_feature_is_switched_off(swapping: Swapping) -> None:
    router = swapping()
    ask(router, "a", long_question(sentences=10))
    swap(router)
    (file,) = cache_files(router)
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700

    tree = json.loads(router.config_path.read_text())
    tree["models"]["a"]["keep_cache"] = "off"
    router.config_path.write_text(json.dumps(tree))
    router.signal(signal.SIGHUP)

    until_now(lambda: not file.parent.exists())
    ask(router, "a", long_question(sentences=10))
    swap(router)
    assert cache_files(router) == []


def test_a_conversation_survives_the_router(swapping: Swapping, tmp_path: Path) -> None:
    system = {"cache_dir": str(tmp_path / "cache")}
    router = swapping(system=system)
    question = long_question(sentences=12)
    first = ask(router, "a", question)
    assert router.stop() == 0

    router = swapping(system=system)
    back = ask(router, "a", follow_up(question, first))
    assert back.cached >= first.processed


def test_a_request_that_is_cut_does_not_keep_its_conversation_from_being_kept(swapping: Swapping) -> None:
    router = swapping()
    question = long_question(sentences=12)
    first = ask(router, "a", question)
    body = {**chat("a", max_tokens=1000), "messages": follow_up(question, first), "stream": True}
    with router.client.stream("POST", ASK, json=body) as response:
        lines = response.iter_lines()
        assert any('"content":"' in line for line in lines)
        router.eject("a")
    assert router.status("a")["kept_tokens"] > first.processed

    back = ask(router, "a", follow_up(question, first))
    assert back.cached >= first.processed
    assert back.processed <= NEW_TOKENS


def test_a_server_that_hangs_is_not_waited_for(swapping: Swapping) -> None:
    """To save its conversations: it would answer when it is let go, and that is after its stop."""
    router = swapping(system={"keep_cache_timeout_sec": 0.5})
    ask(router, "a", long_question(sentences=5))
    with router.frozen("a"):
        router.eject("a")
    assert router.metric("router_kv_cache_saves_total", model="a", result="timeout") == 1
    assert cache_files(router) == []
    assert ask(router, "a", long_question(sentences=5)).text


def test_a_crash_keeps_nothing_and_breaks_nothing(swapping: Swapping) -> None:
    router = swapping()
    ask(router, "a", long_question(sentences=5))
    router.child("a").kill()
    assert ask(router, "a", long_question(sentences=5)).text
    assert router.metric("router_kv_cache_saves_total", model="a") == 0


def test_a_binary_that_cannot_keep_conversations_serves_without(
    swapping: Swapping, llama_server: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old-llama-server"
    old.write_text(
        "#!/bin/sh\n"
        f'[ "$1" = --help ] && exec sh -c \'"{llama_server}" --help | grep -v slot-save-path\'\n'
        f'exec "{llama_server}" "$@"\n'
    )
    old.chmod(0o755)
    router = swapping(binary={"binary": old})
    question = long_question(sentences=5)
    first = ask(router, "a", question)
    swap(router)
    assert ask(router, "a", follow_up(question, first)).cached == 0
    assert "conversations are not kept: this llama-server does not know --slot-save-path" in router.log()
    assert cache_files(router) == []


@pytest.mark.parametrize("limit_gb", [0.0001, 4])
def test_a_folder_that_cannot_be_used_or_is_too_small_fails_no_request(
    swapping: Swapping, tmp_path: Path, limit_gb: float
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    folder = tmp_path / "cache" if limit_gb < 1 else in_the_way / "cache"
    router = swapping(system={"cache_dir": str(folder), "cache_max_gb": limit_gb})
    question = long_question(sentences=5)
    first = ask(router, "a", question)
    swap(router)
    assert ask(router, "a", follow_up(question, first)).text
    assert list(tmp_path.rglob("slot-*")) == []
