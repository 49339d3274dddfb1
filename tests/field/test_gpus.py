"""GPUs as they are, over a stub of the driver's library: the router and llama-server are real."""

from __future__ import annotations

from pathlib import Path

from app.memory.probes.host import host_reading
from tests.nvml import NOT_SUPPORTED, Driver, gpu, nvml_library, with_cuda
from tests.router_process import MakeRouter, chat

__all__ = ["nvml_library"]


def test_a_model_on_a_gpu_that_shares_the_machines_memory_is_served(
    make_router: MakeRouter, nvml_library: Path, llama_server: Path, tiny_gguf: Path, tmp_path: Path
) -> None:
    """NVML knows no figures of its memory there: every model was refused, and /health was 503 for ever."""
    driver = Driver(nvml_library, tmp_path)
    driver.show(gpu(0, 1, 0), f"fail memory GPU-0 {NOT_SUPPORTED}")
    entry = {"model_path": tiny_gguf, "params": {"n_gpu_layers": 99}}
    router = make_router({"m": entry}, binary=with_cuda(tmp_path, llama_server), env=driver.env)
    assert router.client.post("/v1/chat/completions", json=chat("m")).status_code == 200
    assert router.get("/health")["status"] == "ok"
    (device,) = (d for d in router.get("/vram")["devices"] if d["index"] == 0)
    assert device["total_mb"] == host_reading().total_mb
