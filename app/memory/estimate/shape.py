"""The numbers of a model that its memory depends on, read from the header: what each layer keeps per token.

Sources are llama.cpp's `llama-model.cpp` (hyperparameters) and `llama-hparams.cpp` (cache and state widths).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from app.gguf.header import ENCODERS, GgufHeader

MAX_LAYERS = 4096

# These see their whole input at once, like encoders, but write text by diffusion.
DIFFUSION = frozenset({"dream", "llada", "llada-moe", "rnd1"})
PURELY_RECURRENT = frozenset({"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"})
GATED_DELTA_NET = frozenset({"qwen3next", "qwen35", "qwen35moe"})
NEMOTRON_HYBRID = frozenset({"nemotron_h", "nemotron_h_moe"})
BOTH_IN_EACH_LAYER = frozenset({"falcon-h1"})  # attention and a recurrent state side by side
MIXED_STREAMS = frozenset({"gemma3n"})  # several residuals side by side (`altup`)
FIRST_SHARING_LAYER: Mapping[str, int] = MappingProxyType({"gemma3n": 20})  # whatever the file says
FIXED_WINDOWS: Mapping[str, int] = MappingProxyType({"llama4": 8192})
WINDOW_ONLY_WITH: Mapping[str, int] = MappingProxyType({"exaone4": 64})  # layers: its larger model has one
IGNORES_ITS_WINDOW = frozenset({"phi3"})  # so does llama.cpp for it

# Where the file does not say it: each n-th layer sees everything; n, and whether it is the first of the n.
WINDOW_PERIODS: Mapping[str, tuple[int, bool]] = MappingProxyType({
    "gemma2": (2, False), "gemma3": (6, False), "gemma3n": (5, False), "gpt-oss": (2, False),
    "cohere2": (4, False), "exaone4": (4, False), "exaone-moe": (4, False), "olmo2": (4, False),
    "llama4": (4, False), "afmoe": (4, False), "plamo3": (8, False), "mellum": (4, False),
    "smallthinker": (4, True), "cohere2moe": (4, True), "laguna": (4, True),
})  # fmt: skip

# Architectures whose memory is known to follow these rules; others are estimated by them too, but marked.
KNOWN = frozenset(WINDOW_PERIODS).union(
    ENCODERS, DIFFUSION, PURELY_RECURRENT, GATED_DELTA_NET, NEMOTRON_HYBRID, BOTH_IN_EACH_LAYER,
    {
        "llama", "mistral3", "qwen", "qwen2", "qwen2moe", "qwen2vl", "qwen3", "qwen3moe", "qwen3vl",
        "qwen3vlmoe", "gemma", "phi2", "phi3", "phimoe", "deepseek", "deepseek2", "jamba", "falcon",
        "starcoder", "starcoder2",
        "command-r", "olmo", "olmoe", "granite", "granitemoe", "granitehybrid", "nemotron", "glm4", "glm4moe",
        "chatglm", "smollm3", "lfm2", "lfm2moe", "ernie4_5", "ernie4_5-moe", "hunyuan-dense", "hunyuan-moe",
        "minicpm", "minicpm3", "stablelm", "internlm2", "exaone", "gpt2", "gptneox", "mpt", "baichuan",
        "orion", "xverse", "seed_oss", "bailingmoe", "dots1", "kimi-linear", "minimax-m2", "plamo2",
    },
)  # fmt: skip


class UnknownShape(ValueError):
    """The header lacks the numbers that the memory follows from."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What one layer keeps. Widths are elements per token, states are elements per sequence."""

    heads: int
    heads_kv: int
    k_width: int
    v_width: int
    window: int  # tokens that it sees; 0: all
    conv_state: int
    recurrent_state: int

    @property
    def state(self) -> int:
        return self.conv_state + self.recurrent_state


@dataclass(frozen=True, slots=True)
class ModelShape:
    architecture: str
    width: int  # of the embedding
    vocabulary: int
    layers: tuple[Layer, ...]  # without the heads for multi-token prediction, which are not loaded by default
    block_count: int  # with them
    head_k: int
    head_v: int
    latent_key: int  # keys of compressed attention (MLA) after decompression; 0: ordinary attention
    causal: bool

    @property
    def keeps_no_cache(self) -> bool:
        return self.architecture in ENCODERS or self.architecture in DIFFUSION

    @property
    def has_attention(self) -> bool:
        return self.architecture not in PURELY_RECURRENT

    @property
    def max_heads(self) -> int:
        return max(layer.heads for layer in self.layers)

    @property
    def max_heads_kv(self) -> int:
        return max(layer.heads_kv for layer in self.layers)

    @property
    def window(self) -> int:
        return max(layer.window for layer in self.layers)


def shape_of(header: GgufHeader) -> ModelShape:
    embedding = header.tensors.get("token_embd.weight")
    width, blocks = _number(header, "embedding_length"), _number(header, "block_count")
    if embedding is None or len(embedding.shape) != 2 or not width or not 1 <= blocks <= MAX_LAYERS:
        raise UnknownShape(f"the header of architecture {header.architecture!r} lacks its dimensions")
    heads = max(_per_layer(header, "attention.head_count", i) for i in range(blocks))
    head = width // heads if heads else 0
    layers = max(blocks - _number(header, "nextn_predict_layers"), 1)
    return ModelShape(
        architecture=header.architecture,
        width=width,
        vocabulary=embedding.shape[1],
        layers=tuple(_layer(header, index, layers, head) for index in range(layers)),
        block_count=blocks,
        head_k=_number(header, "attention.key_length", head),
        head_v=_number(header, "attention.value_length", head),
        latent_key=_number(header, "attention.key_length_mla"),
        causal=bool(_number(header, "attention.causal", 1)),
    )


