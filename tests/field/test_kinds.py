"""Models whose configuration does not say what they are for: their files do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from app import kinds_from_files
from app.configuration.file import parse
from app.configuration.reloadable_keys import Configuration
from app.core.config import Config
from app.domain.status import ModelKind
from app.gguf.header import GgufHeader, Pooling, read_header
from app.llama.runner_interface import LoadError
from app.memory.amount_to_reserve import inspect
from tests.ggufs import make_tiny
from tests.patience import WAIT_S
from tests.router_process import MakeRouter, chat, until, until_now
from tests.tiny_models import make_encoder


def configured(path: Path, **params: Any) -> Config:
    entry = {"model_path": path.name, "params": params}
    config = parse(json.dumps({"models": {"m": entry}}), path.parent, {})
    return kinds_from_files.with_kinds_from_files(config)


def test_an_encoder_of_which_nothing_is_said_makes_embeddings(
    make_router: MakeRouter, tmp_path: Path
) -> None:
    names = {"silent": None, "first": Pooling.CLS, "all": Pooling.MEAN}
    router = make_router({
        **{name: {"model_path": make_encoder(tmp_path / name, said)} for name, said in names.items()},
        "judge": {"model_path": make_encoder(tmp_path / "judge", Pooling.RANK)},
    })  # fmt: skip
    for name in names:
        answer = router.client.post("/v1/embeddings", json={"model": name, "input": "hello"})
        assert answer.status_code == 200, answer.text
        refused = router.client.post("/v1/chat/completions", json=chat(name))
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "wrong_model_kind")
    question = {"model": "judge", "query": "hello", "documents": ["a", "b"]}
    assert len(router.client.post("/v1/rerank", json=question).json()["results"]) == 2


@pytest.mark.parametrize(
    ("pooling", "kind"),
    [
        (None, ModelKind.CHAT),
        (Pooling.NONE, ModelKind.CHAT),
        (Pooling.LAST, ModelKind.EMBEDDING),
        (Pooling.RANK, ModelKind.RERANK),
    ],
)
def test_of_a_decoder_its_pooling_tells(tmp_path: Path, pooling: Pooling | None, kind: ModelKind) -> None:
    metadata: dict[str, Any] = {} if pooling is None else {"pooling_type": pooling.value}
    assert configured(make_tiny(tmp_path / "m.gguf", **metadata)).spec("m").kind is kind


@pytest.mark.parametrize(
    ("params", "kind"),
    [
        ({"embedding": False}, ModelKind.CHAT),
        ({"rerank": False}, ModelKind.CHAT),
        ({"embedding": True}, ModelKind.EMBEDDING),
    ],
)
def test_what_the_configuration_says_wins_over_the_file(
    tmp_path: Path, params: dict[str, bool], kind: ModelKind
) -> None:
    path = make_tiny(tmp_path / "m.gguf", pooling_type=Pooling.RANK.value)
    assert configured(path, **params).spec("m").kind is kind


def test_an_encoder_that_is_to_chat_is_refused_before_it_aborts(tmp_path: Path) -> None:
    config = configured(make_encoder(tmp_path / "m.gguf", Pooling.CLS), embedding=False)
    with pytest.raises(LoadError, match=r"an encoder \(bert\).*set params\.embedding to true"):
        inspect(config.spec("m"))


@pytest.mark.parametrize("content", [None, b"", b"GGUF", b"no model"])
def test_a_file_that_says_nothing_is_no_mistake_of_the_configuration(
    tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "m.gguf").write_bytes(content)
    assert configured(tmp_path / "m.gguf").spec("m").kind is ModelKind.CHAT


def test_a_disk_that_does_not_answer_holds_up_no_start(tmp_path: Path, tiny_gguf: Path) -> None:
    gone, is_asked, answers = tmp_path / "gone.gguf", Event(), Event()

    def read(path: Path) -> GgufHeader:
        if path == gone:
            is_asked.set()
            answers.wait()
        return read_header(path)

    try:
        found = kinds_from_files.headers([gone, tiny_gguf], read, slowest_s=0.01)
        assert is_asked.wait(WAIT_S)
        assert not found
    finally:
        answers.set()


def put(target: Path, make: Callable[..., Path], *args: Any, **more: Any) -> None:
    """As a download ends: all at once, and later than what lay there before."""
    before = target.stat().st_mtime_ns if target.exists() else 0
    new = make(target.with_suffix(".part"), *args, **more)
    os.utime(new, ns=(before + 10**9, before + 10**9))
    new.replace(target)


@asynccontextmanager
async def watched(config: Config) -> AsyncIterator[Callable[[str], ModelKind]]:
    """The kind of a model, as it counts at the moment."""
    configuration = Configuration(config)
    configuration.subscribe(["models"])
    watch = asyncio.create_task(kinds_from_files.watch(configuration, every_s=0.01))
    yield lambda alias: configuration.current.spec(alias).kind
    watch.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watch


def test_a_model_whose_file_was_still_being_downloaded_at_the_start(
    make_router: MakeRouter, tmp_path: Path
) -> None:
    late = tmp_path / "late.gguf"
    late.write_bytes(b"GGUF")
    router = make_router({"late": {"model_path": late}})
    assert router.client.post("/v1/chat/completions", json=chat("late")).status_code == 424
    put(late, make_encoder, Pooling.CLS)
    until_now(lambda: router.status("late")["kind"] == "embedding")
    answer = router.client.post("/v1/embeddings", json={"model": "late", "input": "hello"})
    assert answer.status_code == 200, answer.text
    refused = router.client.post("/v1/chat/completions", json=chat("late"))
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "wrong_model_kind")
    assert "late: its file is another one, and makes it a model of the kind embedding" in router.log()


@pytest.mark.parametrize("before", [Pooling.NONE, Pooling.LAST])
async def test_a_file_that_is_replaced_is_what_the_new_one_says(tmp_path: Path, before: Pooling) -> None:
    path = make_tiny(tmp_path / "m.gguf", pooling_type=before.value)
    after = {Pooling.RANK: ModelKind.RERANK, Pooling.NONE: ModelKind.CHAT, Pooling.LAST: ModelKind.EMBEDDING}
    async with watched(configured(path)) as kind_of:
        for pooling, kind in after.items():
            put(path, make_tiny, pooling_type=pooling.value)
            await until(partial(lambda kind: kind_of("m") is kind, kind))


async def test_a_file_that_comes_does_not_outvote_the_user(tmp_path: Path) -> None:
    models = {"said": {"model_path": "said.gguf", "params": {"embedding": False}},
              "silent": {"model_path": "silent.gguf"}}  # fmt: skip
    async with watched(parse(json.dumps({"models": models}), tmp_path, {})) as kind_of:
        for alias in models:
            put(tmp_path / f"{alias}.gguf", make_tiny, pooling_type=Pooling.LAST.value)
        await until(lambda: kind_of("silent") is ModelKind.EMBEDDING)
        assert kind_of("said") is ModelKind.CHAT
