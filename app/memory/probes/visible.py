"""`CUDA_VISIBLE_DEVICES`: which devices the user has left to CUDA programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from app.memory.probes.interface import Reading


def without_hidden(readings: Sequence[Reading], visible: str | None) -> list[Reading]:
    """The same devices, those that `visible` does not name marked as hidden.

    As CUDA reads it: indices or beginnings of UUIDs, and nothing counts after the first that does not exist.
    Indices are those of the PCI bus, which the router tells its processes to count by.
    """
    if visible is None:
        return list(readings)
    shown: set[str] = set()
    for name in (part.strip() for part in visible.split(",")):
        found = [r.id for r in readings if _is_meant(r, name)]
        if not found:
            break
        shown.update(found)
    return [replace(r, is_hidden=r.id not in shown) for r in readings]


def _is_meant(reading: Reading, name: str) -> bool:
    if name.isdigit():
        return name in (reading.id, *reading.names)
    known = (reading.id, reading.uuid, *reading.names)
    return name.startswith(("GPU-", "MIG-")) and any(other.startswith(name) for other in known)