def _layer(header: GgufHeader, index: int, count: int, head: int) -> Layer:
    window = _window(header, index)
    conv_state, recurrent_state = _states(header) if _is_recurrent(header, index) else (0, 0)
    cached = not _keeps_no_kv(header, index, count)
    k_width, v_width = _kv_widths(header, index, head, windowed=window > 0) if cached else (0, 0)
    return Layer(
        heads=_per_layer(header, "attention.head_count", index),
        heads_kv=_heads_kv(header, index),
        k_width=k_width,
        v_width=v_width,
        window=window,
        conv_state=conv_state,
        recurrent_state=recurrent_state,
    )


def _keeps_no_kv(header: GgufHeader, index: int, count: int) -> bool:
    """Encoders, recurrent layers, and the last layers where those share the cache of earlier ones."""
    architecture = header.architecture
    if architecture in ENCODERS or architecture in DIFFUSION:
        return True
    if index >= FIRST_SHARING_LAYER.get(architecture, count - _number(header, "attention.shared_kv_layers")):
        return True
    return _is_recurrent(header, index) and architecture not in BOTH_IN_EACH_LAYER


def _kv_widths(header: GgufHeader, index: int, head: int, *, windowed: bool) -> tuple[int, int]:
    """Heads that share keys count once. Compressed attention (MLA) keeps one latent row, as K."""
    heads_kv = _heads_kv(header, index)
    head_k, head_v = (_number(header, f"attention.{kind}_length", head) for kind in ("key", "value"))
    if windowed:
        head_k = _number(header, "attention.key_length_swa", head_k)
        head_v = _number(header, "attention.value_length_swa", head_v)
    latent = _number(header, "attention.key_length_mla")
    return heads_kv * head_k, 0 if latent else heads_kv * head_v


def _window(header: GgufHeader, index: int) -> int:
    """Tokens that the layer sees; 0: all. Without a known pattern all see all, which is the upper bound."""
    window = _number(header, "attention.sliding_window", FIXED_WINDOWS.get(header.architecture, 0))
    if not window or header.architecture in IGNORES_ITS_WINDOW:
        return 0
    blocks = _number(header, "block_count")
    if WINDOW_ONLY_WITH.get(header.architecture, blocks) != blocks:
        return 0
    pattern = header.value("attention.sliding_window_pattern")
    if isinstance(pattern, tuple):
        return window if index < len(pattern) and pattern[index] else 0
    period, full_first = WINDOW_PERIODS.get(header.architecture, (1, True))
    if isinstance(pattern, int) and pattern > 0:
        period = pattern
    sees_all = index % period == (0 if full_first else period - 1)
    return 0 if sees_all else window


def _is_recurrent(header: GgufHeader, index: int) -> bool:
    """Hybrids say it by layers without KV heads, except for three families with rules of their own."""
    architecture = header.architecture
    if architecture in PURELY_RECURRENT or architecture in BOTH_IN_EACH_LAYER:
        return True
    if architecture in GATED_DELTA_NET:
        if isinstance(header.value("attention.recurrent_layers"), tuple):
            return bool(_per_layer(header, "attention.recurrent_layers", index))
        return (index + 1) % (_number(header, "full_attention_interval", 4) or 4) != 0
    if _heads_kv(header, index) or not isinstance(header.value("attention.head_count_kv"), tuple):
        return False
    if architecture in NEMOTRON_HYBRID:
        return not _per_layer(header, "feed_forward_length", index)
    return any(_number(header, key) for key in ("ssm.inner_size", "shortconv.l_cache", "kda.head_dim"))


def _states(header: GgufHeader) -> tuple[int, int]:
    """Elements of the convolution's and of the recurrent state (`llama_hparams::n_embd_r`, `n_embd_s`)."""
    width, kernel = _number(header, "embedding_length"), _number(header, "ssm.conv_kernel")
    if head := _number(header, "wkv.head_size"):
        return _number(header, "token_shift_count", 2) * width, head * width
    if cached := _number(header, "shortconv.l_cache"):
        return (cached - 1) * width, 0
    if head := _number(header, "kda.head_dim"):
        inner = head * _per_layer(header, "attention.head_count", 0)
        return 3 * max(kernel - 1, 0) * inner, head * inner
    inner, state = _number(header, "ssm.inner_size"), _number(header, "ssm.state_size")
    return max(kernel - 1, 0) * (inner + 2 * _number(header, "ssm.group_count") * state), inner * state


def _heads_kv(header: GgufHeader, index: int) -> int:
    key = "attention.head_count_kv"
    return _per_layer(header, key if header.value(key) is not None else "attention.head_count", index)


def _per_layer(header: GgufHeader, key: str, index: int) -> int:
    """Files keep one number for all layers or an array of them."""
    value = header.value(key)
    if not isinstance(value, tuple):
        return _number(header, key)
    item = value[index] if index < len(value) else 0
    return max(item, 0) if isinstance(item, int) else 0


def _number(header: GgufHeader, key: str, default: int = 0) -> int:
    return max(header.number(key, default), 0)
