"""Where a model goes: arithmetic over free memory and places, without an opinion on who should leave."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from app.domain.views import HOST, Layout, MemoryNeed, Placement

SAME_SIZE_MB = 2048  # cards that differ by less are taken for equal
CACHE_PARTS = 4  # a prompt cache takes at most this part of what is left, so that others have room too


@dataclass(frozen=True)
class Capacity:
    """Free MB by device, how many more models may be loaded, and how large the devices are.

    What is placed on a device that is `shared` is taken from the machine's memory, too.
    """

    free: Mapping[str, int]
    places: int
    sizes: Mapping[str, int] = field(default_factory=dict)
    shared: frozenset[str] = frozenset()

    def plus(self, held: Placement) -> Capacity:
        """As it will be when a model that holds this has gone."""
        taken = self._taken(held)
        return self._with({d: mb + taken.get(d, 0) for d, mb in self.free.items()}, self.places + 1)

    def plus_all(self, other: Capacity) -> Capacity:
        free = {d: mb + other.free.get(d, 0) for d, mb in self.free.items()}
        return self._with(free, self.places + other.places)

    def minus(self, placement: Placement) -> Capacity:
        taken = self._taken(placement)
        return self._with({d: mb - taken.get(d, 0) for d, mb in self.free.items()}, self.places - 1)

    def at_most(self, other: Capacity) -> Capacity:
        free = {d: min(mb, other.free.get(d, 0)) for d, mb in self.free.items()}
        return self._with(free, min(self.places, other.places))

    def take(self, placement: Placement, coming: Capacity) -> tuple[Capacity, Capacity]:
        """Reserve a placement, first from what is free now, the rest from what is coming."""
        taken = self._taken(placement)
        now = {d: min(max(self.free[d], 0), mb) for d, mb in taken.items() if d in self.free}
        later = {d: mb - now.get(d, 0) for d, mb in taken.items()}
        place_now = 1 if self.places > 0 else 0
        left = {d: mb - now.get(d, 0) for d, mb in self.free.items()}
        rest = {d: mb - later.get(d, 0) for d, mb in coming.free.items()}
        return self._with(left, self.places - place_now), coming._with(rest, coming.places - (1 - place_now))

    def _with(self, free: Mapping[str, int], places: int) -> Capacity:
        return replace(self, free=free, places=places)

    def usable(self, need: MemoryNeed) -> dict[str, int]:
        """What each of its devices can give, when its part of the machine's memory has been taken."""
        left_mb = self.free.get(HOST, 0) - need.host_mb
        found = {d: self.free[d] for d in need.devices if d in self.free}
        return {d: min(mb, left_mb) if d in self.shared else mb for d, mb in found.items()}

    def shared_mb(self, placement: Placement) -> int:
        """What of this is the machine's memory, although it is on a device."""
        return sum(mb for d, mb in placement.items() if d in self.shared)

    def _taken(self, placement: Placement) -> Placement:
        shared_mb = self.shared_mb(placement)
        return {**placement, HOST: placement.get(HOST, 0) + shared_mb} if shared_mb else placement

    def most(self, need: MemoryNeed) -> int:
        """The largest need that would have room here, on one device or split."""
        usable = self.usable(need)
        single = max(usable.values(), default=0)
        parts = [mb - _each_mb(need) for d, mb in usable.items() if _can_share(d)]
        split = sum(max(mb, 0) for mb in parts) + _each_mb(need)
        return max(0, single, split if len(parts) > 1 else 0)


def fit(need: MemoryNeed, room: Capacity) -> Layout | None:
    """A placement if there is room now: on one device if that is possible, else on the fewest.

    Of devices of about the same size the freest is taken; a larger one is kept for what needs it.
    """
    if room.places < 1:
        return None
    found = _on_devices(need, room)
    return None if found is None else _with_host_part(need, room, found)


def fits_on_devices(need: MemoryNeed, room: Capacity) -> bool:
    """Whatever else is missing, it is not the devices' memory."""
    return _on_devices(need, room) is not None


