"""Models whose configuration does not say what they are for: their files do."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from app.configuration import kinds_from_files
from app.configuration.file import parse
from app.core.config import Config
from app.domain.status import ModelKind
from app.gguf.header import GgufHeader, Pooling, read_header
from app.llama.runner_interface import LoadError
from app.memory.amount_to_reserve import inspect
from tests.ggufs import make_tiny
from tests.router_process import MakeRouter, chat
from tests.tiny_models import make_encoder


def configured(path: Path, **params: Any) -> Config:
    entry = {"model_path": path.name, "params": params}
    return parse(json.dumps({"models": {"m": entry}}), path.parent, {})


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
        assert is_asked.wait(10)
        assert not found
    finally:
        answers.set()
