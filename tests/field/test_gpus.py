"""GPUs as they are, over a stub of the driver's library: the router and llama-server are real."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.memory.probes.cuda_visible_devices import without_hidden
from app.memory.probes.host_memory import host_reading
from app.memory.probes.interface import Reading, resolve
from app.memory.probes.list_devices import parse_devices
from tests.nvml import NOT_SUPPORTED, Driver, Router, gpu, nvml_library, with_cuda
from tests.router_process import MakeRouter, RouterProcess, chat, until_now
from tests.shared_library import compile_library

__all__ = ["nvml_library"]

Start = Callable[..., RouterProcess]
CARDS = gpu(0, 24_576, 300, mig=0), gpu(1, 8192, 300, mig=0)


@pytest.fixture
def driver(nvml_library: Path, tmp_path: Path) -> Driver:
    made = Driver(nvml_library, tmp_path)
    made.show(*CARDS)
    return made


@pytest.fixture
def start(
    make_router: MakeRouter, driver: Driver, llama_server: Path, tiny_gguf: Path, tmp_path: Path
) -> Start:
    """A router with one model, where `CUDA_VISIBLE_DEVICES` is this."""

    def begin(visible: str | None = None, **system: Any) -> RouterProcess:
        env = dict(driver.env) if visible is None else {**driver.env, "CUDA_VISIBLE_DEVICES": visible}
        entry = {"model_path": tiny_gguf, "params": {"n_gpu_layers": 99}}
        binary = with_cuda(tmp_path, llama_server)
        return make_router({"m": entry}, binary=binary, env=env, system=system)

    return begin


def shown_to(router: RouterProcess) -> str:
    """`CUDA_VISIBLE_DEVICES` of the model's process, which has answered."""
    assert router.client.post("/v1/chat/completions", json=chat("m")).status_code == 200
    return psutil.Process(router.status("m")["pid"]).environ()["CUDA_VISIBLE_DEVICES"]


def told(router: RouterProcess, row: str) -> list[str]:
    """The lines of the start's table under this name."""
    until_now(lambda: "  admins" in router.log())
    found = re.search(rf"^  {row} +(.+(?:\n {{16}}.+)*)", router.log(), re.M)
    return [line.strip() for line in found[1].splitlines()] if found else []


# --- G1


def test_a_model_on_a_gpu_that_shares_the_machines_memory_is_served(driver: Driver, start: Start) -> None:
    """NVML knows no figures of its memory there: every model was refused, and /health was 503 for ever."""
    driver.show(gpu(0, 1, 0), f"fail memory GPU-0 {NOT_SUPPORTED}")
    router = start()
    assert router.client.post("/v1/chat/completions", json=chat("m")).status_code == 200
    assert router.get("/health")["status"] == "ok"
    (device,) = (d for d in router.get("/vram")["devices"] if d["index"] == 0)
    assert device["total_mb"] == host_reading().total_mb


# --- G2


def test_a_gpu_that_the_environment_hides_is_left_alone_and_the_start_says_so(start: Start) -> None:
    router = start("1")
    hidden, used = told(router, "devices")
    assert hidden.startswith("0: Stub-0, ")
    assert hidden.endswith("; not used: CUDA_VISIBLE_DEVICES=1 hides it")
    assert used.startswith("1: Stub-1, ")
    assert used.endswith(" MB free")
    assert told(router, "warning") == []
    assert shown_to(router) == "1"


@pytest.mark.parametrize("visible", ["1", ""])
def test_the_gpu_that_the_file_names_wins_over_the_environment_with_a_warning(
    start: Start, visible: str
) -> None:
    router = start(visible, gpu_devices=[0])
    (warning,) = told(router, "warning")
    assert warning.startswith(
        f"system.gpu_devices names device 0, which CUDA_VISIBLE_DEVICES={visible} hides"
    )
    used, other = told(router, "devices")
    assert used.endswith(" MB free")
    assert "; not used: " in other
    assert shown_to(router) == "0"


@pytest.mark.parametrize("visible", ["", "-1"])
def test_without_any_visible_gpu_models_run_on_the_cpu(start: Start, visible: str) -> None:
    router = start(visible)
    assert all(f"CUDA_VISIBLE_DEVICES={visible} hides it" in line for line in told(router, "devices"))
    assert shown_to(router) == ""
    status = router.status("m")
    assert [d["index"] for d in status["devices"]] == ["host"]
    assert status["warning"] is None, "that is what was asked for"


