"""What published files say of themselves, and what is told of them: keys, and what templates say of tools and
thoughts.

These were seen together with 71 templates that llama.cpp is tested with: of 70 its own analysis (`/props`,
`chat_template_caps`) says of tools what is said here. The other one calls them `functions`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from app.api.model_list import capabilities
from app.configuration.file import parse
from app.domain.model_spec import ModelSpec
from app.gguf.header import GgufHeader, TensorInfo, read_header
from app.gguf.model_card import card_of


class Published(NamedTuple):
    architecture: str
    vocabulary: str
    n_ctx_train: int
    template: str | None
    able: list[str]
    params: Mapping[str, Any] = {}
    projector: Mapping[str, Any] | None = None
    more: Mapping[str, Any] = {}
    vocab_type: int = 2


SEES = {"general.architecture": "clip", "clip.has_vision_encoder": True, "clip.projector_type": "pixtral"}
HEARS = {"general.architecture": "clip", "clip.has_audio_encoder": True, "clip.projector_type": "ultravox"}
SEES_AND_HEARS = {**SEES, "clip.has_audio_encoder": True}
TOOLS = "{%- if tools %}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}{%- endif %}"

PUBLISHED = {
    "Phi-3.5-mini": Published(
        "phi3", "llama", 131072, "{% for message in messages %}<|{{ message['role'] }}|>{% endfor %}",
        ["completion"], vocab_type=1,
    ),
    "gemma-2-2b": Published(
        "gemma2", "llama", 8192, "{{ bos_token }}{{ raise_exception('System role not supported') }}",
        ["completion"], vocab_type=1,
    ),
    "Qwen2.5-7B": Published("qwen2", "gpt2", 32768, TOOLS, ["completion", "tools"]),
    "Qwen2.5-Coder-7B": Published(
        "qwen2", "gpt2", 32768, TOOLS, ["completion", "tools", "insert"],
        more={"tokenizer.ggml.fim_pre_token_id": 151659},
    ),
    "Llama-3.1-8B": Published(
        "llama", "gpt2", 131072, "{%- if not tools is defined %}{%- set tools = none %}{%- endif %}",
        ["completion", "tools"],
    ),
    "Qwen3-0.6B": Published(
        "qwen3", "gpt2", 40960,
        TOOLS + "{%- if enable_thinking is defined and enable_thinking is false %}{%- endif %}",
        ["completion", "tools", "thinking"],
    ),
    "DeepSeek-R1-Distill": Published(
        "qwen2", "gpt2", 131072, "{%- if '</think>' in content -%}{{ tool['function'] }}{%- endif -%}",
        ["completion", "thinking"],
    ),
    "gpt-oss-120b": Published(
        "gpt-oss", "gpt2", 131072,
        "{%- macro render_tool_namespace(namespace_name, tools) -%}{%- endmacro -%}{{- reasoning_effort }}",
        ["completion", "tools", "thinking"],
    ),
    "gemma-4-31B": Published(
        "gemma4", "gemma4", 262144, TOOLS + "{{ '<|think|>' }}",
        ["completion", "tools", "thinking", "vision", "audio"], projector=SEES_AND_HEARS,
    ),
    "Mistral-Small-3.2": Published(
        "llama", "gpt2", 131072, TOOLS + "{{ '[IMG]' }}", ["completion", "tools", "vision"], projector=SEES,
    ),
    "ultravox": Published(
        "llama", "gpt2", 131072, TOOLS, ["completion", "tools", "audio"], projector=HEARS,
    ),
    "bge-small": Published(
        "bert", "bert", 512, None, ["embedding"], {"embedding": True}, more={"bert.pooling_type": 2},
        vocab_type=3,
    ),
    "Qwen3-Embedding": Published(
        "qwen3", "gpt2", 32768, TOOLS + "<think>", ["embedding"], {"embedding": True},
        more={"qwen3.pooling_type": 3},
    ),
    "bge-reranker-v2-m3": Published(
        "bert", "t5", 8192, None, ["rerank"], {"rerank": True}, more={"bert.pooling_type": 4}, vocab_type=4,
    ),
}  # fmt: skip


def header(architecture: str, metadata: Mapping[str, Any]) -> GgufHeader:
    return GgufHeader(
        architecture=architecture,
        name="m",
        metadata=metadata,
        array_lengths={"tokenizer.ggml.tokens": 500},
        tensors={"a": TensorInfo("a", (32, 4), 2, 72)},
        file_size=1000,
        parts=(Path("m.gguf"),),
    )


def spec(params: Mapping[str, Any], folder: Path) -> ModelSpec:
    text = json.dumps({"models": {"m": {"model_path": "m.gguf", "params": dict(params)}}})
    return parse(text, folder, {}).specs()["m"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_file_is_told_as_what_it_is(name: str, tmp_path: Path) -> None:
    file = PUBLISHED[name]
    metadata = {
        "tokenizer.ggml.model": file.vocabulary,
        f"{file.architecture}.context_length": file.n_ctx_train,
        **file.more,
    }
    if file.template is not None:
        metadata["tokenizer.chat_template"] = file.template
    projector = None if file.projector is None else header("clip", file.projector)
    card = card_of(header(file.architecture, metadata), projector, None)
    assert capabilities(spec(file.params, tmp_path), card) == file.able
    assert (card.n_ctx_train, card.vocab_type) == (file.n_ctx_train, file.vocab_type)


def test_smollm2_says_what_it_is(smollm2: Path, tmp_path: Path) -> None:
    """A whole published file."""
    card = card_of(read_header(smollm2), None, None)
    assert capabilities(spec({}, tmp_path), card) == ["completion"]
    sizes = (card.n_ctx_train, card.n_embd, card.n_vocab, card.vocab_type, card.n_params)
    assert sizes == (8192, 576, 49152, 2, 134515008)
    assert (card.architecture, card.ftype) == ("llama", "Q4_1")
