"""The memory estimate: its arithmetic on headers, and its figures against what a real llama-server logs.

A device is made of llama.cpp's own RPC server, which is in the wheel: offload is real then, without any GPU.
"""

from __future__ import annotations

import re
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from app.core.config import Config
from app.domain.file_identity import FileIdentity
from app.gguf.header import GgufHeader, read_header
from app.gguf.header_parser import MAX_TENSORS, TensorInfo
from app.memory.amount_to_reserve import Footprint, need
from app.memory.estimate.estimate import MemoryEstimate, MemoryParams, MemoryShare, estimate
from tests.ggufs import make_architecture, make_tiny
from tests.ports import free_port
from tests.router_process import until_now

MIB = 1 << 20
H100_CONTEXT_MB, H100_GROWTH_MB = 600, 116  # the most that was measured on such a card
LOAD_LIMIT_S = 60
BUFFER = re.compile(r"(\S+) +(model|KV|RS|compute) buffer size = +([\d.]+) MiB")


class Case(NamedTuple):
    architecture: str
    params: MemoryParams

    def __str__(self) -> str:
        changed = [
            f"{key}={getattr(self.params, key)}"
            for key in SHOWN
            if getattr(self.params, key) != getattr(USUAL, key)
        ]
        return "-".join([self.architecture, *changed])


USUAL = MemoryParams(n_ctx=4096)
SHOWN = (
    "n_ctx",
    "slots",
    "n_gpu_layers",
    "type_k",
    "type_v",
    "flash_attention",
    "n_ubatch",
    "embedding",
    "unified",
)
ENCODER = MemoryParams(n_ctx=512, embedding=True)

OFFLOADED = [
    Case("llama", USUAL),
    Case("llama", replace(USUAL, slots=4, type_k="q8_0", type_v="q8_0")),
    Case("llama", replace(USUAL, n_ctx=8192, type_k="q4_0", type_v="q5_1")),
    Case("llama", replace(USUAL, flash_attention=False)),
    Case("llama", replace(USUAL, n_ctx=1000, slots=3, n_ubatch=128)),
    Case("llama", replace(USUAL, slots=4, unified=True)),
    Case("llama", replace(USUAL, embedding=True)),
    Case("qwen2", USUAL),
    Case("qwen3", replace(USUAL, flash_attention=False, slots=2)),
    Case("gemma3", replace(USUAL, n_ctx=8192, slots=2)),
    Case("gemma3", replace(USUAL, slots=3, unified=True)),
    Case("gemma3", replace(USUAL, flash_attention=False)),
    Case("qwen3moe", replace(USUAL, n_ctx=16384, slots=2)),
    Case("gptoss", replace(USUAL, n_ctx=16384)),
    Case("deepseek2", USUAL),
    Case("mamba", replace(USUAL, n_ctx=1024, slots=4)),
    Case("jamba", replace(USUAL, n_ctx=2048, slots=4)),
    Case("qwen3next", replace(USUAL, slots=2)),
    Case("bert", ENCODER),
]
ON_CPU = [
    Case("llama", replace(USUAL, n_gpu_layers=0)),
    Case("llama", replace(USUAL, n_gpu_layers=0, slots=4, type_k="q8_0", type_v="q8_0")),
    Case("qwen2", replace(USUAL, n_gpu_layers=0)),
    Case("gemma3", replace(USUAL, n_gpu_layers=0, n_ctx=8192)),
    Case("deepseek2", replace(USUAL, n_gpu_layers=0)),
    Case("jamba", replace(USUAL, n_gpu_layers=0, slots=2)),
    Case("bert", replace(ENCODER, n_gpu_layers=0)),
]
PARTLY_OFFLOADED = [
    Case("llama", replace(USUAL, n_gpu_layers=1)),
    Case("llama", replace(USUAL, n_gpu_layers=2)),
    Case("gemma3", replace(USUAL, n_gpu_layers=5)),
    Case("jamba", replace(USUAL, n_gpu_layers=4)),
]


# The arithmetic


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def header_of(models: Path, architecture: str) -> GgufHeader:
    return read_header(model(models, architecture))


def model(models: Path, architecture: str) -> Path:
    path = models / f"{architecture}.gguf"
    return path if path.exists() else make_architecture(architecture, path)


