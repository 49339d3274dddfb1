"""NVIDIA devices through NVML. All of it blocks, and may hang with the driver."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from app.domain.units import MIB
from app.memory.probes.cuda_visible_devices import without_hidden
from app.memory.probes.host_memory import host_reading
from app.memory.probes.interface import GpuError, Reading


class NvmlProbe:
    """NVIDIA devices through NVML, in PCI bus order. Starts NVML again after the driver failed as a whole."""

    reason: str | None = None
    poll_s = 0.05

    def __init__(self, nvml: Any, visible: str | None = None) -> None:
        self._nvml, self._visible = nvml, visible
        self._started = False
        self._one_at_a_time = threading.Lock()  # at the start two may ask
        self._driver = ""
        self._last: dict[int, list[Reading]] = {}

    def read(self) -> Sequence[Reading]:
        with self._one_at_a_time:
            return self._read()

    def _read(self) -> Sequence[Reading]:
        try:
            if not self._started:
                self._start()
            count = self._nvml.nvmlDeviceGetCount()
            devices = {index: self._device_or_error(index) for index in self._indices(count)}
        except self._nvml.NVMLError as error:
            self.close()
            raise GpuError(str(error)) from error
        self._last = devices
        readings = [reading for readings in devices.values() for reading in readings]
        found = without_hidden(readings, self._visible)
        if found and all(reading.error for reading in found):
            self.close()
        return found

    def show_only(self, visible: str) -> None:
        """Instead of what it was made with; also of `CUDA_VISIBLE_DEVICES`'s form."""
        self._visible = visible

    def expire(self) -> None:
        pass

    def close(self) -> None:
        """The next reading starts NVML again."""
        if not self._started:
            return
        self._started = False
        with suppress(self._nvml.NVMLError):  # where the driver has failed, this fails too
            self._nvml.nvmlShutdown()

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
            gone = (
                nvml.NVML_ERROR_GPU_IS_LOST,
                nvml.NVML_ERROR_RESET_REQUIRED,
                nvml.NVML_ERROR_INVALID_ARGUMENT,
            )
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
        memory = self._memory(handle)
        total_mb, used_mb, free_mb = memory or _of_the_machine()
        return Reading(
            id=index,
            uuid=_text(self._optional(self._nvml.nvmlDeviceGetUUID, handle) or ""),
            name=_text(self._optional(self._nvml.nvmlDeviceGetName, handle) or f"GPU {index}"),
            total_mb=total_mb,
            used_mb=used_mb,
            free_mb=free_mb,
            utilization=self._utilization(handle),
            by_pid=self._by_pid(handle),
            driver=self._driver,
            shares_host=memory is None,
        )

    def _memory(self, handle: Any) -> tuple[int, int, int] | None:
        """Total, used and free. A GPU that shares the machine's memory (Grace Blackwell, Jetson) has none of
        its own to tell of."""
        try:
            memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
        except self._nvml.NVMLError as error:
            if error.value != self._nvml.NVML_ERROR_NOT_SUPPORTED:
                raise
            return None
        return (memory.total // MIB, memory.used // MIB, memory.free // MIB) if memory.total else None

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


def _of_the_machine() -> tuple[int, int, int]:
    host = host_reading()
    return host.total_mb, host.used_mb, host.free_mb


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
