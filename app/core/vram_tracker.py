"""What memory there is: the devices' own word, and our ledger of what we promised to whom."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import anyio
import anyio.to_thread
import psutil

from app.core.model_status import DeviceView
from app.core.placement import Placement

logger = logging.getLogger(__name__)

HOST = "host"
MIB = 2**20
REFRESH_S = 2.0
SETTLE_POLL_S = 0.05
SETTLE_MAX_S = 3.0
PROBE_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Reading:
    """One device as its driver sees it now."""

    id: str
    uuid: str
    name: str
    total_mb: int
    used_mb: int
    free_mb: int
    utilization: float | None = None
    by_pid: Mapping[int, int] = field(default_factory=dict)


class GpuProbe(Protocol):
    """Reads devices. Blocking: called in a thread."""

    reason: str | None
    """Why there are no devices to read, or None."""

    def read(self) -> Sequence[Reading]: ...

    def close(self) -> None: ...


class NullProbe:
    """No GPU, and why."""

    def __init__(self, reason: str) -> None:
        self.reason: str | None = reason

    def read(self) -> Sequence[Reading]:
        return ()

    def close(self) -> None:
        pass


class NvmlProbe:
    """NVIDIA devices through NVML, in PCI bus order."""

    reason: str | None = None

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml

    def read(self) -> Sequence[Reading]:
        count = self._nvml.nvmlDeviceGetCount()
        return [self._device(index) for index in range(count)]

    def close(self) -> None:
        self._nvml.nvmlShutdown()

    def _device(self, index: int) -> Reading:
        handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
        memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
        return Reading(
            id=str(index),
            uuid=_text(self._optional(self._nvml.nvmlDeviceGetUUID, handle) or ""),
            name=_text(self._optional(self._nvml.nvmlDeviceGetName, handle) or f"GPU {index}"),
            total_mb=memory.total // MIB,
            used_mb=memory.used // MIB,
            free_mb=memory.free // MIB,
            utilization=self._utilization(handle),
            by_pid=self._by_pid(handle),
        )

    def _utilization(self, handle: Any) -> float | None:
        rates = self._optional(self._nvml.nvmlDeviceGetUtilizationRates, handle)
        return None if rates is None else rates.gpu / 100

    def _by_pid(self, handle: Any) -> dict[int, int]:
        """Empty where the driver does not tell, as in a container or on some consumer cards."""
        processes = self._optional(self._nvml.nvmlDeviceGetComputeRunningProcesses, handle) or ()
        return {p.pid: p.usedGpuMemory // MIB for p in processes if p.usedGpuMemory}

    def _optional(self, call: Callable[[Any], Any], handle: Any) -> Any:
        """None for what this card or driver does not support; other errors are the device's."""
        try:
            return call(handle)
        except self._nvml.NVMLError as error:
            if error.value in (self._nvml.NVML_ERROR_NOT_SUPPORTED, self._nvml.NVML_ERROR_NO_PERMISSION):
                return None
            raise


def find_gpus() -> GpuProbe:
    """The NVML probe, or a null probe with the reason why there is none. Blocking."""
    try:
        import pynvml
    except ImportError as error:
        return NullProbe(f"the nvidia-ml-py package is missing: {error}")
    try:
        pynvml.nvmlInit()
        if pynvml.nvmlDeviceGetCount() == 0:
            return NullProbe("the NVIDIA driver reports no device")
    except pynvml.NVMLError as error:
        return NullProbe(f"no usable NVIDIA driver: {error}")
    return NvmlProbe(pynvml)


def host_reading() -> Reading:
    """The machine's own memory, for models that run on the CPU."""
    memory = psutil.virtual_memory()
    total, available = memory.total // MIB, memory.available // MIB
    return Reading(HOST, HOST, "host memory", total, total - available, available)


def resolve(readings: Iterable[Reading], wanted: Iterable[int | str]) -> tuple[str, ...]:
    """The ids of the devices that are meant by these indices or UUIDs, each once."""
    known = {name: r.id for r in readings for name in (r.id, r.uuid)}
    return tuple(dict.fromkeys(known[str(w)] for w in wanted if str(w) in known))


@dataclass
class _Holding:
    """What one process may use. It counts as pending until a reading shows it."""

    placement: Placement
    pid: int | None = None
    settled_at: float = float("inf")


@dataclass(frozen=True)
class _Settling:
    """Memory of a stopped process that the driver does not show as free yet."""

    expected_free_mb: int
    since: float
    deadline: float


