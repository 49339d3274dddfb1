"""What is read of devices, and of whom: the seam between the router and drivers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from app.memory.probes.fixed_cost import CUDA_COST, FixedCost


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
    cost: FixedCost = CUDA_COST  # what a process takes beside its buffers, until that was seen
    source: str = "nvml"  # who tells
    error: str | None = None
    lost: bool = False  # it will not come back without help
    is_hidden: bool = False  # used only where a configuration names it
    same_as: str = ""  # the id by which another back end shows the same card; used as one that is hidden
    shares_host: bool = False  # it has no memory of its own: what it holds is the machine's

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


def resolve(readings: Iterable[Reading], wanted: Iterable[int | str] | None) -> tuple[str, ...]:
    """The ids of the devices meant by these indices, UUIDs or names, each once; None: all visible ones, and
    each card once."""
    if wanted is None:
        return tuple(reading.id for reading in readings if not (reading.is_hidden or reading.same_as))
    known: dict[str, list[str]] = {}
    for reading in readings:
        for name in {reading.id, reading.uuid, *reading.names} - {""}:
            known.setdefault(name, []).append(reading.id)
    return tuple(dict.fromkeys(id for name in wanted for id in known.get(str(name), ())))


def offers_gpu(readings: Iterable[Reading], wanted: Iterable[int | str] | None) -> bool:
    """Whether a model that may use these is one for GPUs. It is one for the CPU where there is none, or where
    all are hidden and it names none: so llama-server decides itself."""
    found = list(readings)
    return bool(found) and (wanted is not None or bool(resolve(found, None)))