def _on_devices(need: MemoryNeed, room: Capacity) -> Layout | None:
    if need.mb == 0:
        return Layout({})
    usable = room.usable(need)
    roomy = [d for d, free in usable.items() if free >= need.mb]
    if roomy:
        best = min(roomy, key=lambda d: (round(room.sizes.get(d, 0) / SAME_SIZE_MB), -usable[d]))
        return Layout({best: need.mb})
    willing = (d for d in usable if _can_share(d) and usable[d] > _each_mb(need))
    by_room = sorted(willing, key=lambda d: -usable[d])
    for count in range(2, len(by_room) + 1):
        if (split := _split(need, {d: usable[d] for d in by_room[:count]})) is not None:
            return split
    return None


def _with_host_part(need: MemoryNeed, room: Capacity, found: Layout) -> Layout | None:
    """What stays in the machine's memory, and a prompt cache as large as it can well spare."""
    shared_mb, has_part = room.shared_mb(found), bool(need.host_mb or need.cache_mb)
    if not (has_part or shared_mb) or HOST not in room.free:
        return found
    taken_mb = found.mb.get(HOST, 0) + need.host_mb
    left_mb = room.free[HOST] - shared_mb - taken_mb
    if left_mb < 0:
        return None
    if not has_part:
        return found
    cache_mb = min(need.cache_mb, left_mb // CACHE_PARTS)
    return Layout({**found.mb, HOST: taken_mb + cache_mb}, found.layers, cache_mb)


def _can_share(device: str) -> bool:
    """CUDA gives a process one part of a partitioned card, and nothing else."""
    return not device.startswith("MIG-")


def _each_mb(need: MemoryNeed) -> int:
    """What each device of a split takes whatever layers it gets."""
    return need.overhead_mb + need.scratch_mb + need.copies_mb


def _split(need: MemoryNeed, free: Mapping[str, int]) -> Layout | None:
    """In proportion to what is free there, as llama-server's `--tensor-split` does with these numbers."""
    if len(need.layers) >= len(free):
        return _split_by_layers(need, free)
    spread = {d: mb - _each_mb(need) for d, mb in free.items()}
    model_mb, total = need.mb - need.overhead_mb - need.scratch_mb, sum(spread.values())
    if model_mb > total:
        return None
    return Layout({d: -(-model_mb * mb // total) + _each_mb(need) for d, mb in spread.items()})


def _split_by_layers(need: MemoryNeed, free: Mapping[str, int]) -> Layout | None:
    """Whole layers in their order, each device filled to about the same share, and none beyond its room."""
    each_mb = _each_mb(need)
    model_mb = need.mb - need.overhead_mb - need.scratch_mb
    scale = model_mb / max(sum(need.layers), 1)  # what is known of the whole holds for its parts
    sizes = [size * scale for size in need.layers]
    rooms = [mb - each_mb for mb in free.values()]
    fill = model_mb / max(sum(rooms), 1)
    counts = _fill(sizes, rooms, fill) or _fill(sizes, rooms, 1.0)
    if counts is None:
        return None
    parts: dict[str, int] = {}
    rest = iter(sizes)
    for device, count in zip(free, counts, strict=True):
        parts[device] = each_mb + math.ceil(sum(next(rest) for _ in range(count)))
    return Layout(parts, counts)


def _fill(sizes: Sequence[float], rooms: Sequence[int], share: float) -> tuple[int, ...] | None:
    """Layers for each device, the first ones filled to `share` of their room; None if the last overflows."""
    counts, at = [], 0
    for number, room in enumerate(rooms, 1):
        is_last, used, begin = number == len(rooms), 0.0, at
        while (
            at < len(sizes) and used + sizes[at] <= room and (is_last or used + sizes[at] / 2 <= room * share)
        ):
            used += sizes[at]
            at += 1
        counts.append(at - begin)
    return tuple(counts) if at == len(sizes) and all(counts) else None