class DeviceTracker:
    """Readings, refreshed in a thread, and the ledger. The smaller free memory of the two is believed."""

    def __init__(
        self, probe: GpuProbe, *, min_free_mb: int, clock: Callable[[], float], on_change: Callable[[], None]
    ):
        self.probe = probe
        self.error: str | None = None
        self._min_free_mb = min_free_mb
        self._clock = clock
        self._on_change = on_change
        self._readings: dict[str, Reading] = {}
        self._read_at = float("-inf")
        self._holdings: dict[str, _Holding] = {}
        self._settling: dict[str, _Settling] = {}
        self._refreshed = asyncio.Event()
        self._reading = False

    # --- readings

    async def refresh(self) -> None:
        """Ask the driver. A driver that fails or hangs is a state that is reported, not a crash."""
        if self._reading:  # a hanging driver keeps its thread; one is enough
            return
        self._reading, asked_at = True, self._clock()
        try:
            with anyio.fail_after(PROBE_TIMEOUT_S):
                readings = await anyio.to_thread.run_sync(self._read, abandon_on_cancel=True)
            self._readings = {r.id: r for r in readings}
            self._read_at, self.error = asked_at, None
        except TimeoutError:
            self._report(f"the GPU driver did not answer within {PROBE_TIMEOUT_S:.0f} s")
        except Exception as error:
            self._report(f"the GPU driver failed: {error}")
        finally:
            self._reading = False
        self._forget_settled()

    async def run(self) -> None:
        """Keep the readings fresh: seldom, and often while freed memory is awaited."""
        while True:
            with anyio.move_on_after(SETTLE_POLL_S if self._settling else REFRESH_S):
                await self._refreshed.wait()
            self._refreshed = asyncio.Event()
            waited_for = bool(self._settling)
            await self.refresh()
            if waited_for:
                self._on_change()

    def _read(self) -> list[Reading]:
        return [*self.probe.read(), host_reading()]

    def _report(self, error: str) -> None:
        if self.error != error:
            logger.warning("%s; deciding by what was promised so far", error)
        self.error = error

    # --- ledger

    def reserve(self, alias: str, placement: Placement) -> None:
        self._holdings[alias] = _Holding(dict(placement))

    def spawned(self, alias: str, pid: int) -> None:
        self._holdings[alias].pid = pid

    def loaded(self, alias: str) -> None:
        """The model is in memory: from the next reading on the driver's figure contains it."""
        self._holdings[alias].settled_at = self._clock()
        self._refreshed.set()

    def release(self, alias: str, *, crashed: bool) -> None:
        """The process is gone. Until the driver shows its memory as free, that is on its way, not lost.

        What a crashed one held has been given back already: the next reading shows all that will come.
        """
        holding = self._holdings.pop(alias, None)
        if holding is None:
            return
        now = self._clock()
        deadline = now if crashed else now + SETTLE_MAX_S
        for device, mb in holding.placement.items():
            reading = self._readings.get(device)
            if reading is not None and device != HOST:
                coming = self._used_by(holding, reading, mb) + self._still_coming(reading)
                self._settling[device] = _Settling(reading.free_mb + coming * 9 // 10, now, deadline)
        self._refreshed.set()

    def held(self, alias: str) -> Placement:
        holding = self._holdings.get(alias)
        return holding.placement if holding else {}

    def measured_mb(self, alias: str) -> int | None:
        """What the driver says that this model's process uses, over all GPUs; None where it does not tell."""
        holding = self._holdings.get(alias)
        if holding is None or holding.pid is None:
            return None
        used = [r.by_pid[holding.pid] for r in self._readings.values() if holding.pid in r.by_pid]
        return sum(used) if used else None

    # --- views

    @property
    def has_gpu(self) -> bool:
        return any(device != HOST for device in self._readings)

    def devices(self) -> tuple[DeviceView, ...]:
        return tuple(self._view(r) for r in self._readings.values())

    def resolve(self, wanted: Iterable[int | str]) -> tuple[str, ...]:
        """Device ids for indices or UUIDs; what is not there is left out."""
        return resolve([r for r in self._readings.values() if r.id != HOST], wanted)

    def _view(self, reading: Reading) -> DeviceView:
        held = {a: h.placement[reading.id] for a, h in self._holdings.items() if reading.id in h.placement}
        pending = sum(max(mb - self._shown(alias, reading), 0) for alias, mb in held.items())
        free = min(reading.total_mb - sum(held.values()), reading.free_mb - pending)
        ours = sum(self._used_by(self._holdings[alias], reading, mb) for alias, mb in held.items())
        return DeviceView(
            id=reading.id,
            name=reading.name,
            total_mb=reading.total_mb,
            used_mb=reading.used_mb,
            free_mb=free,
            reserved_mb=sum(held.values()),
            min_free_mb=self._min_free_mb,
            others_mb=max(reading.used_mb - ours - self._still_coming(reading), 0),
            settling_mb=self._still_coming(reading),
            utilization=reading.utilization,
            is_gpu=reading.id != HOST,
            error=self.error,
        )

    def _shown(self, alias: str, reading: Reading) -> int:
        """How much of a promise the driver's figure contains already."""
        holding = self._holdings[alias]
        if holding.pid is not None and holding.pid in reading.by_pid:
            return reading.by_pid[holding.pid]
        return holding.placement[reading.id] if holding.settled_at <= self._read_at else 0

    @staticmethod
    def _used_by(holding: _Holding, reading: Reading, promised_mb: int) -> int:
        """What the last reading counts as used by that process; where it does not tell, the whole promise."""
        if holding.pid is not None and holding.pid in reading.by_pid:
            return reading.by_pid[holding.pid]
        return min(promised_mb, reading.used_mb)

    def _still_coming(self, reading: Reading) -> int:
        settling = self._settling.get(reading.id)
        return max(settling.expected_free_mb - reading.free_mb, 0) if settling is not None else 0

    def _forget_settled(self) -> None:
        now = self._clock()
        for device, settling in list(self._settling.items()):
            reading = self._readings.get(device)
            fresh = self._read_at >= settling.since or self.error is not None
            shown = reading is None or reading.free_mb >= settling.expected_free_mb
            if fresh and (shown or now >= settling.deadline):
                del self._settling[device]


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
