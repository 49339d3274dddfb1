"""The compute buffer: scratch memory of one batch, as ggml's allocator lays out the worst graph.

Memory is reused, so the buffer is as large as the tensors alive at the same time: those of one layer, or the
logits at the end. Which tensors these are was fitted to the sizes that llama-server logs.
"""

from __future__ import annotations

from dataclasses import dataclass

from app.gguf.header import GgufHeader
from app.memory.estimate.shape import GATED_DELTA_NET, MIXED_STREAMS, ModelShape

F32_BYTES = 4


@dataclass(frozen=True, slots=True)
class Batch:
    """How llama-server cuts the context and the work, from its flags (`llama_context::llama_context`)."""

    tokens: int  # of one step
    outputs: int  # tokens of it whose logits are wanted
    slots: int
    cells: int  # of the cache, per stream
    window_cells: int  # the same for layers with a sliding window
    streams: int
    flash_attention: bool

    @property
    def activation_bytes(self) -> int:
        """One number per token."""
        return F32_BYTES * self.tokens


def compute_bytes(header: GgufHeader, shape: ModelShape, batch: Batch) -> int:
    residual = _residuals(header, shape) * shape.width * batch.activation_bytes
    layer = max(_attention(header, shape, batch), _feed_forward(header, shape, batch))
    return max(mask_bytes(shape, batch) + residual + layer, _logits(shape, batch))


def host_compute_bytes(header: GgufHeader, shape: ModelShape, batch: Batch) -> int:
    """Without a device the embedded tokens, which are looked up on the host, lie in the same buffer."""
    return compute_bytes(header, shape, batch) + shape.width * batch.activation_bytes


def input_bytes(shape: ModelShape, batch: Batch) -> int:
    """What stays on the host with full offload: the embedded tokens, once more as inputs, and the masks."""
    return mask_bytes(shape, batch) + 2 * shape.width * batch.activation_bytes


def mask_bytes(shape: ModelShape, batch: Batch) -> int:
    """Who may see whom: a row of all cells per token, one matrix for each kind of layer."""
    if not shape.has_attention:
        return 0
    cells = batch.tokens if shape.keeps_no_cache else 0
    if not shape.keeps_no_cache:
        full = any(not layer.window for layer in shape.layers)
        cells = full * batch.cells + (shape.window > 0) * batch.window_cells
    return (2 if batch.flash_attention else 4) * batch.tokens * cells


def _residuals(header: GgufHeader, shape: ModelShape) -> int:
    """How many activations as wide as the model live through a layer, beside what the layer needs itself."""
    if shape.architecture in MIXED_STREAMS:
        return 2 + 2 * header.number("altup.num_inputs", 4)
    return 18 if header.number("wkv.head_size") else 2  # shifted, mixed and projected inputs (observed)


def _attention(header: GgufHeader, shape: ModelShape, batch: Batch) -> int:
    """Queries before and after rotation, keys and values; without flash attention all scores too."""
    query, key, value = _query_key_value(shape, batch)
    alive = 2 * query + key + value
    if shape.latent_key:
        per_head = shape.head_k + shape.head_v + shape.latent_key
        alive = (shape.layers[0].heads * per_head + 2 * shape.head_k) * batch.activation_bytes
    alive = max(alive, _recurrence(header, shape, batch, alive + query))
    if batch.flash_attention or not shape.has_attention:
        return alive
    cells = batch.tokens if shape.keeps_no_cache else batch.cells
    scores = shape.max_heads * cells * batch.activation_bytes
    return max(alive, scores + _beside_scores(shape, batch))


def _beside_scores(shape: ModelShape, batch: Batch) -> int:
    query, key, value = _query_key_value(shape, batch)
    residual = shape.width * batch.activation_bytes
    if query == residual:  # the queries' memory is reused for the result
        return key + value
    return 2 * (query + key + value)


def _query_key_value(shape: ModelShape, batch: Batch) -> tuple[int, int, int]:
    keys = shape.max_heads_kv * batch.activation_bytes
    return shape.max_heads * shape.head_k * batch.activation_bytes, keys * shape.head_k, keys * shape.head_v


def _recurrence(header: GgufHeader, shape: ModelShape, batch: Batch, gated_attention: int) -> int:
    """Several copies of the widened input, and three of the state for each slot."""
    inner = header.number("ssm.inner_size")
    state = max(layer.recurrent_state for layer in shape.layers)
    states = 3 * F32_BYTES * state * batch.slots
    if shape.architecture in GATED_DELTA_NET:
        return max(gated_attention, _delta_net_width(header) * batch.activation_bytes + states)
    if inner:
        return 5 * inner * batch.activation_bytes + states
    return 6 * shape.width * batch.activation_bytes if header.number("shortconv.l_cache") else 0


def recurrence_spread(header: GgufHeader, shape: ModelShape, batch: Batch) -> int:
    """By how much builds differ for gated delta nets: b11434 with CUDA takes this much more than b10434."""
    if shape.architecture not in GATED_DELTA_NET:
        return 0
    return _delta_net_width(header) * batch.activation_bytes


def _delta_net_width(header: GgufHeader) -> int:
    """Three copies of the convolved input, and the gate."""
    inner = header.number("ssm.inner_size")
    convolved = inner + 2 * header.number("ssm.group_count") * header.number("ssm.state_size")
    return 3 * convolved + inner


def _feed_forward(header: GgufHeader, shape: ModelShape, batch: Batch) -> int:
    elements = max(_dense(header), _experts(header, shape))
    return elements * batch.activation_bytes + _slack(header, shape, batch)


def _dense(header: GgufHeader) -> int:
    """Elements per token: gate, up and their product, or only up where there is no gate."""
    up, gate = _rows(header, "ffn_up"), _rows(header, "ffn_gate")
    if gate:
        return 3 * up
    down = _row_length(header, "ffn_down")
    return 3 * up // 2 if up == 2 * down else up  # twice as wide: gate and up in one tensor


def _experts(header: GgufHeader, shape: ModelShape) -> int:
    """Each token's chosen experts, side by side; their results reuse the room of gate and up if they fit."""
    wide = max(_rows(header, "ffn_up_exps"), _rows(header, "ffn_gate_exps"))
    wide = wide or _rows(header, "ffn_gate_up_exps") // 2
    result = shape.width if shape.width > 2 * wide else 0
    return header.number("expert_used_count") * (3 * wide + result)


def _slack(header: GgufHeader, shape: ModelShape, batch: Batch) -> int:
    """A hole of one query that the allocator leaves (observed)."""
    if not shape.has_attention or shape.keeps_no_cache or shape.latent_key or header.number("ssm.inner_size"):
        return 0
    query, _, _ = _query_key_value(shape, batch)
    return query


def _logits(shape: ModelShape, batch: Batch) -> int:
    if shape.keeps_no_cache:
        return 0
    return shape.vocabulary * batch.outputs * F32_BYTES + shape.width * batch.activation_bytes


def _rows(header: GgufHeader, kind: str) -> int:
    return max((shape[1] for shape in _shapes(header, kind)), default=0)


def _row_length(header: GgufHeader, kind: str) -> int:
    return max((shape[0] for shape in _shapes(header, kind)), default=0)


def _shapes(header: GgufHeader, kind: str) -> list[tuple[int, ...]]:
    """Of the matrices of one kind in all blocks."""
    suffix = f".{kind}.weight"
    return [t.shape for t in header.tensors.values() if t.name.endswith(suffix) and len(t.shape) > 1]
