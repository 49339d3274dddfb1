"""What `/v1/models` tells of models from their headers alone, and that llama-server says the same."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import anthropic.types
import openai.types
import pytest

from app.configuration.file import parse
from app.gguf.header import GgufHeader, TensorInfo
from app.gguf.model_card import card_of
from app.main import create_app
from tests.fakes import FakeLauncher, FakeProbe
from tests.serving import InProcess, reached_by
from tests.typed_models import problems

PLAIN = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
TOOLS = "{% if tools %}{{ tools | tojson }}{% endif %}" + PLAIN
THINKS = TOOLS + "{% if enable_thinking is false %}<think>\n\n</think>{% endif %}"
VISION = {"clip.has_vision_encoder": True}


def header(metadata: Mapping[str, Any], architecture: str = "llama") -> GgufHeader:
    tensors = {"a": TensorInfo("a", (32, 4), 2, 72), "b": TensorInfo("b", (10,), 0, 40)}
    return GgufHeader(
        architecture=architecture,
        name="m",
        metadata={"general.file_type": 15, "tokenizer.ggml.model": "gpt2", "llama.context_length": 2048,
                  "llama.embedding_length": 32, **metadata},
        array_lengths={"tokenizer.ggml.tokens": 500},
        tensors=tensors,
        file_size=1000,
        parts=(Path("m.gguf"),),
    )  # fmt: skip


def test_sizes_come_from_the_header() -> None:
    card = card_of(header({}), None, None)
    assert (card.n_params, card.size, card.n_vocab, card.n_embd) == (138, 112, 500, 32)
    assert (card.n_ctx_train, card.ftype, card.vocab_type) == (2048, "Q4_K - Medium", 2)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("llama", 1),
        ("gpt2", 2),
        ("gemma4", 2),
        ("bert", 3),
        ("t5", 4),
        ("rwkv", 5),
        ("none", 0),
        ("new", None),
    ],
)
def test_a_vocabulary_has_llama_cpps_number(name: str, number: int | None) -> None:
    """By its name in published files: Gemma 4's is no `gpt2` any more, but of the same type."""
    assert card_of(header({"tokenizer.ggml.model": name}), None, None).vocab_type == number


@pytest.mark.parametrize(
    ("template", "able"),
    [
        (PLAIN, set()),
        (TOOLS, {"tools"}),
        (THINKS, {"tools", "thinking"}),
        (PLAIN + "<|channel|>analysis", {"thinking"}),
        (PLAIN + "{% for f in functions %}{% endfor %}", {"tools"}),
        (PLAIN + "{{ 'You think hard.' }}{{ 'toolsmith' }}", set()),
    ],
)
def test_what_a_model_was_made_for_stands_in_its_template(template: str, able: set[str]) -> None:
    card = card_of(header({"tokenizer.chat_template": template}), None, None)
    assert {
        name for name in ("tools", "thinking", "infill", "vision", "audio") if getattr(card, name)
    } == able


def test_a_template_of_its_own_for_tools_counts_and_a_configured_one_counts_alone() -> None:
    several = header({"tokenizer.chat_template": PLAIN, "tokenizer.chat_template.tool_use": TOOLS})
    assert card_of(several, None, None).tools
    assert not card_of(several, None, "chatml").tools


def test_what_a_model_sees_and_hears_stands_in_its_projector() -> None:
    projector = header(VISION, "clip")
    assert (card_of(header({}), projector, None).vision, card_of(header({}), None, None).vision) == (
        True,
        False,
    )
    hears = header({"clip.has_audio_encoder": True}, "clip")
    assert card_of(header({}), hears, None).audio


@pytest.mark.parametrize(("given", "tags"), [(("chat", "en"), ("chat", "en")), ((1,), ()), ("chat", ())])
def test_tags_are_those_of_the_file(given: Any, tags: tuple[str, ...]) -> None:
    assert card_of(header({"general.tags": given}), None, None).tags == tags


