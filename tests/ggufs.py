"""Makes GGUF models for tests: a tiny llama that talks, and architectures whose weights take no disk."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import TokenType

# llama-server derives its tool-call parser from the template: without a branch for tools it ignores them.
CHAT_TEMPLATE = r"""
{%- if tools %}
    {{- '<|im_start|>system\nTools:\n<tools>' }}
    {%- for tool in tools %}
        {{- '\n' }}{{- tool | tojson }}
    {%- endfor %}
    {{- '\n</tools>\nReturn <tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n' }}
    {{- '</tool_call><|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- if message.content %}
        {{- message.content }}
    {%- endif %}
    {%- if message.tool_calls %}
        {%- for tc in message.tool_calls %}
            {{- '<tool_call>\n{"name": "' + tc.function.name + '", "arguments": ' }}
            {{- tc.function.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""
WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "you",
    "that",
    "it",
    "he",
    "was",
    "for",
    "on",
    "are",
    "with",
    "they",
]
SPECIAL = [("<unk>", TokenType.UNKNOWN), ("<s>", TokenType.CONTROL), ("</s>", TokenType.CONTROL)]
BYTES = [(f"<0x{byte:02X}>", TokenType.BYTE) for byte in range(256)]
CHAT_MARKS = [
    ("<|im_start|>", TokenType.CONTROL),
    ("<|im_end|>", TokenType.CONTROL),
    ("<tool_call>\n{", TokenType.USER_DEFINED),
    ("</tool_call>", TokenType.USER_DEFINED),
]
SPACE = "\u2581"


def make_tiny(
    path: Path,
    *,
    layers: int = 2,
    width: int = 64,
    feed_forward: int = 128,
    heads: int = 4,
    heads_kv: int = 2,
    context: int = 4096,
    name: str = "tiny-random",
    chat_template: str | None = CHAT_TEMPLATE,
    seed: int = 1,
    marks: Iterable[str] = (),
    **metadata: int | float | str | bool,
) -> Path:
    """A llama that writes printable nonsense, quickly, until max_tokens: special tokens are never sampled.

    `marks` are more special tokens.
    """
    vocabulary = pieces() + [(mark, TokenType.CONTROL) for mark in marks]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads_kv)
    writer.add_rope_dimension_count(width // heads)
    writer.add_layer_norm_rms_eps(1e-5)
    _add_tokenizer(writer, vocabulary)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    _add_metadata(writer, metadata)
    width_kv = width // heads * heads_kv
    for tensor, values in _tiny_weights(vocabulary, layers, width, feed_forward, width_kv, seed):
        writer.add_tensor(tensor, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def pieces() -> list[tuple[str, TokenType]]:
    """Of a tiny model, in the order of their tokens. The tokenizer merges pairs, so that every beginning of a
    word must be a token too."""
    beginnings = [(SPACE + word)[:end] for word in WORDS for end in range(2, len(word) + 2)]
    characters = [SPACE, *string.digits, *string.ascii_letters, *string.punctuation, "\n"]
    pieces = dict.fromkeys(beginnings + characters)
    return SPECIAL + BYTES + CHAT_MARKS + [(piece, TokenType.NORMAL) for piece in pieces]


def _add_tokenizer(writer: gguf.GGUFWriter, vocabulary: list[tuple[str, TokenType]]) -> None:
    texts = [text for text, _ in vocabulary]
    writer.add_vocab_size(len(texts))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(texts)
    writer.add_token_scores([-float(rank) for rank in range(len(texts))])
    writer.add_token_types([int(kind) for _, kind in vocabulary])
    writer.add_bos_token_id(texts.index("<s>"))
    writer.add_eos_token_id(texts.index("<|im_end|>"))
    writer.add_unk_token_id(texts.index("<unk>"))
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)  # True breaks json_schema: the generation prompt is fed to the grammar


def _tiny_weights(
    vocabulary: list[tuple[str, TokenType]],
    layers: int,
    width: int,
    feed_forward: int,
    width_kv: int,
    seed: int,
) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    random = np.random.default_rng(seed)

    def matrix(rows: int, columns: int, scale: float = 1.0) -> np.ndarray[Any, Any]:
        values = random.standard_normal((rows, columns), dtype=np.float32)
        scaled: np.ndarray[Any, Any] = (values * scale / np.sqrt(columns)).astype(np.float16)
        return scaled

    ones = np.ones(width, dtype=np.float32)
    output = matrix(len(vocabulary), width, scale=3.0)
    output[[kind != TokenType.NORMAL for _, kind in vocabulary]] = 0  # below all others: never in the top 40
    yield "token_embd.weight", matrix(len(vocabulary), width, scale=float(np.sqrt(width)))
    yield "output.weight", output
    yield "output_norm.weight", ones
    for block in range(layers):
        for norm in ("attn_norm", "ffn_norm"):
            yield f"blk.{block}.{norm}.weight", ones
        for kind, rows, columns in (
            ("attn_q", width, width),
            ("attn_k", width_kv, width),
            ("attn_v", width_kv, width),
            ("attn_output", width, width),
            ("ffn_gate", feed_forward, width),
            ("ffn_up", feed_forward, width),
            ("ffn_down", width, feed_forward),
        ):
            yield f"blk.{block}.{kind}.weight", matrix(rows, columns)


def _add_metadata(writer: gguf.GGUFWriter, metadata: dict[str, Any]) -> None:
    """Under the architecture's name; `__` stands for a dot."""
    for key, value in metadata.items():
        full_key = f"{writer.arch}.{key.replace('__', '.')}"
        if isinstance(value, bool):
            writer.add_bool(full_key, value)
        elif isinstance(value, int):
            writer.add_uint32(full_key, value)
        elif isinstance(value, float):
            writer.add_float32(full_key, value)
        elif isinstance(value, str):
            writer.add_string(full_key, value)
        else:
            writer.add_array(full_key, value)


def make_vocab_header(path: Path, n_tokens: int) -> Path:
    """A model file that is nothing but a large vocabulary."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_token_list([f"{SPACE}token{index}" for index in range(n_tokens)])
    writer.add_token_scores([0.0] * n_tokens)
    writer.add_token_types([int(TokenType.NORMAL)] * n_tokens)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return path


class Sketch:
    """A model whose weights are all zero and take no room: the file is sparse. It loads, and says nothing."""

    def __init__(
        self, architecture: str, vocabulary: int, weights: Type = Type.Q8_0, **metadata: Any
    ) -> None:
        self.architecture = architecture
        self.vocabulary = vocabulary
        self.weights = weights
        self.metadata = {"context_length": 131072, **metadata}
        self.tensors: list[tuple[str, tuple[int, ...], Type]] = []

    def add(self, name: str, *shape: int, weights: Type | None = None) -> None:
        """The shape in ggml's order. Vectors and biases are f32."""
        vector = Type.F32 if len(shape) == 1 else self.weights
        self.tensors.append((name, shape, vector if weights is None else weights))

    def write(self, path: Path, name: str) -> Path:
        writer = gguf.GGUFWriter(path, self.architecture)
        writer.add_name(name)
        _add_metadata(writer, self.metadata)
        (self._add_word_pieces if self.architecture == "bert" else self._add_words)(writer)
        for tensor, shape, weights in self.tensors:
            self._add_info(writer, tensor, shape, weights)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        data_bytes = sum(-(-info.nbytes // 32) * 32 for info in writer.tensors[0].values())
        writer.close()
        with path.open("r+b") as file:
            file.truncate(-(-path.stat().st_size // 32) * 32 + data_bytes)
        return path

    @staticmethod
    def _add_info(writer: gguf.GGUFWriter, name: str, shape: tuple[int, ...], weights: Type) -> None:
        block, block_bytes = gguf.GGML_QUANT_SIZES[weights]
        n_bytes = int(np.prod(shape)) // block * block_bytes
        numpy_shape = tuple(reversed(shape))
        if weights in (Type.F32, Type.F16):
            dtype = np.dtype(np.float32 if weights == Type.F32 else np.float16)
            writer.add_tensor_info(name, numpy_shape, dtype, n_bytes)
        else:
            rows = (*numpy_shape[:-1], numpy_shape[-1] // block * block_bytes)
            writer.add_tensor_info(name, rows, np.dtype(np.uint8), n_bytes, raw_dtype=weights)

    def _add_words(self, writer: gguf.GGUFWriter) -> None:
        known = SPECIAL + BYTES
        words = [f"{SPACE}t{index}" for index in range(self.vocabulary - len(known))]
        writer.add_tokenizer_model("llama")
        writer.add_token_list([text for text, _ in known] + words)
        writer.add_token_types([int(kind) for _, kind in known] + [int(TokenType.NORMAL)] * len(words))
        writer.add_token_scores([0.0] * self.vocabulary)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)

    def _add_word_pieces(self, writer: gguf.GGUFWriter) -> None:
        known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        words = [f"{SPACE}t{index}" for index in range(self.vocabulary - len(known))]
        writer.add_tokenizer_model("bert")
        writer.add_tokenizer_pre("default")
        writer.add_token_type_count(2)
        writer.add_token_list(known + words)
        writer.add_token_types([3, 2, 3, 3, 3] + [1] * len(words))
        tokens = {"padding": 0, "unknown": 1, "cls": 2, "seperator": 3, "mask": 4, "bos": 2, "eos": 3}
        for kind, token in tokens.items():
            writer.add_uint32(f"tokenizer.ggml.{kind}_token_id", token)


def _model(
    architecture: str,
    vocabulary: int,
    width: int,
    layers: int,
    *,
    weights: Type = Type.Q8_0,
    tied: bool = False,
    **more: Any,
) -> Sketch:
    """What all models that write text have."""
    norm: dict[str, Any] = {"attention__layer_norm_rms_epsilon": 1e-5}
    sketch = Sketch(
        architecture, vocabulary, weights, embedding_length=width, block_count=layers, **norm, **more
    )
    sketch.add("token_embd.weight", width, vocabulary)
    sketch.add("output_norm.weight", width)
    if not tied:
        sketch.add("output.weight", width, vocabulary)
    return sketch


def _heads(heads: int, heads_kv: int, head: int) -> dict[str, Any]:
    return {
        "attention__head_count": heads,
        "attention__head_count_kv": heads_kv,
        "attention__key_length": head,
        "attention__value_length": head,
        "rope__dimension_count": head,
    }


def _norms(sketch: Sketch, block: int, width: int, *names: str) -> None:
    for name in names:
        sketch.add(f"blk.{block}.{name}.weight", width)


def _attention(
    sketch: Sketch,
    block: int,
    width: int,
    heads: int,
    heads_kv: int,
    head: int,
    *,
    bias: bool = False,
    norms: bool = False,
) -> None:
    for kind, count in (("q", heads), ("k", heads_kv), ("v", heads_kv)):
        sketch.add(f"blk.{block}.attn_{kind}.weight", width, count * head)
        if bias:
            sketch.add(f"blk.{block}.attn_{kind}.bias", count * head)
    sketch.add(f"blk.{block}.attn_output.weight", heads * head, width)
    if norms:
        _norms(sketch, block, head, "attn_q_norm", "attn_k_norm")


def _feed_forward(
    sketch: Sketch, block: int, width: int, inner: int, *, gate: bool = True, suffix: str = ""
) -> None:
    for kind in ("gate", "up") if gate else ("up",):
        sketch.add(f"blk.{block}.ffn_{kind}{suffix}.weight", width, inner)
    sketch.add(f"blk.{block}.ffn_down{suffix}.weight", inner, width)


def _experts(sketch: Sketch, block: int, width: int, inner: int, count: int) -> None:
    sketch.add(f"blk.{block}.ffn_gate_inp.weight", width, count, weights=Type.F32)
    for kind, columns, rows in (("gate", width, inner), ("up", width, inner), ("down", inner, width)):
        sketch.add(f"blk.{block}.ffn_{kind}_exps.weight", columns, rows, count)


def _dense(
    architecture: str, vocabulary: int, width: int, layers: int, inner: int, heads: tuple[int, int, int],
    *, bias: bool = False, norms: bool = False, post_norms: bool = False, **more: Any,
) -> Sketch:  # fmt: skip
    sketch = _model(
        architecture, vocabulary, width, layers, feed_forward_length=inner, **_heads(*heads), **more
    )
    for block in range(layers):
        _norms(sketch, block, width, "attn_norm", "ffn_norm")
        if post_norms:
            _norms(sketch, block, width, "post_attention_norm", "post_ffw_norm")
        _attention(sketch, block, width, *heads, bias=bias, norms=norms)
        _feed_forward(sketch, block, width, inner)
    return sketch


def _llama() -> Sketch:
    return _dense("llama", 32000, 1024, 4, 3584, (16, 4, 64), weights=Type.Q4_0)


def _qwen2() -> Sketch:
    return _dense("qwen2", 32768, 896, 4, 4864, (14, 2, 64), tied=True, bias=True)


def _qwen3() -> Sketch:
    return _dense("qwen3", 32768, 768, 4, 2304, (12, 4, 128), tied=True, norms=True)


def _gemma3() -> Sketch:
    window: dict[str, Any] = {"attention__sliding_window": 512}
    return _dense(
        "gemma3", 32768, 640, 12, 2048, (4, 1, 256), tied=True, norms=True, post_norms=True, **window
    )


def _qwen3moe() -> Sketch:
    width, layers, heads, inner, experts = 512, 4, (8, 2, 128), 256, 32
    chosen: dict[str, Any] = {
        "expert_count": experts,
        "expert_used_count": 8,
        "expert_feed_forward_length": inner,
    }
    sketch = _model(
        "qwen3moe",
        32000,
        width,
        layers,
        weights=Type.Q4_0,
        feed_forward_length=1536,
        **chosen,
        **_heads(*heads),
    )
    for block in range(layers):
        _norms(sketch, block, width, "attn_norm", "ffn_norm")
        _attention(sketch, block, width, *heads, norms=True)
        _experts(sketch, block, width, inner, experts)
    return sketch


def _gptoss() -> Sketch:
    width, layers, heads, inner, experts = 512, 4, (16, 4, 64), 512, 16
    chosen: dict[str, Any] = {
        "expert_count": experts,
        "expert_used_count": 4,
        "expert_feed_forward_length": inner,
    }
    window: dict[str, Any] = {"attention__sliding_window": 128}
    sketch = _model(
        "gpt-oss", 32768, width, layers, feed_forward_length=inner, **window, **chosen, **_heads(*heads)
    )
    for block in range(layers):
        _norms(sketch, block, width, "attn_norm", "post_attention_norm")
        _attention(sketch, block, width, *heads, bias=True)
        sketch.add(f"blk.{block}.attn_output.bias", width)
        sketch.add(f"blk.{block}.attn_sinks.weight", heads[0])
        sketch.weights = Type.MXFP4
        _experts(sketch, block, width, inner, experts)
        sketch.weights = Type.Q8_0
        sketch.add(f"blk.{block}.ffn_gate_inp.bias", experts)
        for kind, rows in (("gate", inner), ("up", inner), ("down", width)):
            sketch.add(f"blk.{block}.ffn_{kind}_exps.bias", rows, experts, weights=Type.F32)
    return sketch


def _deepseek2() -> Sketch:
    """Compressed attention: one latent row per token instead of keys and values."""
    width, layers, heads, rope, plain, value, latent, query = 768, 4, 8, 64, 64, 64, 512, 256
    inner, experts = 256, 16
    sketch = _model(
        "deepseek2", 32000, width, layers, feed_forward_length=2048, leading_dense_block_count=1,
        expert_count=experts, expert_used_count=4, expert_feed_forward_length=inner, expert_shared_count=1,
        expert_weights_scale=1.0, expert_gating_func=1,
        attention__head_count=heads, attention__head_count_kv=1,
        attention__q_lora_rank=query, attention__kv_lora_rank=latent,
        attention__key_length=latent + rope, attention__value_length=latent,
        attention__key_length_mla=plain + rope, attention__value_length_mla=value, rope__dimension_count=rope,
    )  # fmt: skip
    for block in range(layers):
        prefix = f"blk.{block}."
        _norms(sketch, block, width, "attn_norm", "ffn_norm")
        _norms(sketch, block, query, "attn_q_a_norm")
        _norms(sketch, block, latent, "attn_kv_a_norm")
        sketch.add(prefix + "attn_q_a.weight", width, query)
        sketch.add(prefix + "attn_q_b.weight", query, heads * (plain + rope))
        sketch.add(prefix + "attn_kv_a_mqa.weight", width, latent + rope)
        sketch.add(prefix + "attn_k_b.weight", plain, latent, heads)
        sketch.add(prefix + "attn_v_b.weight", latent, value, heads)
        sketch.add(prefix + "attn_output.weight", heads * value, width)
        if block == 0:
            _feed_forward(sketch, block, width, 2048)
        else:
            _experts(sketch, block, width, inner, experts)
            _feed_forward(sketch, block, width, inner, suffix="_shexp")
    return sketch


MAMBA: dict[str, Any] = {
    "ssm__conv_kernel": 4,
    "ssm__state_size": 16,
    "ssm__time_step_rank": 32,
    "ssm__inner_size": 1024,
}


def _state_space(sketch: Sketch, block: int, width: int, *, norms: bool = False) -> None:
    kernel, state, rank, inner = MAMBA.values()
    prefix = f"blk.{block}.ssm_"
    sketch.add(prefix + "in.weight", width, 2 * inner)
    sketch.add(prefix + "conv1d.weight", kernel, inner, weights=Type.F32)
    sketch.add(prefix + "conv1d.bias", inner)
    sketch.add(prefix + "x.weight", inner, rank + 2 * state)
    sketch.add(prefix + "dt.weight", rank, inner, weights=Type.F32)
    sketch.add(prefix + "dt.bias", inner)
    sketch.add(prefix + "a", state, inner, weights=Type.F32)
    sketch.add(prefix + "d", inner)
    sketch.add(prefix + "out.weight", inner, width)
    if norms:
        for kind, size in (("dt", rank), ("b", state), ("c", state)):
            sketch.add(f"{prefix}{kind}_norm.weight", size)


def _mamba() -> Sketch:
    none: dict[str, Any] = {"feed_forward_length": 0, "attention__head_count": 0}
    sketch = _model("mamba", 32000, 512, 6, weights=Type.F16, tied=True, **none, **MAMBA)
    for block in range(6):
        _norms(sketch, block, 512, "attn_norm")
        _state_space(sketch, block, 512)
    return sketch


def _jamba() -> Sketch:
    """Every fourth layer is attention, the others keep a recurrent state."""
    width, inner = 512, 1536
    heads_kv = [0, 0, 0, 2] * 2
    heads: dict[str, Any] = {"attention__head_count": 8, "attention__head_count_kv": heads_kv}
    sketch = _model(
        "jamba", 32000, width, 8, weights=Type.F16, tied=True, feed_forward_length=inner, **heads, **MAMBA
    )
    for block, count in enumerate(heads_kv):
        _norms(sketch, block, width, "attn_norm", "ffn_norm")
        if count:
            _attention(sketch, block, width, 8, count, 64)
        else:
            _state_space(sketch, block, width, norms=True)
        _feed_forward(sketch, block, width, inner)
    return sketch


def _qwen3next() -> Sketch:
    """Gated delta nets with experts, attention in every fourth layer."""
    width, heads, heads_kv, head, inner, experts = 512, 8, 2, 128, 256, 16
    state, groups, rank = 128, 4, 8
    keys, values = state * groups, state * rank
    sketch = _model(
        "qwen3next", 32768, width, 8, feed_forward_length=1024, expert_count=experts, expert_used_count=4,
        expert_feed_forward_length=inner, expert_shared_feed_forward_length=inner, ssm__conv_kernel=4,
        ssm__inner_size=values, ssm__state_size=state, ssm__time_step_rank=rank, ssm__group_count=groups,
        **_heads(heads, heads_kv, head),
    )  # fmt: skip
    for block in range(8):
        prefix = f"blk.{block}."
        _norms(sketch, block, width, "attn_norm", "post_attention_norm")
        if (block + 1) % 4 == 0:
            sketch.add(prefix + "attn_q.weight", width, 2 * heads * head)
            sketch.add(prefix + "attn_k.weight", width, heads_kv * head)
            sketch.add(prefix + "attn_v.weight", width, heads_kv * head)
            sketch.add(prefix + "attn_output.weight", heads * head, width)
            _norms(sketch, block, head, "attn_q_norm", "attn_k_norm")
        else:
            sketch.add(prefix + "attn_qkv.weight", width, 2 * keys + values)
            sketch.add(prefix + "attn_gate.weight", width, values)
            sketch.add(prefix + "ssm_conv1d.weight", 4, 2 * keys + values, weights=Type.F32)
            sketch.add(prefix + "ssm_dt.bias", rank)
            sketch.add(prefix + "ssm_a", rank)
            sketch.add(prefix + "ssm_ba.weight", width, 2 * rank)
            sketch.add(prefix + "ssm_norm.weight", state)
            sketch.add(prefix + "ssm_out.weight", values, width)
        _experts(sketch, block, width, inner, experts)
        sketch.add(prefix + "ffn_gate_inp_shexp.weight", width)
        _feed_forward(sketch, block, width, inner, suffix="_shexp")
    return sketch


def _bert() -> Sketch:
    width, layers, inner, heads = 384, 6, 1536, 12
    sketch = Sketch(
        "bert", 30522, Type.F16, context_length=512, embedding_length=width, block_count=layers,
        feed_forward_length=inner, attention__head_count=heads, attention__layer_norm_epsilon=1e-12,
        attention__causal=False, pooling_type=2,
    )  # fmt: skip
    sketch.add("token_embd.weight", width, 30522)
    sketch.add("position_embd.weight", width, 512, weights=Type.F32)
    sketch.add("token_types.weight", width, 2, weights=Type.F32)
    sketch.add("token_embd_norm.weight", width)
    sketch.add("token_embd_norm.bias", width)
    for block in range(layers):
        prefix = f"blk.{block}."
        _attention(sketch, block, width, heads, heads, width // heads, bias=True)
        _feed_forward(sketch, block, width, inner, gate=False)
        sketch.add(prefix + "attn_output.bias", width)
        sketch.add(prefix + "ffn_up.bias", inner)
        sketch.add(prefix + "ffn_down.bias", width)
        for norm in ("attn_output_norm", "layer_output_norm"):
            sketch.add(f"{prefix}{norm}.weight", width)
            sketch.add(f"{prefix}{norm}.bias", width)
    return sketch


ARCHITECTURES: dict[str, Callable[[], Sketch]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma3": _gemma3,
    "qwen3moe": _qwen3moe,
    "gptoss": _gptoss,
    "deepseek2": _deepseek2,
    "mamba": _mamba,
    "jamba": _jamba,
    "qwen3next": _qwen3next,
    "bert": _bert,
}


def make_architecture(name: str, path: Path) -> Path:
    """One of ARCHITECTURES as a sparse file of zeros: it loads, takes real memory, and says nothing."""
    return ARCHITECTURES[name]().write(path, name)
