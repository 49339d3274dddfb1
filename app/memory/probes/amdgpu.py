"""AMD devices: llama-server says which it can use, the driver's files in sysfs how full they are.

Sources: the kernel's documentation of amdgpu, "GPU Memory Usage Information" (`mem_info_vram_total`,
`mem_info_gtt_total` and the same with `used`, in bytes) and `gpu_busy_percent`. A processor's own graphics
has two memories: what the firmware set aside for it (VRAM), and the machine's (GTT).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from app.domain.units import MIB
from app.memory.probes.interface import Reading
from app.memory.probes.list_devices import ListDevicesProbe

SYSFS = Path("/sys")
SAME_TOTAL = 0.02  # llama-server's total and the driver's differ by what the driver keeps for itself
_VENDOR = "0x1002"
_NAMED = re.compile(r"AMD|Radeon", re.I)


class Card(NamedTuple):
    """Which of a card's memories a listed device stands for."""

    device: Path
    memories: tuple[str, ...]
    shares_host: bool

    def mb(self, figure: str) -> int:
        """`total` or `used`."""
        return sum(_mib(self.device, memory, figure) for memory in self.memories)


class AmdgpuProbe:
    """Figures of sysfs for the devices that have a card there, of the listing for the others."""

    reason: str | None = None
    poll_s = 0.05

    def __init__(self, listed: ListDevicesProbe, cards: Mapping[str, Card]) -> None:
        self._listed, self._cards = listed, cards
        self._last = list(listed.read())

    def read(self) -> Sequence[Reading]:
        if any(reading.id not in self._cards for reading in self._last):
            self._last = list(self._listed.read())
        self._last = [self._with_card(reading) for reading in self._last]
        return self._last

    def expire(self) -> None:
        self._listed.expire()

    def close(self) -> None:
        pass

    def _with_card(self, reading: Reading) -> Reading:
        card = self._cards.get(reading.id)
        if card is None:
            return reading
        try:
            total, used = card.mb("total"), card.mb("used")
        except (OSError, ValueError) as error:
            return replace(reading, error=f"{reading.id}: {error}")
        return replace(
            reading,
            total_mb=total,
            used_mb=used,
            free_mb=max(total - used, 0),
            utilization=_busy(card.device),
            source="amdgpu",
            shares_host=card.shares_host,
            error=None,
        )


_LISTED = ("vram",), ("vram", "gtt"), ("gtt",)
"""What may be listed as one device: of a card its own memory; of a processor's graphics both by Vulkan, one
of them by ROCm."""


def cards_of(readings: Sequence[Reading], sysfs: Path = SYSFS) -> dict[str, Card]:
    """The card of each listed device, by its size, in the order of the PCI bus, as ROCm lists them."""
    devices, found = _devices(sysfs), dict[str, Card]()
    once = [r for r in readings if not r.same_as]
    amd = [r for r in once if r.id.startswith(("ROCm", "HIP")) or _NAMED.search(r.name)]
    for memories in _LISTED:
        for reading in (r for r in amd if r.id not in found):
            same = [d for d in devices if _is_size(reading.total_mb, sum(_total(d, m) for m in memories))]
            if same:
                device = same[0] if memories == _LISTED[0] else min(same, key=_own_mb)
                found[reading.id] = _counted(device, memories)
                devices.remove(device)
    return found


def _counted(device: Path, memories: tuple[str, ...]) -> Card:
    """Of two memories the larger one is planned with: what was set aside is the device's alone, the rest is
    the machine's, of which models on the CPU and other programs take, too."""
    if "gtt" in memories and _own_mb(device) < _total(device, "gtt"):
        return Card(device, memories, shares_host=True)
    return Card(device, ("vram",), shares_host=False)


def _is_size(listed_mb: int, card_mb: int) -> bool:
    return abs(card_mb / listed_mb - 1) <= SAME_TOTAL


def _own_mb(device: Path) -> int:
    return _total(device, "vram")


def _total(device: Path, memory: str) -> int:
    """0 where the driver does not tell."""
    try:
        return _mib(device, memory, "total")
    except (OSError, ValueError):
        return 0


def _devices(sysfs: Path) -> list[Path]:
    """The folders of amdgpu's cards that tell how much memory they have."""
    found = []
    for card in (sysfs / "class" / "drm").glob("card*"):
        device = card / "device"
        with suppress(OSError, ValueError):  # connectors are listed there too, and other makes
            if re.fullmatch(r"card\d+", card.name) and (device / "vendor").read_text().strip() == _VENDOR:
                found.append((device.resolve().name, _own_mb(device), device))
    return [device for _, total, device in sorted(found) if total]


def _mib(device: Path, memory: str, figure: str) -> int:
    return int((device / f"mem_info_{memory}_{figure}").read_text()) // MIB


def _busy(device: Path) -> float | None:
    try:
        return int((device / "gpu_busy_percent").read_text()) / 100
    except (OSError, ValueError):
        return None
