"""What a model can do and how large it is, told from headers alone: also while it is not loaded. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from app.gguf.header import GgufHeader

_VOCABULARIES = {
    "no_vocab": 0, "none": 0, "llama": 1, "gpt2": 2, "gemma4": 2, "hybriddna": 2, "whitespace": 2, "bert": 3,
    "t5": 4, "rwkv": 5, "plamo2": 6,
}  # fmt: skip
"""llama.cpp's numbers, by `tokenizer.ggml.model`."""

_FILE_TYPES: Mapping[int, str] = {
    0: "all F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K - Medium",
    11: "Q3_K - Small", 12: "Q3_K - Medium", 13: "Q3_K - Large", 14: "Q4_K - Small", 15: "Q4_K - Medium",
    16: "Q5_K - Small", 17: "Q5_K - Medium", 18: "Q6_K", 19: "IQ2_XXS - 2.0625 bpw",
    20: "IQ2_XS - 2.3125 bpw", 21: "Q2_K - Small", 22: "IQ3_XS - 3.3 bpw", 23: "IQ3_XXS - 3.0625 bpw",
    24: "IQ1_S - 1.5625 bpw", 25: "IQ4_NL - 4.5 bpw", 26: "IQ3_S - 3.4375 bpw", 27: "IQ3_S mix - 3.66 bpw",
    28: "IQ2_S - 2.5 bpw", 29: "IQ2_M - 2.7 bpw", 30: "IQ4_XS - 4.25 bpw", 31: "IQ1_M - 1.75 bpw",
    32: "BF16", 36: "TQ1_0 - 1.69 bpw ternary", 37: "TQ2_0 - 2.06 bpw ternary", 38: "MXFP4 MoE",
    39: "NVFP4", 40: "Q1_0", 41: "Q2_0",
}  # fmt: skip
"""As llama-server names them, by `general.file_type`."""

_TEMPLATES = "tokenizer.chat_template"
_TOOLS = re.compile(r"tools\b|\bfunctions\b")
_THINKS = re.compile(
    r"</?(?:\w+:)?think(?:ing)?>|<\|think|\[THINK\]|START_THINKING|<\|channel\|?>|enable_thinking"
    r"|reasoning_content|reasoning_effort|\bthinking (?:is|and|or|%)"
)
_INFILL_KEYS = ("fim_pre_token_id", "prefix_token_id")


class FileFacts(NamedTuple):
    """What no header tells."""

    modified_ns: int = 0
    digest: str = ""
    """64 hexadecimal digits: other content has others."""


NO_FACTS = FileFacts()


@dataclass(frozen=True)
class ModelCard:
    """Sizes are those of the weights; `n_params` counts them. `tools` to `infill`: what it was made for;
    `tags`: what whoever made the file says of it."""

    architecture: str
    vocab_type: int | None
    n_vocab: int
    n_ctx_train: int
    n_embd: int
    n_params: int
    size: int
    ftype: str | None
    tools: bool
    thinking: bool
    infill: bool
    vision: bool
    audio: bool
    tags: tuple[str, ...]
    file_size: int
    """Of all parts, in bytes."""
    file: FileFacts = NO_FACTS


def card_of(header: GgufHeader, projector: GgufHeader | None, template: str | None) -> ModelCard:
    """`template`: one that is configured instead of the file's; the name of a built-in one tells nothing."""
    own = template or "\n".join(_templates(header))
    seen = projector.metadata if projector is not None else {}
    file_type = header.metadata.get("general.file_type")
    return ModelCard(
        architecture=header.architecture,
        vocab_type=_VOCABULARIES.get(str(header.metadata.get("tokenizer.ggml.model", ""))),
        n_vocab=header.array_lengths.get("tokenizer.ggml.tokens", 0) or header.number("vocab_size"),
        n_ctx_train=header.context_length,
        n_embd=header.number("embedding_length"),
        n_params=sum(math.prod(tensor.shape) for tensor in header.tensors.values()),
        size=sum(tensor.n_bytes for tensor in header.tensors.values()),
        ftype=_FILE_TYPES.get(file_type) if isinstance(file_type, int) else None,
        tools=_TOOLS.search(own) is not None,
        thinking=_THINKS.search(own) is not None,
        infill=header.has_infill_mark or any(f"tokenizer.ggml.{k}" in header.metadata for k in _INFILL_KEYS),
        vision=bool(seen.get("clip.has_vision_encoder")),
        audio=bool(seen.get("clip.has_audio_encoder")),
        tags=_tags(header.metadata.get("general.tags")),
        file_size=header.file_size,
    )


def _tags(given: object) -> tuple[str, ...]:
    return tuple(tag for tag in given if isinstance(tag, str)) if isinstance(given, tuple) else ()


def _templates(header: GgufHeader) -> list[str]:
    """A file may have several, such as one for tools."""
    return [str(value) for key, value in header.metadata.items() if key.startswith(_TEMPLATES)]
