"""AMD devices: llama-server says which it can use, the driver's files in sysfs how full they are.

Sources: the kernel's documentation of amdgpu, "GPU Memory Usage Information" (`mem_info_vram_total` and
`mem_info_vram_used`, in bytes) and `gpu_busy_percent`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from app.domain.units import MIB
from app.memory.probes.interface import Reading
from app.memory.probes.list_devices import ListDevicesProbe

SYSFS = Path("/sys")
SAME_TOTAL = 0.02  # llama-server's total and the driver's differ by what the driver keeps for itself
_VENDOR = "0x1002"
_NAMED = re.compile(r"AMD|Radeon", re.I)


class AmdgpuProbe:
    """Figures of sysfs for the devices that have a card there, of the listing for the others."""

    reason: str | None = None
    poll_s = 0.05

    def __init__(self, listed: ListDevicesProbe, cards: Mapping[str, Path]) -> None:
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
            total, used = _mib(card / "mem_info_vram_total"), _mib(card / "mem_info_vram_used")
        except (OSError, ValueError) as error:
            return replace(reading, error=f"{reading.id}: {error}")
        return replace(
            reading,
            total_mb=total,
            used_mb=used,
            free_mb=max(total - used, 0),
            utilization=_busy(card),
            source="amdgpu",
            error=None,
        )


def cards_of(readings: Sequence[Reading], sysfs: Path = SYSFS) -> dict[str, Path]:
    """The card of each listed device, by its size, in the order of the PCI bus, as ROCm lists them."""
    cards, found = _cards(sysfs), {}
    for reading in readings:
        if not (reading.id.startswith(("ROCm", "HIP")) or _NAMED.search(reading.name)):
            continue
        same = [c for c in cards if abs(_mib(c / "mem_info_vram_total") / reading.total_mb - 1) <= SAME_TOTAL]
        if same:
            found[reading.id] = same[0]
            cards.remove(same[0])
    return found


def _cards(sysfs: Path) -> list[Path]:
    """The device folders of amdgpu's cards that tell how much memory they have."""
    found = []
    for card in (sysfs / "class" / "drm").glob("card*"):
        device = card / "device"
        with suppress(OSError, ValueError):  # connectors are listed there too, and other makes
            if re.fullmatch(r"card\d+", card.name) and (device / "vendor").read_text().strip() == _VENDOR:
                found.append((device.resolve().name, _mib(device / "mem_info_vram_total"), device))
    return [device for _, total, device in sorted(found) if total]


def _mib(path: Path) -> int:
    return int(path.read_text()) // MIB


def _busy(card: Path) -> float | None:
    try:
        return int((card / "gpu_busy_percent").read_text()) / 100
    except (OSError, ValueError):
        return None
