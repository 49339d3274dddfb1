"""`CUDA_VISIBLE_DEVICES`: which devices the user has left to CUDA programs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from app.memory.probes.interface import Reading

VARIABLE, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"


def without_hidden(readings: Sequence[Reading], visible: str | None) -> list[Reading]:
    """The same devices, those that `visible` does not name marked as hidden.

    As CUDA reads it: indices or beginnings of UUIDs that are one device's, nothing counts after the first
    that is none, and nothing at all if one is named twice. Indices are those of the PCI bus, which the router
    tells its processes to count by.
    """
    if visible is None:
        return list(readings)
    shown: list[str] = []
    for name in (part.strip() for part in visible.split(",")):
        found = _meant(readings, name)
        if not found:
            break
        shown += found
    if len(set(shown)) < len(shown):
        shown = []
    return [replace(r, is_hidden=r.id not in shown) for r in readings]


def counts_by_speed(env: Mapping[str, str]) -> bool:
    """It holds an index, and CUDA's indices are not those of the PCI bus: by default the fastest is 0."""
    has_index = any(_INDEX.match(part.strip()) for part in env.get(VARIABLE, "").split(","))
    return has_index and env.get(ORDER) != "PCI_BUS_ID"


_INDEX = re.compile(r"\+?0*(\d{1,9})", re.A)
"""CUDA reads a number as C does: what stands behind it does not count."""


def _meant(readings: Sequence[Reading], name: str) -> list[str]:
    if index := _INDEX.match(name):
        return [r.id for r in readings if index[1] in (r.id, *r.names)]
    if not name.startswith(("GPU-", "MIG-")):
        return []
    known = {full: [r.id for r in readings if full in _names(r)] for r in readings for full in _names(r)}
    if name in known:
        return known[name]
    found = [ids for full, ids in known.items() if full.startswith(name)]
    return found[0] if len(found) == 1 else []


def _names(reading: Reading) -> set[str]:
    return {reading.id, reading.uuid, *reading.names}
