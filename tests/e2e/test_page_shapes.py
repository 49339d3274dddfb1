"""The shapes that the page's scripts are checked against are those of the router's real answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.api.page import FOLDER
from tests.node import ROOT, check_types
from tests.router_process import MakeRouter, RouterProcess, chat

Answers = list[tuple[str, Any]]
"""Each with the type that it must have."""


@pytest.fixture(scope="module")
def router(make_shared_router: MakeRouter, tiny_gguf: Path, truncated_gguf: Path) -> RouterProcess:
    models = {"quick": {"model_path": tiny_gguf}, "off": {"model_path": tiny_gguf}}
    return make_shared_router({**models, "broken": {"model_path": truncated_gguf}})


def events(router: RouterProcess, path: str) -> Iterator[tuple[str, Any]]:
    """The name and the body of each."""
    with router.client.stream("GET", path) as answer:
        name = ""
        for line in answer.iter_lines():
            field, _, value = line.partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                yield name, json.loads(value)


def answers(router: RouterProcess) -> Answers:
    router.load("quick")
    router.client.post("/v1/chat/completions", json=chat("quick")).raise_for_status()
    router.client.post("/v1/chat/completions", json=chat("broken"))
    told = events(router, "/v1/models/status/stream")
    full = next(told)[1]
    _, metrics = next(events(router, "/metrics/stream"))
    host = metrics["host"]
    running = full["models"]["quick"]
    ejected = router.client.post("/v1/models/eject", json={"model": "quick"}).json()
    stopped = next(b for n, b in told if n == "model_update" and b["status"] == "off")
    return [
        ("FullStatus", full),
        ("Model & Process", running),
        ("Place", running["devices"][0]),
        ("Model", full["models"]["off"]),
        ("Model", full["models"]["broken"]),
        ("ModelUpdate", stopped),
        ("Metrics", metrics),
        ("Device", host),
        ("Queues", metrics["queues"]),
        ("QueueSums", metrics["queues"]["summary"]),
        ("Figures", metrics["models"]["quick"]),
        ("Plan", router.get("/v1/models/quick/plan")),
        ("Session", router.get("/session")),
        ("Told", ejected),
        ("Told", router.client.post("/v1/models/broken/reset").json()),
        ("Refusal", router.client.get("/v1/models/nobody/status").json()),
    ]


def script(found: Answers) -> str:
    """A module that is right only if each answer has its type. More fields than it names are allowed."""
    lines = ["export {};"]
    for number, (shape, answer) in enumerate(found):
        types = [f"import({json.dumps(str(FOLDER / 'shapes.js'))}).{name}" for name in shape.split(" & ")]
        lines.append(f"/** @template {{{' & '.join(types)}}} T @param {{T}} _answer */")
        lines.append(f"const check{number} = (_answer) => {{}}; check{number}({json.dumps(answer)});")
    return "\n".join(lines)


def check(folder: Path, found: Answers) -> None:
    options = {"types": [], "noUnusedParameters": False}
    config = {"extends": str(ROOT / "tsconfig.json"), "compilerOptions": options, "include": ["*.js"]}
    (folder / "tsconfig.json").write_text(json.dumps(config))
    (folder / "answers.js").write_text(script(found))
    check_types("-p", folder)


def test_the_router_answers_in_the_shapes_that_the_page_reads(router: RouterProcess, tmp_path: Path) -> None:
    check(tmp_path, answers(router))


def test_a_field_that_is_not_sent_is_found(tmp_path: Path) -> None:
    who = {"key_needed": True, "logged_in": True, "name": "alice", "admin": True, "more": 1}
    check(tmp_path, [("Session", who)])
    del who["admin"], who["more"]
    with pytest.raises(pytest.fail.Exception, match="'admin' is missing"):
        check(tmp_path, [("Session", who)])
