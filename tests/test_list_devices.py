"""Devices that only llama-server knows, on a software Vulkan device (Debian's mesa-vulkan-drivers)."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from app.memory.probes.choice import find_gpus
from app.memory.probes.list_devices import ListDevicesProbe, list_devices
from tests.real_parts import VULKAN, lacks
from tests.router_process import MakeRouter, RouterProcess, chat, until_now

SHOWN = "GGML_VK_VISIBLE_DEVICES"


@pytest.fixture
def vulkan(llama_server: Path, shaders: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A llama-server to which llvmpipe is a GPU: what it shows is real, only slow."""
    monkeypatch.setenv(SHOWN, "0")
    return llama_server


@pytest.fixture(scope="module")
def shaders(llama_server: Path, tiny_gguf: Path) -> None:
    """The first time all that a load computes is compiled, which takes half a minute of a processor, and far
    longer where others want it too: before the tests, so that no request waits for it. Mesa remembers it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SHOWN, "0")
        if not any(r.id == "Vulkan0" for r in list_devices(llama_server)):
            lacks(VULKAN)
        for cache in ("f16", "f32"):
            load_once(llama_server, tiny_gguf, cache)


def load_once(llama_server: Path, model: Path, cache: str) -> None:
    command = [str(llama_server), "-m", str(model), "-c", "512", "-np", "1", "-ngl", "99", "--port", "0"]
    command += ["--device", "Vulkan0", "-fa", "on", "-ctk", cache, "-ctv", cache]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert any("listening on" in line for line in process.stderr or ())
        finally:
            process.kill()


def on_the_device(model: Path, *extra_args: str, **params: int) -> dict[str, Any]:
    return {
        "model_path": model,
        "params": {"n_gpu_layers": 99, **params},
        "extra_args": list(extra_args),
    }


def test_a_llama_server_without_devices_means_no_gpu(
    llama_server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SHOWN, "")
    if list_devices(llama_server):
        pytest.skip("this machine has a GPU that cannot be hidden")
    probe = find_gpus(llama_server)
    assert not probe.read()
    assert "--list-devices shows no device" in (probe.reason or "")


def test_a_program_that_knows_no_such_flag_leaves_it_to_nvml(tmp_path: Path) -> None:
    old = tmp_path / "llama-server"
    old.write_text("#!/bin/sh\necho 'error: invalid argument' >&2; exit 1\n")
    old.chmod(0o755)
    assert not isinstance(find_gpus(old), ListDevicesProbe)


def test_a_vulkan_device_is_found_with_its_memory(vulkan: Path) -> None:
    probe = find_gpus(vulkan)
    assert isinstance(probe, ListDevicesProbe)
    found = probe.read()[0]
    assert (found.id, found.names) == ("Vulkan0", ("0",))
    assert found.total_mb > 0 and 0 < found.free_mb <= found.total_mb


def test_a_model_is_placed_on_the_vulkan_device(
    vulkan: Path, make_router: MakeRouter, tiny_gguf: Path
) -> None:
    router = make_router({"tiny": on_the_device(tiny_gguf)}, binary=vulkan)
    (device,) = router.get("/vram")["devices"]
    assert (device["index"], device["reserved_mb"]) == ("Vulkan0", 0)
    answer = router.client.post("/v1/chat/completions", json=chat("tiny"))
    assert answer.status_code == 200, answer.text
    (loaded,) = router.get("/vram")["models"]
    assert [d["index"] for d in loaded["devices"]] == ["Vulkan0"]
    assert "Vulkan0" in router.child("tiny").cmdline()
    said = router.client.get("/v1/models/tiny/logs").text
    for kind in ("model", "KV", "compute"):
        assert re.search(rf"Vulkan0 +{kind} buffer size", said), said


def test_what_llama_server_logs_of_a_real_device_is_learned(
    vulkan: Path, make_router: MakeRouter, tiny_gguf: Path
) -> None:
    router = make_router({"tiny": on_the_device(tiny_gguf)}, binary=vulkan)
    estimated_mb = router.get("/v1/models/tiny/plan")["estimate_mb"]
    router.load("tiny")
    (entry,) = json.loads(until_now(lambda: written(router)))["models"].values()
    assert 0 < entry["device_mb"] < estimated_mb
    router.eject("tiny")
    plan = router.get("/v1/models/tiny/plan")
    assert plan["need_note"] == "measured at an earlier load"
    assert entry["device_mb"] < plan["devices"][0]["need_mb"] <= estimated_mb


def written(router: RouterProcess) -> str:
    path = router.folder / "logs" / "footprints.json"
    return path.read_text() if path.exists() else ""


def test_a_load_that_announces_too_much_is_stopped_and_planned_again(
    vulkan: Path, make_router: MakeRouter, tiny_gguf: Path, tiny_long_gguf: Path
) -> None:
    """The header cannot know that `extra_args` double the cache; llama-server says so before it loads."""
    long = on_the_device(tiny_long_gguf, "-ctk", "f32", "-ctv", "f32", n_ctx=131072)
    models = {
        "other": {**on_the_device(tiny_gguf), "vram_mb": 560},
        "long": {**long, "parallel_requests": 4},
    }
    router = make_router(models, binary=vulkan)
    plan = router.get("/v1/models/long/plan")
    router.load("other", "long")
    assert "load stopped: It needs" in router.log()
    assert (router.state("other"), router.state("long")) == ("off", "ready")
    assert router.status("long")["estimated_mb"] == plan["estimate_mb"]
    assert router.metric("router_model_loads_total", model="long", result="abandoned") == 1
    router.eject("long")
    router.load("other", "long")
    assert router.metric("router_model_loads_total", model="long", result="abandoned") == 1