def test_the_cache_follows_context_slots_and_type(models: Path) -> None:
    llama = header_of(models, "llama")  # 4 layers, 4 KV heads of 64

    def kv_bytes(params: MemoryParams) -> int:
        return estimate(llama, params).device.kv_bytes

    row_bytes = 4 * 2 * 4 * 64 * 2
    assert kv_bytes(USUAL) == 4096 * row_bytes
    assert kv_bytes(replace(USUAL, slots=3)) == 3 * 4096 * row_bytes
    assert kv_bytes(replace(USUAL, n_ctx=4097)) == (4096 + 256) * row_bytes
    assert kv_bytes(replace(USUAL, type_k="q8_0", type_v="q8_0")) == 4096 * row_bytes * 34 // 64
    assert kv_bytes(replace(USUAL, type_v="q4_0")) == 4096 * row_bytes * (32 * 2 + 18) // (2 * 64)


def test_a_sliding_window_keeps_its_layers_from_growing(models: Path) -> None:
    gemma = header_of(models, "gemma3")  # 12 layers, each sixth sees all
    short, long = (estimate(gemma, replace(USUAL, n_ctx=n_ctx)).device.kv_bytes for n_ctx in (8192, 16384))
    assert long - short == 2 * 8192 * 2 * 256 * 2


def test_compressed_attention_keeps_one_latent_row(models: Path) -> None:
    assert estimate(header_of(models, "deepseek2"), USUAL).device.kv_bytes == 4 * 4096 * (512 + 64) * 2


def test_a_recurrent_state_does_not_depend_on_the_context(models: Path) -> None:
    mamba = header_of(models, "mamba")
    short, long = (estimate(mamba, replace(USUAL, n_ctx=n_ctx)).device for n_ctx in (512, 65536))
    assert short == long
    assert short.kv_bytes == 0
    assert short.recurrent_bytes == 6 * (3 * 1024 + 16 * 1024) * 4


def test_an_encoder_keeps_no_cache(models: Path) -> None:
    assert estimate(header_of(models, "bert"), ENCODER).device.kv_bytes == 0


def test_without_a_gpu_everything_is_on_the_host(models: Path) -> None:
    found = estimate(header_of(models, "jamba"), replace(USUAL, n_gpu_layers=0, mmproj_bytes=MIB))
    assert found.device.total_bytes == 0
    assert (
        min(
            found.host.weights_bytes,
            found.host.kv_bytes,
            found.host.recurrent_bytes,
            found.host.compute_bytes,
        )
        > 0
    )


def test_every_layer_is_in_one_place_only(models: Path) -> None:
    llama = header_of(models, "llama")
    sums = Counter(
        (
            share.device.kv_bytes + share.host.kv_bytes,
            (share.device.weights_bytes + share.host.weights_bytes) >> 10,
        )
        for share in (estimate(llama, replace(USUAL, n_gpu_layers=layers)) for layers in range(8))
    )
    assert len(sums) == 1


def test_99_layers_mean_all_of_a_deeper_model(tmp_path: Path) -> None:
    deep = read_header(make_tiny(tmp_path / "deep.gguf", layers=120, width=8, feed_forward=8))
    assert estimate(deep, replace(USUAL, n_gpu_layers=99)).host.kv_bytes == 0


def test_a_tied_embedding_is_on_the_device_once_more(models: Path) -> None:
    qwen = header_of(models, "qwen2")
    found = estimate(qwen, USUAL)
    embedding_bytes = qwen.tensors["token_embd.weight"].n_bytes
    assert found.host.weights_bytes == embedding_bytes
    assert found.device.weights_bytes > sum(t.n_bytes for t in qwen.tensors.values()) - MIB


def test_without_flash_attention_v_is_as_wide_everywhere_as_in_the_widest_layer(models: Path) -> None:
    llama = header_of(models, "llama")
    uneven = replace(llama, metadata={**llama.metadata, "llama.attention.head_count_kv": (4, 2, 4, 2)})
    rows, rows_padded = (4 + 2 + 4 + 2) * 64, 4 * 4 * 64
    assert estimate(uneven, USUAL).device.kv_bytes == 4096 * (rows + rows) * 2
    plain = replace(USUAL, flash_attention=False)
    assert estimate(uneven, plain).device.kv_bytes == 4096 * (rows + rows_padded) * 2


def test_scratch_memory_holds_three_states_of_each_slot(models: Path) -> None:
    gated = header_of(models, "qwen3next")
    few, many = (estimate(gated, replace(USUAL, slots=slots)).device.compute_bytes for slots in (2, 16))
    assert many - few == 14 * 3 * 128 * 1024 * 4


