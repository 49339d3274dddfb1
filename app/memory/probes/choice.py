"""Which probe suits this machine and this llama-server."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from app.memory.probes.amdgpu import SYSFS, AmdgpuProbe, cards_of
from app.memory.probes.cuda_order import shown_by_cuda
from app.memory.probes.cuda_visible_devices import VARIABLE, counts_by_speed
from app.memory.probes.interface import GpuError, GpuProbe, NullProbe, Reading
from app.memory.probes.list_devices import ListDevicesProbe, list_devices
from app.memory.probes.nvml import NvmlProbe

DRIVER_TIMEOUT_S = 5.0  # for what is only shown
START_TIMEOUT_S = 15.0  # without persistence mode the driver initialises every GPU first

T = TypeVar("T")


def find_gpus(binary: Path | None = None, sysfs: Path = SYSFS) -> GpuProbe:
    """How to read the devices that this llama-server can use; a null probe says why there are none.

    NVML tells most, so it is asked where the binary uses CUDA, or does not say what it uses. AMD's tells
    how much is used; of the rest llama-server's own listing is all there is.
    """
    listed = _listed(binary) if binary is not None else None
    if listed is None or any(reading.id.startswith("CUDA") for reading in listed):
        probe = _nvml()
        if probe.reason is None or not listed:
            return probe
    if listed and binary is not None:
        probe = ListDevicesProbe(binary, listed)
        cards = cards_of(listed, sysfs)
        return AmdgpuProbe(probe, cards) if cards else probe
    nvml = _nvml()
    reason = nvml.reason or "this llama-server was not built for the NVIDIA GPUs that are there"
    return NullProbe(f"llama-server --list-devices shows no device; {reason}")


def _listed(binary: Path) -> list[Reading] | None:
    """Also CUDA's devices that the environment hides from it: a configuration may name them."""
    try:
        found = list_devices(binary)
        if not found and VARIABLE in os.environ:
            found = [r for r in list_devices(binary, without=VARIABLE) if r.id.startswith("CUDA")]
    except GpuError:  # an old build does not know the flag
        return None
    return found


def _nvml() -> GpuProbe:
    """A driver that hangs at the start is kept: it is reported, and may come back."""
    try:
        import pynvml
    except ImportError as error:
        return NullProbe(f"the nvidia-ml-py package is missing: {error}")
    probe = NvmlProbe(pynvml, os.environ.get(VARIABLE))
    try:
        found = in_time(probe.read, START_TIMEOUT_S)
        if not found:
            return NullProbe("the NVIDIA driver reports no device")
        if len(found) > 1 and counts_by_speed(os.environ):
            _count_as_cuda_does(probe, {reading.uuid for reading in found})
    except GpuError as error:
        return NullProbe(f"no usable NVIDIA driver: {error}")
    except TimeoutError:
        pass
    return probe


def _count_as_cuda_does(probe: NvmlProbe, known: set[str]) -> None:
    """Where its driver does not tell, or tells of parts of cards, indices count by the PCI bus."""
    shown = shown_by_cuda()
    if shown and known.issuperset(shown):
        probe.show_only(",".join(shown))


def in_time(call: Callable[[], T], timeout_s: float) -> T:
    """Raises `TimeoutError` and leaves the call alone, in a thread that does not keep the program alive."""
    answers: list[T | BaseException] = []

    def run() -> None:
        try:
            answers.append(call())
        except BaseException as error:  # raised again in the thread that asked
            answers.append(error)

    thread = threading.Thread(target=run, name="driver", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if not answers:
        raise TimeoutError(f"no answer within {timeout_s:.0f} s")
    if isinstance(answers[0], BaseException):
        raise answers[0]
    return answers[0]