def test_tokens_to_fill_in_are_told() -> None:
    assert card_of(header({"tokenizer.ggml.fim_pre_token_id": 5}), None, None).infill
    marked = replace(header({}), has_infill_mark=True)
    assert card_of(marked, None, None).infill


# --- over HTTP


async def page(tree: dict[str, Any], folder: Path) -> dict[str, Any]:
    tree["system"] = {"log_dir": str(folder / "logs")}
    app = create_app(parse(json.dumps(tree), folder, {}), launcher=FakeLauncher(), probe=FakeProbe(10_000))
    async with reached_by("asgi", app) as way, way.client() as client:
        assert isinstance(way, InProcess)
        found: dict[str, Any] = (await client.get("/v1/models")).json()
        for model in found["data"]:
            assert (await client.get(f"/v1/models/{model['id']}")).json() == model
        return found


async def listed(tree: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await page(tree, folder))["data"]
    return found


async def test_a_model_that_is_off_tells_what_it_is(tiny_gguf: Path, tmp_path: Path) -> None:
    models = {
        "chat": {"model_path": str(tiny_gguf), "aliases": ["gpt-4"], "params": {"n_ctx": 100_000}},
        "embed": {"model_path": str(tiny_gguf), "params": {"embedding": True, "n_ctx": 128}},
        "rank": {"model_path": str(tiny_gguf), "params": {"rerank": True}},
        "gone": {"model_path": str(tmp_path / "gone.gguf")},
    }
    chat, other, embed, rank, gone = await listed({"models": models}, tmp_path)
    trained = chat["meta"]["n_ctx_train"]
    assert chat["state"] == "off"
    assert chat["context_length"] == chat["max_model_len"] == chat["meta"]["n_ctx"] == trained
    assert chat["meta"].keys() >= {"n_params", "n_embd", "n_vocab", "size", "ftype"}
    assert chat["capabilities"] == ["completion", "tools"]
    assert (chat["root"], chat["parent"]) == ("chat", None)
    assert (other["id"], other["root"], other["parent"]) == ("gpt-4", "chat", "chat")
    assert (embed["capabilities"], embed["context_length"]) == (["embedding"], 128)
    assert (rank["capabilities"], rank["input_modalities"]) == (["rerank"], ["text"])
    assert (gone["meta"], gone["context_length"]) == (None, 4096)


async def test_aliases_are_left_out_where_that_is_wanted(tiny_gguf: Path, tmp_path: Path) -> None:
    models = {"chat": {"model_path": str(tiny_gguf), "aliases": ["gpt-4"]}}
    found = await listed({"api": {"list_aliases": False}, "models": models}, tmp_path)
    assert [model["id"] for model in found] == ["chat"]


async def test_both_apis_read_the_list(tiny_gguf: Path, tmp_path: Path) -> None:
    """Anthropic's `capabilities` is an object, here it is the list that others read; its SDKs do not mind."""
    models = {"chat": {"model_path": str(tiny_gguf), "aliases": ["claude"]}, "gone": {"model_path": "gone"}}
    found = await page({"models": models}, tmp_path)
    assert (found["first_id"], found["last_id"], found["has_more"]) == ("chat", "gone", False)
    for model in found["data"]:
        assert not problems(openai.types.Model, model)
        assert problems(anthropic.types.ModelInfo, model) == ["capabilities: Input should be an object"]
        assert model["display_name"] == model["id"]
    assert len(found["data"]) == 3


async def test_an_empty_list_has_no_first(tmp_path: Path) -> None:
    found = await page({"models": {}}, tmp_path)
    assert (found["data"], found["first_id"], found["last_id"]) == ([], None, None)


async def test_the_time_of_creation_stays_when_the_clock_is_set(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = {"system": {"log_dir": str(tmp_path)}, "models": {"chat": {"model_path": str(tiny_gguf)}}}
    app = create_app(parse(json.dumps(tree), tmp_path, {}), launcher=FakeLauncher(), probe=FakeProbe(10_000))
    async with reached_by("asgi", app) as way, way.client() as client:
        before = (await client.get("/v1/models/chat")).json()
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + 5)
        assert (await client.get("/v1/models/chat")).json() == before