def test_cuda_unpacks_one_layer_of_a_quantised_cache_beside_the_logged_buffers(models: Path) -> None:
    llama = header_of(models, "llama")
    found = estimate(llama, replace(USUAL, type_k="q8_0"))
    assert found.device.overhead_bytes == 4096 * 4 * 64 * 2


def test_a_projector_is_added_to_the_device(models: Path) -> None:
    llama = header_of(models, "llama")
    plain, more = estimate(llama, USUAL), estimate(llama, replace(USUAL, mmproj_bytes=5 * MIB))
    assert more.device.total_bytes == plain.device.total_bytes + 5 * MIB


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "jamba", "qwen3next"])
@pytest.mark.parametrize("layers", [0, 1, 3, 99])
def test_the_layers_are_all_that_is_sure_on_the_device(models: Path, architecture: str, layers: int) -> None:
    header = header_of(models, architecture)
    found = estimate(header, replace(USUAL, n_gpu_layers=layers))
    assert sum(found.layers) == found.device.sure_bytes
    assert len(found.layers) == min(layers, header.block_count + 1)


def test_an_unknown_architecture_is_estimated_but_marked(models: Path) -> None:
    llama = header_of(models, "llama")
    metadata = {key.replace("llama.", "novelty."): value for key, value in llama.metadata.items()}
    novelty = estimate(replace(llama, architecture="novelty", metadata=metadata), USUAL)
    assert not novelty.exact and "novelty" in novelty.note
    assert novelty.device == estimate(llama, USUAL).device


@pytest.mark.parametrize("changes", [{}, {"llama.block_count": 2**32 - 1}, {"llama.block_count": (1, 2)}])
def test_a_header_that_says_too_little_is_estimated_by_its_file(
    models: Path, changes: dict[str, int]
) -> None:
    llama = header_of(models, "llama")
    metadata = {**llama.metadata, **changes} if changes else {}
    for layers, side in ((99, "device"), (0, "host")):
        found = estimate(replace(llama, metadata=metadata), replace(USUAL, n_gpu_layers=layers))
        share: MemoryShare = getattr(found, side)
        assert (share.weights_bytes, found.exact) == (llama.file_size, False)
        assert "size of the file" in found.note


@pytest.mark.parametrize("value", [-1, 0, 2**40, 1.5, "text", True, (), (0,), (-5, "x", 2.0)])
def test_senseless_metadata_never_break_the_estimate(models: Path, value: int | float | str) -> None:
    for architecture in ("gemma3", "jamba", "qwen3next", "bert"):
        header = header_of(models, architecture)
        for key in header.metadata:
            found = estimate(replace(header, metadata={**header.metadata, key: value}), USUAL)
            assert found.device.total_bytes >= 0 and found.host.total_bytes >= 0


def test_a_header_with_very_many_tensors_is_estimated_in_time(models: Path) -> None:
    llama = header_of(models, "llama")
    many = {
        f"blk.{i}.ffn_up.weight": TensorInfo(f"blk.{i}.ffn_up.weight", (1, 1), 0, 4)
        for i in range(MAX_TENSORS)
    }
    assert estimate(replace(llama, tensors={**llama.tensors, **many}), USUAL).exact


# Against a real llama-server


@pytest.fixture(scope="module")
def rpc_device(oldest_llama_server: Path) -> Iterator[str]:
    """The address of a process that offers its memory as a device."""
    binary = oldest_llama_server.with_name("ggml-rpc-server")
    port = free_port()
    with running([str(binary), "-H", "127.0.0.1", "-p", str(port)]) as server:
        until_now(lambda: server.poll() is not None or answers(port))
        yield f"127.0.0.1:{port}"


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@contextmanager
def running(command: list[str], stderr: int = subprocess.DEVNULL) -> Iterator[subprocess.Popen[str]]:
    silent = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=silent, stdout=silent, stderr=stderr, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def logged(
    llama_server: Path, model: Path, params: MemoryParams, device: str | None
) -> dict[str, Counter[str]]:
    """MiB by kind of buffer, on the device and on the host, as llama-server logs them while it loads."""
    found: dict[str, Counter[str]] = {"device": Counter(), "host": Counter()}
    lines = []
    command = [str(llama_server), *arguments(model, params, device)]
    with running(command, stderr=subprocess.PIPE) as server:
        watchdog = threading.Timer(LOAD_LIMIT_S, server.kill)
        watchdog.start()
        for line in server.stderr or ():
            lines.append(line)
            if match := BUFFER.search(line):
                place = "device" if match[1].startswith("RPC") else "host"
                found[place][match[2]] += float(match[3])  # type: ignore[assignment]
            if "listening on" in line:
                break
        else:
            pytest.fail("llama-server did not load the model:\n" + "".join(lines[-20:]))
        watchdog.cancel()
    return found


