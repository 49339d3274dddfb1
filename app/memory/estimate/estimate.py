"""How much memory a llama-server will use, from the header of its model alone: no weight is read.

Weights, KV cache and recurrent state follow llama.cpp's arithmetic; for scratch memory see `compute_buffer`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from app.domain.model_spec import ALL_LAYERS, QUANTISED
from app.gguf.header import GgufHeader
from app.gguf.header_parser import BlockLayout, TensorInfo
from app.memory.estimate.compute_buffer import (
    F32_BYTES,
    Batch,
    compute_bytes,
    host_compute_bytes,
    input_bytes,
    recurrence_spread,
)
from app.memory.estimate.shape import KNOWN, Layer, ModelShape, UnknownShape, shape_of

CELL_STEP = 256  # the cache grows by this many tokens (`llama_kv_cache`: n_pad)
PIPELINE_COPIES = 4
ALIGNMENT_BYTES = 128  # of tensors in device memory

CACHE_LAYOUTS: Mapping[str, BlockLayout] = MappingProxyType({
    "f32": BlockLayout(1, 4), "f16": BlockLayout(1, 2), "bf16": BlockLayout(1, 2),
    "q8_0": BlockLayout(32, 34), "q4_0": BlockLayout(32, 18), "q4_1": BlockLayout(32, 20),
    "iq4_nl": BlockLayout(32, 18), "q5_0": BlockLayout(32, 22), "q5_1": BlockLayout(32, 24),
})  # fmt: skip

BLOCK_TENSOR = re.compile(r"blk\.(\d+)\.")
INPUT_TENSOR = re.compile(r"(token_embd|position_embd|token_types|per_layer_token_embd)\.")


@dataclass(frozen=True, slots=True)
class MemoryParams:
    n_ctx: int  # tokens of one request; 0: what the model was trained for
    slots: int = 1
    n_gpu_layers: int = ALL_LAYERS  # 99 and more: all, 0: CPU only
    type_k: str = "f16"
    type_v: str = "f16"
    flash_attention: bool = True
    n_batch: int = 2048
    n_ubatch: int = 512
    embedding: bool = False
    mmproj_bytes: int = 0
    unified: bool = False  # one pool of cells for all slots


@dataclass(frozen=True, slots=True)
class MemoryShare:
    """Bytes in one place: on the devices, or on the host. `overhead_bytes`: those that no log line shows."""

    weights_bytes: int = 0
    kv_bytes: int = 0
    recurrent_bytes: int = 0
    compute_bytes: int = 0
    overhead_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return self.sure_bytes + self.compute_bytes + self.overhead_bytes

    @property
    def sure_bytes(self) -> int:
        """What follows from the header exactly, if its architecture is known."""
        return self.weights_bytes + self.kv_bytes + self.recurrent_bytes


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    device: MemoryShare
    host: MemoryShare
    exact: bool  # False: the architecture is not known, expect an error of tens of percent
    note: str = ""
    layers: tuple[int, ...] = ()  # the device's sure bytes by layer, the output tensors last
    copies_bytes: int = 0  # more on each device if there are several: they work on different batches


def estimate(header: GgufHeader, params: MemoryParams) -> MemoryEstimate:
    """Never fails: a header that says too little is estimated by the size of its file."""
    try:
        shape = shape_of(header)
    except UnknownShape as reason:
        return _by_file_size(header, params, str(reason))
    known = header.architecture in KNOWN
    note = "" if known else f"architecture {header.architecture!r} is unknown: taken for a usual transformer"
    load = _Load(header, shape, params, batch_of(header, shape, params))
    return MemoryEstimate(
        _device_share(load), _host_share(load), known, note, _device_layers(load), _copies_bytes(load)
    )


def _by_file_size(header: GgufHeader, params: MemoryParams, reason: str) -> MemoryEstimate:
    weights_bytes = header.file_size + params.mmproj_bytes
    note = f"{reason}; estimated by the size of the file"
    if not params.n_gpu_layers:
        return MemoryEstimate(MemoryShare(), MemoryShare(weights_bytes), exact=False, note=note)
    return MemoryEstimate(MemoryShare(weights_bytes), MemoryShare(), exact=False, note=note)


def batch_of(header: GgufHeader, shape: ModelShape, params: MemoryParams) -> Batch:
    slots = max(params.slots, 1)
    n_ctx = _padded((params.n_ctx or header.context_length) * slots, CELL_STEP)
    cells = n_ctx if params.unified else _padded(n_ctx // slots, CELL_STEP)
    step = min(params.n_ubatch, params.n_batch, n_ctx)
    tokens = _padded(step, slots)
    window = shape.window * (slots if params.unified else 1)
    all_outputs = params.embedding or bool(header.pooling_type)
    return Batch(
        tokens=tokens,
        outputs=tokens if all_outputs else min(tokens, slots),
        slots=slots,
        cells=cells,
        window_cells=min(cells, _padded(window + step, CELL_STEP)),
        streams=1 if params.unified else slots,
        flash_attention=params.flash_attention,
    )


@dataclass(frozen=True, slots=True)
class _Load:
    """One model with one set of flags: what every part of the sum depends on."""

    header: GgufHeader
    shape: ModelShape
    params: MemoryParams
    batch: Batch

    @property
    def first_on_device(self) -> int:
        """llama.cpp offloads the last layers; the output tensors come after them and count as one more."""
        if self.params.n_gpu_layers >= ALL_LAYERS:
            return 0
        return max(self.shape.block_count + 1 - self.params.n_gpu_layers, 0)

    @property
    def device_layers(self) -> tuple[Layer, ...]:
        return self.shape.layers[self.first_on_device :]

    @property
    def host_layers(self) -> tuple[Layer, ...]:
        return self.shape.layers[: self.first_on_device]

    def weights(self) -> Iterator[tuple[int, TensorInfo]]:
        """Each tensor with its layer: the input tensors are -1, the output ones come after the last block."""
        for tensor in self.header.tensors.values():
            match = BLOCK_TENSOR.match(tensor.name)
            if INPUT_TENSOR.match(tensor.name):
                yield -1, tensor
            elif match is None:
                yield self.shape.block_count, tensor
            elif int(match[1]) < len(self.shape.layers):
                yield int(match[1]), tensor


def _device_share(load: _Load) -> MemoryShare:
    if not load.params.n_gpu_layers:
        return MemoryShare()
    return MemoryShare(
        weights_bytes=_device_weights_bytes(load) + load.params.mmproj_bytes,
        kv_bytes=_kv_bytes(load.device_layers, load),
        recurrent_bytes=_recurrent_bytes(load.device_layers, load),
        compute_bytes=compute_bytes(load.header, load.shape, load.batch) + _borrowed_bytes(load),
        overhead_bytes=_unlogged_bytes(load),
    )


def _host_share(load: _Load) -> MemoryShare:
    offloaded = bool(load.params.n_gpu_layers)
    return MemoryShare(
        weights_bytes=_host_weights_bytes(load) + (0 if offloaded else load.params.mmproj_bytes),
        kv_bytes=_kv_bytes(load.host_layers, load),
        recurrent_bytes=_recurrent_bytes(load.host_layers, load),
        compute_bytes=_host_compute_bytes(load),
    )


def _host_compute_bytes(load: _Load) -> int:
    """With full offload only the inputs; else all, though the device takes over where its backend can."""
    if not load.host_layers:
        return input_bytes(load.shape, load.batch)
    return host_compute_bytes(load.header, load.shape, load.batch)


def _device_weights_bytes(load: _Load) -> int:
    """Input tensors stay on the host."""
    first = load.first_on_device
    sizes = (tensor.n_bytes for layer, tensor in load.weights() if layer >= first)
    return sum(_padded(n_bytes, ALIGNMENT_BYTES) for n_bytes in sizes) + _tied_output_bytes(load)


def _device_layers(load: _Load) -> tuple[int, ...]:
    """What each offloaded layer brings to the device that it is put on; llama.cpp splits by whole layers."""
    if not load.params.n_gpu_layers:
        return ()
    first, output = load.first_on_device, load.shape.block_count
    sizes = dict.fromkeys(range(first, output + 1), 0)
    for layer, tensor in load.weights():
        if layer >= first:
            sizes[layer] += _padded(tensor.n_bytes, ALIGNMENT_BYTES)
    for index in range(first, len(load.shape.layers)):
        one = (load.shape.layers[index],)
        sizes[index] += _kv_bytes(one, load) + _recurrent_bytes(one, load)
    sizes[output] += _tied_output_bytes(load) + load.params.mmproj_bytes
    return tuple(sizes.values())


def _copies_bytes(load: _Load) -> int:
    """Of the inputs, for pipelines (`ggml_backend_sched_new`, `GGML_SCHED_MAX_COPIES`)."""
    return (PIPELINE_COPIES - 1) * input_bytes(load.shape, load.batch)


def _tied_output_bytes(load: _Load) -> int:
    """A tied embedding is on the device once more, as the output."""
    tied = "output.weight" not in load.header.tensors and not load.shape.keeps_no_cache
    return load.header.tensors["token_embd.weight"].n_bytes if tied else 0


def _host_weights_bytes(load: _Load) -> int:
    return sum(tensor.n_bytes for layer, tensor in load.weights() if layer < load.first_on_device)


def _kv_bytes(layers: Iterable[Layer], load: _Load) -> int:
    """Exact: a row of K and of V for each cell of each stream (`llama_kv_cache`, `llama_kv_cache_iswa`)."""
    return sum(_layer_kv_bytes(layer, load) for layer in layers)


def _layer_kv_bytes(layer: Layer, load: _Load) -> int:
    batch, params = load.batch, load.params
    v_width = layer.v_width
    if not params.flash_attention and v_width:  # V is stored transposed, all layers as wide as the widest
        v_width = max(other.v_width for other in load.shape.layers)
    row_bytes = CACHE_LAYOUTS[params.type_k].bytes_for(layer.k_width)
    row_bytes += CACHE_LAYOUTS[params.type_v].bytes_for(v_width)
    return (batch.window_cells if layer.window else batch.cells) * batch.streams * row_bytes


def _recurrent_bytes(layers: Iterable[Layer], load: _Load) -> int:
    """Exact: one state for each slot, always in f32 (`llama_memory_recurrent`)."""
    return sum(F32_BYTES * layer.state * load.batch.slots for layer in layers)


def _borrowed_bytes(load: _Load) -> int:
    """With partial offload large batches are computed on the device: room for copies of host weights."""
    host = [tensor for layer, tensor in load.weights() if 0 <= layer < load.first_on_device]
    if not host:
        return 0
    # Experts are copied one matrix at a time, of other weights the next one is fetched meanwhile.
    weights = max(tensor.n_bytes * (1 if "_exps" in tensor.name else 2) for tensor in host)
    return weights + max(_layer_kv_bytes(layer, load) for layer in load.host_layers)


def _unlogged_bytes(load: _Load) -> int:
    return _dequantised_cache_bytes(load) + recurrence_spread(load.header, load.shape, load.batch)


def _dequantised_cache_bytes(load: _Load) -> int:
    """CUDA's flash attention unpacks one layer's quantised cache to f16, in a pool that no log line shows."""
    batch, params = load.batch, load.params
    if not params.flash_attention:
        return 0
    k_width = max((layer.k_width for layer in load.device_layers), default=0)
    v_width = max((layer.v_width for layer in load.device_layers), default=0)
    width = k_width * (params.type_k in QUANTISED) + v_width * (params.type_v in QUANTISED)
    return CACHE_LAYOUTS["f16"].bytes_for(width) * batch.cells * batch.streams


def _padded(number: int, step: int) -> int:
    return -(-number // step) * step