def test_a_gpu_that_the_file_does_not_name_is_not_used_and_the_start_says_why(start: Start) -> None:
    router = start(gpu_devices=[1, 7])
    other, used = told(router, "devices")
    assert other.endswith("; not used: system.gpu_devices does not name it")
    assert used.endswith(" MB free")
    assert told(router, "warning") == ["system.gpu_devices names device 7, and there is no such device"]


FIRST, SECOND = "GPU-11111111-2222-3333-4444-555555555555", "GPU-11111111-9999-3333-4444-555555555555"


@pytest.mark.parametrize(
    ("visible", "shown"),
    [
        ("0,1", ["0", "1"]),
        (" 1 , 0 ", ["0", "1"]),
        ("1", ["1"]),
        ("", []),
        ("-1", []),
        ("-1,0", []),
        ("0,-1,1", ["0"]),
        ("0,7,1", ["0"]),
        ("NoDevFiles", []),
        ("01", ["1"]),
        ("1;0", ["1"]),
        ("0,0", []),
        ("1,0,1", []),
        (f"{SECOND},{SECOND}", []),
        (SECOND, ["1"]),
        (f"{SECOND[:16]},0", ["0", "1"]),
        (FIRST[:12], []),  # it is the beginning of both
    ],
)
def test_cuda_visible_devices_means_what_it_means_to_cuda(visible: str, shown: list[str]) -> None:
    cards = [Reading(str(n), uuid, "A card", 8192, 0, 8192) for n, uuid in enumerate((FIRST, SECOND))]
    assert list(resolve(without_hidden(cards, visible), None)) == shown


@pytest.mark.parametrize(
    ("env", "shown"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0"}, ["1"]),
        ({"CUDA_VISIBLE_DEVICES": "1"}, ["0"]),
        ({"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, ["0"]),
        ({"CUDA_VISIBLE_DEVICES": FIRST}, ["0"]),
        ({"CUDA_VISIBLE_DEVICES": "0", "CUDA_STUB": ""}, ["0"]),  # its driver does not tell
    ],
    ids=str,
)
def test_the_number_of_a_gpu_is_cudas_own_the_fastest_first(
    driver: Driver, tmp_path: Path, env: dict[str, str], shown: list[str]
) -> None:
    """The slow card is the first on the bus: with `CUDA_VISIBLE_DEVICES=0` the other one is meant."""
    compile_library(Path(__file__).parents[1] / "cuda_stub.c", tmp_path / "libcuda.so.1")
    driver.show(f"gpu 0 {FIRST} Slow 8192 0 0", f"gpu 1 {SECOND} Fast 24576 0 0")
    by_speed = "".join(uuid.removeprefix("GPU-").replace("-", "") for uuid in (SECOND, FIRST))
    libraries = f"{driver.env['LD_LIBRARY_PATH']}:{tmp_path}"
    router = Router({**driver.env, "LD_LIBRARY_PATH": libraries, "CUDA_STUB": by_speed, **env})
    try:
        assert [card["id"] for card in router.read() if not card["is_hidden"]] == shown
    finally:
        router.close()


TWICE = """Available devices:
  SYCL0: Intel(R) Arc(TM) A770 Graphics (15473 MiB, 15473 MiB free)
  SYCL1: Intel(R) Arc(TM) A770 Graphics (15473 MiB, 15473 MiB free)
  Vulkan0: Intel(R) Arc(tm) A770 Graphics (DG2) (16288 MiB, 14659 MiB free)
  Vulkan1: AMD Radeon Graphics (RADV RAPHAEL_MENDOCINO) (15000 MiB, 14000 MiB free)
  Vulkan2: Intel(R) Arc(tm) A770 Graphics (DG2) (16288 MiB, 14659 MiB free)
"""


def test_a_card_that_two_back_ends_show_is_used_once() -> None:
    """Each listed device was taken for a store of its own: more was planned than there is."""
    readings = parse_devices(TWICE)
    assert resolve(readings, None) == ("SYCL0", "SYCL1", "Vulkan1")
    assert [r.same_as for r in readings] == ["", "", "SYCL0", "", "SYCL1"]
    assert resolve(readings, ["Vulkan2", 2]) == ("Vulkan2", "Vulkan0"), "whoever names one gets it"


# --- G3


def test_a_model_that_silently_runs_on_the_cpu_is_not_taken_for_one_on_the_gpu(start: Start) -> None:
    """This llama-server knows no GPU: what its log shows are buffers of the machine's own memory."""
    router = start()
    assert shown_to(router) == "1"
    assert router.status("m")["warning"] == (
        "runs on the CPU, although a GPU was planned for it; its log says why"
    )
    assert router.log().count("m: it was to run on GPU 1, but llama-server has put all of it") == 1
    router.eject("m")
    assert router.status("m")["warning"] is None
