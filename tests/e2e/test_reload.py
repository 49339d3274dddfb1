"""Taking a changed configuration under traffic, with real llama-servers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

from tests.router_process import MakeRouter, RouterProcess, chat, until


def _rewrite(router: RouterProcess, change: Any) -> None:
    tree = json.loads(router.config_path.read_text())
    change(tree)
    router.config_path.write_text(json.dumps(tree))


async def test_one_changed_model_of_three_restarts_and_no_request_fails(
    make_router: MakeRouter, tiny_gguf: Path
) -> None:
    router = make_router({name: {"model_path": tiny_gguf} for name in "abc"})
    router.load("a", "b", "c")
    pids = {name: router.status(name)["pid"] for name in "abc"}
    statuses: list[int] = []

    async with router.open_client() as client:

        async def traffic(name: str, stop: asyncio.Event) -> None:
            while not stop.is_set():
                statuses.append((await client.post("/v1/chat/completions", json=chat(name))).status_code)

        stop = asyncio.Event()
        clients = [asyncio.create_task(traffic(name, stop)) for name in "abcabc"]
        await until(lambda: len(statuses) > 12)
        _rewrite(router, lambda tree: tree["models"]["b"]["params"].update(n_ctx=1024))
        router.signal(signal.SIGHUP)
        await until(lambda: router.status("b").get("pid") not in (None, pids["b"]))
        seen = len(statuses)
        await until(lambda: len(statuses) > seen + 12)
        stop.set()
        await asyncio.gather(*clients)

    assert set(statuses) == {200}
    assert {name: router.status(name)["pid"] for name in "ac"} == {"a": pids["a"], "c": pids["c"]}
    assert router.get("/v1/models/b")["n_ctx"] == 1024


async def test_a_file_with_mistakes_changes_nothing_and_is_reported(
    make_router: MakeRouter, tiny_gguf: Path
) -> None:
    router = make_router({"a": {"model_path": tiny_gguf}})
    _rewrite(router, lambda tree: tree["system"].update(max_concurent_models=1))
    router.signal(signal.SIGHUP)
    await until(lambda: "did you mean 'max_concurrent_models'" in router.log())
    assert router.client.post("/v1/chat/completions", json=chat("a")).status_code == 200


async def test_keys_are_taken_over_and_what_needs_a_restart_is_said(
    make_router: MakeRouter, tiny_gguf: Path
) -> None:
    router = make_router({"a": {"model_path": tiny_gguf}})
    _rewrite(router, lambda tree: tree["api"].update(api_keys=["secret"], port=9))
    router.signal(signal.SIGHUP)
    await until(lambda: "api.port has changed" in router.log())
    assert router.client.get("/v1/models").status_code == 401
    assert router.client.get("/v1/models", headers={"x-api-key": "secret"}).status_code == 200


async def test_the_file_is_watched_where_that_is_asked_for(make_router: MakeRouter, tiny_gguf: Path) -> None:
    router = make_router({"a": {"model_path": tiny_gguf}}, system={"watch_config": True})
    _rewrite(router, lambda tree: tree["models"].update(b={"model_path": str(tiny_gguf)}))
    await until(lambda: [m["id"] for m in router.get("/v1/models")["data"]] == ["a", "b"])


async def test_a_key_file_is_watched_too(make_router: MakeRouter, tiny_gguf: Path, tmp_path: Path) -> None:
    key = tmp_path / "users.key"
    key.write_text("first")
    api = {"api_keys": [{"key_file": str(key)}]}
    router = make_router(
        {"a": {"model_path": tiny_gguf}}, system={"watch_config": True}, api=api, key="first"
    )

    def accepts(secret: str) -> bool:
        answer = router.client.get("/v1/models", headers={"Authorization": f"Bearer {secret}"})
        return bool(answer.is_success)

    assert accepts("first")
    key.unlink()
    key.write_text("second-key")
    await until(lambda: accepts("second-key"))
    assert not accepts("first")


async def test_a_signal_during_a_reload_leads_to_another_one(
    make_router: MakeRouter, tiny_gguf: Path
) -> None:
    router = make_router({"a": {"model_path": tiny_gguf}})
    path, old = router.config_path, router.config_path.read_text()
    path.unlink()
    os.mkfifo(path)
    router.signal(signal.SIGHUP)
    with path.open("w") as slow:  # the router reads the file, and it is not at its end
        slow.write(old)
        path.unlink()
        path.write_text(old.replace('"a": {', '"renamed": {'))
        router.signal(signal.SIGHUP)
        for _ in range(3):  # it has taken the signal when it has answered
            router.get("/health")
    await until(lambda: [m["id"] for m in router.get("/v1/models")["data"]] == ["renamed"])
