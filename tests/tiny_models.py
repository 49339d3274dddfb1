"""Makes tiny models of the kinds that `make_tiny` does not: encoders, rerankers, adapters.

And what it takes for one of random weights to think, or to call a tool.
"""

from __future__ import annotations

import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import TokenType

from app.gguf.header import Pooling
from tests.ggufs import SPACE, WORDS, make_tiny, pieces

Tensor = np.ndarray[Any, Any]

FIM_MARKS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>")
"""By these names llama.cpp knows that a model can fill in the middle."""

THINKS = """{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
<think>{% endif %}"""
"""A chat template whose answers begin with thoughts."""

_CALLS_AT_ONCE = {"<tool_call>\n{": 100, "<|im_end|>": 200}
"""What a model of random weights prefers, where the grammar of a call leaves it the choice: a call before
anything else, and the end before a second one."""

_BLANKS = ("<0x09>", "<0x0A>", "<0x20>", "\n", SPACE)

_WORD_PIECE_MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_WIDTH, _LAYERS, _HEADS, _INNER = 64, 2, 4, 128


def make_encoder(path: Path, pooling: Pooling | None, *, context: int = 2048, seed: int = 1) -> Path:
    """A BERT with this pooling type in its metadata; with `RANK` it has a classifier, as rerankers do."""
    vocabulary = _word_pieces()
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name(f"tiny-encoder-{pooling.flag if pooling else 'silent'}")
    writer.add_context_length(context)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_INNER)
    writer.add_head_count(_HEADS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    if pooling is not None:
        writer.add_uint32("bert.pooling_type", pooling.value)
    _add_word_pieces(writer, vocabulary)
    tensors = _Weights(seed).encoder(len(vocabulary), context, ranks=pooling is Pooling.RANK)
    return _write(writer, tensors)


def calling() -> list[str]:
    """Arguments of llama-server by which a tiny model calls the tool that it must call."""
    words = [piece for piece, _ in pieces()]
    wanted = {**_CALLS_AT_ONCE, **dict.fromkeys(_BLANKS, -100)}
    return [arg for word, bias in wanted.items() for arg in ("--logit-bias", f"{words.index(word)}{bias:+d}")]


def make_fill_in(path: Path) -> Path:
    """A llama with the marks of infill in its vocabulary."""
    return make_tiny(path, marks=FIM_MARKS)


def make_adapter(path: Path, *, rank: int = 4, seed: int = 7) -> Path:
    """A LoRA for what `make_tiny` makes."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    return _write(writer, _Weights(seed).adapter(rank))


class _Weights:
    """Random, and the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def encoder(self, words: int, context: int, *, ranks: bool) -> Iterator[tuple[str, Tensor]]:
        yield "token_embd.weight", self._matrix(words, _WIDTH)
        yield "position_embd.weight", self._matrix(context, _WIDTH).astype(np.float32)
        yield "token_types.weight", self._matrix(2, _WIDTH).astype(np.float32)
        yield from self._norm("token_embd_norm")
        for block in range(_LAYERS):
            yield from self._encoder_block(f"blk.{block}.")
        if ranks:
            yield from self._linear("cls", _WIDTH, _WIDTH)
            yield from self._linear("cls.output", 1, _WIDTH)

    def adapter(self, rank: int) -> Iterator[tuple[str, Tensor]]:
        for block in range(_LAYERS):
            for kind, rows in (("attn_q", _WIDTH), ("ffn_up", _INNER)):
                name = f"blk.{block}.{kind}.weight"
                yield f"{name}.lora_a", self._matrix(rank, _WIDTH).astype(np.float32)
                yield f"{name}.lora_b", self._matrix(rows, rank).astype(np.float32)

    def _encoder_block(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        for kind in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield from self._linear(prefix + kind, _WIDTH, _WIDTH)
        yield from self._norm(prefix + "attn_output_norm")
        yield from self._linear(prefix + "ffn_up", _INNER, _WIDTH)
        yield from self._linear(prefix + "ffn_down", _WIDTH, _INNER)
        yield from self._norm(prefix + "layer_output_norm")

    def _linear(self, name: str, rows: int, columns: int) -> Iterator[tuple[str, Tensor]]:
        yield f"{name}.weight", self._matrix(rows, columns)
        yield f"{name}.bias", 0.1 * self._random.standard_normal(rows, dtype=np.float32)

    def _norm(self, name: str) -> Iterator[tuple[str, Tensor]]:
        yield f"{name}.weight", np.ones(_WIDTH, dtype=np.float32)
        yield f"{name}.bias", np.zeros(_WIDTH, dtype=np.float32)

    def _matrix(self, rows: int, columns: int) -> Tensor:
        values = self._random.standard_normal((rows, columns), dtype=np.float32)
        scaled: Tensor = (values / np.sqrt(columns) * 2).astype(np.float16)
        return scaled


def _word_pieces() -> list[str]:
    """Words, and letters to spell all others with: a piece at the beginning of a word has a mark."""
    letters = string.ascii_lowercase + string.digits + string.punctuation
    beginnings = [SPACE + piece for piece in (*WORDS, *letters)]
    return [*_WORD_PIECE_MARKS, *dict.fromkeys([*beginnings, *letters])]


def _add_word_pieces(writer: gguf.GGUFWriter, vocabulary: list[str]) -> None:
    kinds = [
        TokenType.NORMAL if piece not in _WORD_PIECE_MARKS else TokenType.CONTROL for piece in vocabulary
    ]
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_type_count(2)
    writer.add_token_list(vocabulary)
    writer.add_token_types([int(kind) for kind in kinds])
    for kind, mark in (
        ("padding", "[PAD]"),
        ("unknown", "[UNK]"),
        ("cls", "[CLS]"),
        ("bos", "[CLS]"),
        ("seperator", "[SEP]"),
        ("eos", "[SEP]"),
        ("mask", "[MASK]"),
    ):
        writer.add_uint32(f"tokenizer.ggml.{kind}_token_id", vocabulary.index(mark))


def _write(writer: gguf.GGUFWriter, tensors: Iterator[tuple[str, Tensor]]) -> Path:
    for name, values in tensors:
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(str(writer.path))
