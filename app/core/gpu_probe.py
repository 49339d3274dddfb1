"""The devices' own word: NVML for NVIDIA, llama-server's `--list-devices` for the rest. All of it blocks."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import psutil

HOST = "host"
MIB = 2**20
START_TIMEOUT_S = 15.0  # without persistence mode the driver initialises every GPU first
LIST_TIMEOUT_S = 30.0

T = TypeVar("T")


class GpuError(Exception):
    """The driver does not tell. The message says why."""


@dataclass(frozen=True)
class Reading:
    """One device as its driver sees it now; with `error`, as it was when it could last be read."""

    id: str
    uuid: str
    name: str
    total_mb: int
    used_mb: int
    free_mb: int
    utilization: float | None = None
    by_pid: Mapping[int, int] = field(default_factory=dict)
    names: tuple[str, ...] = ()  # what else a configuration may call it
    driver: str = ""
    error: str | None = None
    lost: bool = False  # it will not come back without help

    @property
    def kind(self) -> str:
        """What the fixed cost of a process depends on."""
        return f"{self.name} / {self.driver}"


class GpuProbe(Protocol):
    """Reads devices. Blocking: called in a thread, one call at a time."""

    reason: str | None
    """Why there are no devices to read, or None."""

    poll_s: float
    """How often it may be asked while freed memory is awaited."""

    def read(self) -> Sequence[Reading]:
        """Raises `GpuError` where the driver does not tell."""
        ...

    def expire(self) -> None:
        """A model came or went: what was read before is no longer true."""

    def close(self) -> None: ...


class NullProbe:
    """No GPU, and why."""

    poll_s = 0.05

    def __init__(self, reason: str) -> None:
        self.reason: str | None = reason

    def read(self) -> Sequence[Reading]:
        return ()

    def expire(self) -> None:
        pass

    def close(self) -> None:
        pass


class NvmlProbe:
    """NVIDIA devices through NVML, in PCI bus order. Starts NVML again after the driver failed as a whole."""

    reason: str | None = None
    poll_s = 0.05

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._started = False
        self._driver = ""
        self._last: dict[int, list[Reading]] = {}

    def read(self) -> Sequence[Reading]:
        try:
            if not self._started:
                self._start()
            count = self._nvml.nvmlDeviceGetCount()
            devices = {index: self._device_or_error(index) for index in self._indices(count)}
        except self._nvml.NVMLError as error:
            self.close()
            raise GpuError(str(error)) from error
        self._last = devices
        found = [reading for readings in devices.values() for reading in readings]
        if found and all(reading.error for reading in found):
            self.close()
        return found

    def expire(self) -> None:
        pass

    def close(self) -> None:
        """The next reading starts NVML again."""
        if not self._started:
            return
        self._started = False
        try:
            self._nvml.nvmlShutdown()
        except self._nvml.NVMLError:
            pass  # a dead driver cannot even say good-bye

    def _start(self) -> None:
        self._nvml.nvmlInit()
        self._started = True
        self._driver = _text(self._optional(self._nvml.nvmlSystemGetDriverVersion) or "")

    def _indices(self, count: int) -> Sequence[int]:
        """Also those that the driver has stopped counting: they are lost, not forgotten."""
        return sorted({*range(count), *self._last})

    def _device_or_error(self, index: int) -> list[Reading]:
        nvml = self._nvml
        try:
            return self._device(index)
        except nvml.NVMLError as error:
            if error.value in (nvml.NVML_ERROR_UNINITIALIZED, nvml.NVML_ERROR_DRIVER_NOT_LOADED):
                raise
            gone = (nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED, nvml.NVML_ERROR_INVALID_ARGUMENT)
            known = self._last.get(index) or [Reading(str(index), "", f"GPU {index}", 0, 0, 0)]
            lost = error.value in gone
            return [replace(r, error=f"GPU {index}: {error}", lost=lost, by_pid={}) for r in known]

    def _device(self, index: int) -> list[Reading]:
        """The card, or with MIG its instances: a process can use one of them, and not the card."""
        handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
        whole = self._reading(handle, str(index))
        mode = self._optional(self._nvml.nvmlDeviceGetMigMode, handle)
        if not mode or not mode[0]:
            return [replace(whole, names=(whole.uuid,))]
        instances = [self._reading(h, "") for h in self._mig_instances(handle)]
        names = (whole.id, whole.uuid)
        return [replace(i, id=i.uuid, name=i.name or whole.name, names=names) for i in instances]

    def _mig_instances(self, handle: Any) -> list[Any]:
        found = []
        for index in range(self._optional(self._nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
            try:
                found.append(self._nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index))
            except self._nvml.NVMLError as error:
                if error.value != self._nvml.NVML_ERROR_NOT_FOUND:
                    raise
        return found

    def _reading(self, handle: Any, index: str) -> Reading:
        memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
        return Reading(
            id=index,
            uuid=_text(self._optional(self._nvml.nvmlDeviceGetUUID, handle) or ""),
            name=_text(self._optional(self._nvml.nvmlDeviceGetName, handle) or f"GPU {index}"),
            total_mb=memory.total // MIB,
            used_mb=memory.used // MIB,
            free_mb=memory.free // MIB,
            utilization=self._utilization(handle),
            by_pid=self._by_pid(handle),
            driver=self._driver,
        )

    def _utilization(self, handle: Any) -> float | None:
        rates = self._optional(self._nvml.nvmlDeviceGetUtilizationRates, handle)
        return None if rates is None else rates.gpu / 100

    def _by_pid(self, handle: Any) -> dict[int, int]:
        """Empty where the driver does not tell, as on some consumer cards. CUDA and Vulkan list apart."""
        found: dict[int, int] = {}
        for call in (
            self._nvml.nvmlDeviceGetComputeRunningProcesses,
            self._nvml.nvmlDeviceGetGraphicsRunningProcesses,
        ):
            for process in self._optional(call, handle) or ():
                used_mb = (process.usedGpuMemory or 0) // MIB
                if used_mb:
                    found[process.pid] = max(used_mb, found.get(process.pid, 0))
        return found

    def _optional(self, call: Callable[..., Any], *handle: Any) -> Any:
        """None for what this card, driver or container does not offer; other errors are the device's."""
        nvml = self._nvml
        try:
            return call(*handle)
        except nvml.NVMLError as error:
            absent = (
                nvml.NVML_ERROR_NOT_SUPPORTED,
                nvml.NVML_ERROR_NO_PERMISSION,
                nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
                nvml.NVML_ERROR_NOT_FOUND,
                nvml.NVML_ERROR_NO_DATA,
                nvml.NVML_ERROR_INSUFFICIENT_SIZE,  # more processes than a moment ago
            )
            if error.value in absent:
                return None
            raise