def arguments(model: Path, params: MemoryParams, device: str | None) -> list[str]:
    """No mmap, so that what is logged is the tensors' size; no repacking, so that it stays theirs."""
    flags: dict[str, str | int] = {
        "-m": str(model),
        "--port": 0,
        "-np": params.slots,
        "-c": params.n_ctx * params.slots,
        "-fa": "on" if params.flash_attention else "off",
        "-ctk": params.type_k,
        "-ctv": params.type_v,
        "-ub": params.n_ubatch,
        "-ngl": params.n_gpu_layers,
        "--cache-ram": 0,
        "--load-mode": "none",
        "--log-colors": "off",
        "-lv": 4,
    }
    flags |= {"--rpc": device} if device else {"--device": "none"}
    switches = ["--offline", "--no-warmup", "--no-repack"]
    switches += ["--embeddings"] if params.embedding else []
    switches += ["--kv-unified"] if params.unified else []
    return [str(word) for pair in flags.items() for word in pair] + switches


def assert_agreement(share: MemoryShare, logged_mib: Counter[str], *, with_compute: bool) -> None:
    """Weights, cache and state within 2 %, scratch memory and everything together within 10 %."""
    predicted = {
        "model": share.weights_bytes / MIB,
        "KV": share.kv_bytes / MIB,
        "RS": share.recurrent_bytes / MIB,
        "compute": share.compute_bytes / MIB,
    }
    for kind in ("model", "KV", "RS"):
        assert predicted[kind] == pytest.approx(logged_mib[kind], rel=0.02, abs=0.02), kind
    if with_compute:
        assert predicted["compute"] == pytest.approx(logged_mib["compute"], rel=0.1)
        assert sum(predicted.values()) == pytest.approx(sum(logged_mib.values()), rel=0.1)


def first_need_mb(found: MemoryEstimate) -> int:
    """What is reserved for a model on a card that nothing is known of."""
    spec = Config.model_validate({"models": {"a": {"model_path": "/a"}}}).specs()["a"]
    header: Any = None
    footprint = Footprint(
        file_mb=1, identity=FileIdentity(1, 1), header=header, with_gpu=found, on_host=found
    )
    return need(spec, footprint, ("0",), True, multiplier=1.1).mb


def predicted(models: Path, case: Case) -> MemoryEstimate:
    return estimate(header_of(models, case.architecture), case.params)


@pytest.mark.parametrize("case", OFFLOADED, ids=str)
def test_the_estimate_is_what_llama_server_takes_on_a_device(
    case: Case, models: Path, oldest_llama_server: Path, rpc_device: str
) -> None:
    found = logged(oldest_llama_server, model(models, case.architecture), case.params, rpc_device)
    assert_agreement(predicted(models, case).device, found["device"], with_compute=True)
    peak_mb = sum(found["device"].values()) + H100_CONTEXT_MB + H100_GROWTH_MB
    assert peak_mb <= first_need_mb(predicted(models, case)) <= 1.25 * peak_mb


@pytest.mark.parametrize("case", ON_CPU, ids=str)
def test_the_estimate_is_what_llama_server_takes_without_a_device(
    case: Case, models: Path, oldest_llama_server: Path
) -> None:
    found = logged(oldest_llama_server, model(models, case.architecture), case.params, None)
    assert not found["device"]
    assert_agreement(predicted(models, case).host, found["host"], with_compute=True)


@pytest.mark.parametrize("case", PARTLY_OFFLOADED, ids=str)
def test_partial_offload_splits_weights_and_cache_as_llama_server_does(
    case: Case, models: Path, oldest_llama_server: Path, rpc_device: str
) -> None:
    """Compute is left out: an RPC device does not take over the host's layers, as CUDA and Vulkan do."""
    found = logged(oldest_llama_server, model(models, case.architecture), case.params, rpc_device)
    both = predicted(models, case)
    assert_agreement(both.device, found["device"], with_compute=False)
    assert_agreement(both.host, found["host"], with_compute=False)
