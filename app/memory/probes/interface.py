"""What is read of devices, and of whom: the seam between the router and drivers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import psutil

from app.domain.units import MIB
from app.domain.views import HOST


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
