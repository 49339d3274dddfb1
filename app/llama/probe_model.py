"""A model of 100 kB with which a llama-server shows whether it can compute here: random weights, quantised.

Each matrix has another type, so that one token runs the products that real models use. What was compiled for
another processor ends there; a model of plain floats would not show it. The tokenizer is one that takes text
apart with regular expressions: there a build ends whose libraries do not agree on one libstdc++.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

_WIDTH = 256  # a row holds whole blocks of every type
_HEADS, _HEADS_KV = 2, 1
_HEAD_WIDTH = 32
_ALIGNMENT = 32
_SCALE = struct.pack("<e", 0.01)
_END = "<end>"
_MERGE = ("l", "o")  # one at least must be there
_NORMAL, _CONTROL = 1, 3


def _byte_letters() -> list[str]:
    """How byte-level tokenizers write the 256 bytes: each as a letter that can be seen."""
    shown = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte if byte in shown else 256 + hidden.index(byte)) for byte in range(256)]


_TOKENS = (_END, "".join(_MERGE), *_byte_letters())
_TOKEN_TYPES = (_CONTROL, *[_NORMAL] * (len(_TOKENS) - 1))


class _Value(IntEnum):
    """Types of metadata in the file."""

    U32 = 4
    I32 = 5
    F32 = 6
    STRING = 8
    ARRAY = 9


@dataclass(frozen=True)
class _Type:
    """How many weights a block holds, and its fields: "s" is a scale, a number so many random bytes."""

    number: int
    weights: int
    fields: tuple[str | int, ...]


_F32 = _Type(0, 1, ())
_Q4_0 = _Type(2, 32, ("s", 16))
_Q4_1 = _Type(3, 32, ("s", "s", 16))
_Q5_0 = _Type(6, 32, ("s", 4, 16))
_Q8_0 = _Type(8, 32, ("s", 32))
_Q4_K = _Type(12, 256, ("s", "s", 12, 128))
_Q5_K = _Type(13, 256, ("s", "s", 12, 32, 128))
_Q6_K = _Type(14, 256, (128, 64, 16, "s"))

_KV_WIDTH = _HEADS_KV * _HEAD_WIDTH
_TENSORS: tuple[tuple[str, tuple[int, ...], _Type], ...] = (
    ("token_embd", (_WIDTH, len(_TOKENS)), _Q4_0),  # also the output's
    ("output_norm", (_WIDTH,), _F32),
    ("blk.0.attn_norm", (_WIDTH,), _F32),
    ("blk.0.ffn_norm", (_WIDTH,), _F32),
    ("blk.0.attn_q", (_WIDTH, _HEADS * _HEAD_WIDTH), _Q4_K),
    ("blk.0.attn_k", (_WIDTH, _KV_WIDTH), _Q8_0),
    ("blk.0.attn_v", (_WIDTH, _KV_WIDTH), _Q5_0),
    ("blk.0.attn_output", (_HEADS * _HEAD_WIDTH, _WIDTH), _Q4_1),
    ("blk.0.ffn_gate", (_WIDTH, _HEAD_WIDTH), _Q6_K),
    ("blk.0.ffn_up", (_WIDTH, _HEAD_WIDTH), _Q5_K),
    ("blk.0.ffn_down", (_HEAD_WIDTH, _WIDTH), _Q8_0),
)


def write(path: Path) -> Path:
    """The same bytes every time."""
    path.write_bytes(_file())
    return path


def _file() -> bytes:
    source = random.Random(0)
    metadata, infos, weights = list(_metadata()), bytearray(), bytearray()
    for name, shape, kind in _TENSORS:
        infos += _string(f"{name}.weight") + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        infos += struct.pack("<IQ", kind.number, len(weights))
        weights += _padded(_weights(shape, kind, source))
    head = b"GGUF" + struct.pack("<IQQ", 3, len(_TENSORS), len(metadata))
    return _padded(head + b"".join(metadata) + bytes(infos)) + bytes(weights)


def _metadata() -> Iterator[bytes]:
    yield _entry("general.architecture", _Value.STRING, _string("llama"))
    for key, number in (
        ("context_length", 256),
        ("embedding_length", _WIDTH),
        ("block_count", 1),
        ("feed_forward_length", _HEAD_WIDTH),
        ("attention.head_count", _HEADS),
        ("attention.head_count_kv", _HEADS_KV),
        ("attention.key_length", _HEAD_WIDTH),
        ("attention.value_length", _HEAD_WIDTH),
        ("rope.dimension_count", _HEAD_WIDTH),
    ):
        yield _entry(f"llama.{key}", _Value.U32, struct.pack("<I", number))
    yield _entry("llama.attention.layer_norm_rms_epsilon", _Value.F32, struct.pack("<f", 1e-5))
    yield _entry("tokenizer.ggml.model", _Value.STRING, _string("gpt2"))
    yield _entry("tokenizer.ggml.pre", _Value.STRING, _string("smollm"))
    yield _array("tokenizer.ggml.tokens", _Value.STRING, [_string(token) for token in _TOKENS])
    yield _array("tokenizer.ggml.token_type", _Value.I32, [struct.pack("<i", t) for t in _TOKEN_TYPES])
    yield _array("tokenizer.ggml.merges", _Value.STRING, [_string(" ".join(_MERGE))])
    for role in ("bos", "eos"):
        yield _entry(f"tokenizer.ggml.{role}_token_id", _Value.U32, struct.pack("<I", 0))


def _weights(shape: tuple[int, ...], kind: _Type, source: random.Random) -> bytes:
    if kind is _F32:
        return struct.pack("<f", 1.0) * shape[0]
    fields = kind.fields * (shape[0] * shape[1] // kind.weights)
    return b"".join(_SCALE if field == "s" else source.randbytes(int(field)) for field in fields)


def _entry(key: str, kind: _Value, value: bytes) -> bytes:
    return _string(key) + struct.pack("<I", kind) + value


def _array(key: str, kind: _Value, values: list[bytes]) -> bytes:
    return _entry(key, _Value.ARRAY, struct.pack("<IQ", kind, len(values)) + b"".join(values))


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _padded(part: bytes) -> bytes:
    return part + bytes(-len(part) % _ALIGNMENT)
