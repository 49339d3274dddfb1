"""The estimate beside what llama-server itself projected, for headers of fifty architectures.

tests/data/projections.json has shapes of tensors, hyperparameters and llama-server's figures; a file was only
needed to ask it.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import gguf
import pytest

from app.domain.units import MIB
from app.gguf.header import GgufHeader
from app.gguf.header_parser import TensorInfo
from app.memory.estimate.estimate import MemoryParams, estimate
from app.memory.estimate.shape import shape_of

DATA = Path(__file__).parent / "data" / "projections.json"
MODELS: dict[str, Any] = json.loads(DATA.read_text())["models"]


def params_of(case: str) -> MemoryParams:
    """Such as `4096x1 f16 fa1 ub512`: context of a slot, slots, type of the cache, flash attention, batch."""
    sizes, cache_type, attention, batch = case.split()
    n_ctx, slots = map(int, sizes.split("x"))
    base = MemoryParams(
        n_ctx, slots, type_k=cache_type, type_v=cache_type, flash_attention=attention == "fa1"
    )
    return replace(base, n_ubatch=int(batch.removeprefix("ub")))


@lru_cache(None)
def header_of(name: str) -> GgufHeader:
    model = MODELS[name]
    architecture, layers = model["architecture"], model["metadata"]["block_count"]
    tensors: dict[str, TensorInfo] = {}
    for label, blocks in model["tensors"].items():
        kind, type_name, shape_text = label.split()
        shape = tuple(map(int, shape_text.split("x")))
        block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type_name]]
        numbers = range(layers) if blocks == "all" else map(int, filter(None, blocks.split(",")))
        for full in [kind.replace("*", str(number)) for number in numbers] or [kind]:
            n_bytes = math.prod(shape) // block * block_bytes
            tensors[full] = TensorInfo(full, shape, 0, n_bytes)
    metadata = {f"{architecture}.{key}": _frozen(value) for key, value in model["metadata"].items()}
    return GgufHeader(architecture, name, metadata, {}, tensors, 0, ())


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def error(name: str, case: str) -> float:
    """Of the device's share, as a part of what llama-server projected."""
    params = replace(params_of(case), embedding=bool(header_of(name).pooling_type))
    share = estimate(header_of(name), params).device
    projected: int = MODELS[name]["projected_mib"][case]
    return (share.sure_bytes + share.compute_bytes) / MIB / projected - 1


@pytest.mark.parametrize("name", MODELS)
def test_the_estimate_is_never_far_under_what_llama_server_projects(name: str) -> None:
    errors = {case: error(name, case) for case in MODELS[name]["projected_mib"]}
    rounding = 1 / min(MODELS[name]["projected_mib"].values())
    assert min(errors.values()) > -0.015 - rounding, errors
    assert max(errors.values()) < 0.04 + rounding, errors


def test_on_average_it_is_within_half_a_percent() -> None:
    errors = [abs(error(name, case)) for name in MODELS for case in MODELS[name]["projected_mib"]]
    assert sum(errors) / len(errors) < 0.005


def test_windows_that_no_header_tells() -> None:
    """llama.cpp knows them by the architecture, or by how many layers the model has."""
    assert [layer.window for layer in shape_of(header_of("llama4")).layers] == [8192, 8192, 8192, 0]
    small = header_of("exaone4")
    assert not any(layer.window for layer in shape_of(small).layers)
    large = replace(small, metadata={**small.metadata, "exaone4.block_count": 64})
    assert [layer.window for layer in shape_of(large).layers] == [4096, 4096, 4096, 0] * 16
