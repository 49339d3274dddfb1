"""Devices of any make, as `llama-server --list-devices` shows them: AMD, Intel, Metal, Vulkan."""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from app.memory.probes.fixed_cost import default_cost
from app.memory.probes.interface import GpuError, Reading

LIST_TIMEOUT_S = 30.0


class ListDevicesProbe:
    """Devices as llama-server itself sees them. Each reading is a process: it is made only on demand."""

    reason: str | None = None
    poll_s = 1.0

    def __init__(self, binary: Path, found: Sequence[Reading]) -> None:
        self._binary = binary
        self._found = found
        self._wanted = self._seen = 0

    def read(self) -> Sequence[Reading]:
        wanted = self._wanted  # what expires while the process runs is read again the next time
        if self._seen != wanted:
            self._found = list_devices(self._binary)
            self._seen = wanted
        return self._found

    def expire(self) -> None:
        self._wanted += 1

    def close(self) -> None:
        pass


_DEVICE = re.compile(r"^\s+(?P<id>[^\s:]+): (?P<name>.*) \((?P<total>\d+) MiB, (?P<free>\d+) MiB free\)\s*$")

_APPLE = ("MTL", "Metal")
"""Of which the GPU has no memory of its own."""


def list_devices(binary: Path, *, without: str = "") -> list[Reading]:
    """What `llama-server --list-devices` prints, in an environment without this variable.

    Raises `GpuError`.
    """
    try:
        done = subprocess.run(
            [str(binary), "--list-devices"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=LIST_TIMEOUT_S,
            env={name: value for name, value in os.environ.items() if name != without},
            encoding="utf-8",
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GpuError(f"{binary} --list-devices: {error}") from error
    if done.returncode != 0:
        raise GpuError(f"{binary} --list-devices ended with exit code {done.returncode}")
    return parse_devices(f"{done.stdout}\n{done.stderr}")


def parse_devices(text: str) -> list[Reading]:
    """An index in `gpu_devices` counts in this order. Libraries for the CPU are listed without memory."""
    found = [match for line in text.splitlines() if (match := _DEVICE.match(line)) and int(match["total"])]
    return _each_card_once(
        Reading(
            id=match["id"],
            uuid="",
            name=match["name"],
            total_mb=int(match["total"]),
            used_mb=max(int(match["total"]) - int(match["free"]), 0),
            free_mb=int(match["free"]),
            names=(str(position),),
            cost=default_cost(_back_end(match["id"])),
            source="llama-server",
            shares_host=match["id"].startswith(_APPLE),
        )
        for position, match in enumerate(found)
    )


_DRIVERS_NAME = re.compile(r"\s*\([^()]*\)$")
"""Vulkan puts the chip's or the driver's name behind the card's: `AMD Radeon RX 7900 XTX (RADV NAVI31)`."""


def _each_card_once(readings: Iterable[Reading]) -> list[Reading]:
    """What several back ends show is one card with one memory. llama-server takes such a card by the first
    of them, too; it knows cards by their place on the bus, but does not print that."""
    first, count, found = dict[tuple[str, int], str](), Counter[tuple[str, str]](), list[Reading]()
    for reading in readings:
        back_end, name = _back_end(reading.id), _DRIVERS_NAME.sub("", reading.name).casefold()
        one = first.setdefault((name, count[back_end, name]), reading.id)
        count[back_end, name] += 1
        found.append(reading if one == reading.id else replace(reading, same_as=one))
    return found


def _back_end(id: str) -> str:
    return id.rstrip("0123456789")