class ListDevicesProbe:
    """Devices as llama-server itself sees them. Each reading is a process: it is made only on demand."""

    reason: str | None = None
    poll_s = 1.0

    def __init__(self, binary: Path, found: Sequence[Reading] | None = None) -> None:
        self._binary = binary
        self._last = found

    def read(self) -> Sequence[Reading]:
        if self._last is None:
            self._last = list_devices(self._binary)
        return self._last

    def expire(self) -> None:
        self._last = None

    def close(self) -> None:
        pass


_DEVICE = re.compile(r"^\s+(?P<id>[^\s:]+): (?P<name>.*) \((?P<total>\d+) MiB, (?P<free>\d+) MiB free\)\s*$")


def list_devices(binary: Path) -> list[Reading]:
    """What `llama-server --list-devices` prints. Raises `GpuError`."""
    try:
        done = subprocess.run(
            [str(binary), "--list-devices"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=LIST_TIMEOUT_S,
            encoding="utf-8",
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GpuError(f"{binary} --list-devices: {error}") from error
    if done.returncode != 0:
        raise GpuError(f"{binary} --list-devices ended with exit code {done.returncode}")
    return parse_devices(f"{done.stdout}\n{done.stderr}")


def parse_devices(text: str) -> list[Reading]:
    """In the order of the list, which is what an index in `gpu_devices` counts. CPU libraries have no memory."""
    found = [match for line in text.splitlines() if (match := _DEVICE.match(line)) and int(match["total"])]
    return [
        Reading(
            id=match["id"],
            uuid="",
            name=match["name"],
            total_mb=int(match["total"]),
            used_mb=max(int(match["total"]) - int(match["free"]), 0),
            free_mb=int(match["free"]),
            names=(str(position),),
        )
        for position, match in enumerate(found)
    ]


def find_gpus(binary: Path | None = None) -> GpuProbe:
    """How to read the devices that this llama-server can use; a null probe says why there are none.

    NVML tells most, so it is asked where the binary uses CUDA, or does not say what it uses.
    """
    listed = _listed(binary) if binary is not None else None
    if listed is None or any(reading.id.startswith("CUDA") for reading in listed):
        probe = _nvml()
        if probe.reason is None or not listed:
            return probe
    if listed:
        return ListDevicesProbe(binary, listed) if binary is not None else NullProbe("no device")
    nvml = _nvml()
    reason = nvml.reason or "this llama-server was not built for the NVIDIA GPUs that are there"
    return NullProbe(f"llama-server --list-devices shows no device; {reason}")


def _listed(binary: Path) -> list[Reading] | None:
    try:
        return list_devices(binary)
    except GpuError:  # an old build does not know the flag
        return None


def _nvml() -> GpuProbe:
    """A driver that hangs at the start is kept: it is reported, and may come back."""
    try:
        import pynvml
    except ImportError as error:
        return NullProbe(f"the nvidia-ml-py package is missing: {error}")
    probe = NvmlProbe(pynvml)
    try:
        if not in_time(probe.read, START_TIMEOUT_S):
            return NullProbe("the NVIDIA driver reports no device")
    except GpuError as error:
        return NullProbe(f"no usable NVIDIA driver: {error}")
    except TimeoutError:
        pass
    return probe


def in_time(call: Callable[[], T], timeout_s: float) -> T:
    """Raises `TimeoutError` and leaves the call alone, in a thread that does not keep the program alive."""
    answers: list[T | BaseException] = []

    def run() -> None:
        try:
            answers.append(call())
        except BaseException as error:
            answers.append(error)

    thread = threading.Thread(target=run, name="driver", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if not answers:
        raise TimeoutError(f"no answer within {timeout_s:.0f} s")
    if isinstance(answers[0], BaseException):
        raise answers[0]
    return answers[0]


def host_reading() -> Reading:
    """The machine's own memory, for models that run on the CPU."""
    memory = psutil.virtual_memory()
    total, available = memory.total // MIB, memory.available // MIB
    return Reading(HOST, HOST, "host memory", total, total - available, available)


def resolve(readings: Iterable[Reading], wanted: Iterable[int | str]) -> tuple[str, ...]:
    """The ids of the devices that are meant by these indices, UUIDs or names, each once."""
    known: dict[str, list[str]] = {}
    for reading in readings:
        for name in {reading.id, reading.uuid, *reading.names} - {""}:
            known.setdefault(name, []).append(reading.id)
    return tuple(dict.fromkeys(id for name in wanted for id in known.get(str(name), ())))


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
