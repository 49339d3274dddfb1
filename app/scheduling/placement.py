"""Where a model goes: arithmetic over free memory and places, without an opinion on who should leave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from app.domain.views import Need, Placement


@dataclass(frozen=True)
class Room:
    """Free MB by device, and how many more models may be loaded."""

    free: Mapping[str, int]
    places: int

    def plus(self, held: Placement) -> Room:
        """As it will be when a model that holds this has gone."""
        return Room({d: mb + held.get(d, 0) for d, mb in self.free.items()}, self.places + 1)

    def plus_all(self, other: Room) -> Room:
        return Room({d: mb + other.free.get(d, 0) for d, mb in self.free.items()}, self.places + other.places)

    def minus(self, placement: Placement) -> Room:
        return Room({d: mb - placement.get(d, 0) for d, mb in self.free.items()}, self.places - 1)

    def at_most(self, other: Room) -> Room:
        return Room(
            {d: min(mb, other.free.get(d, 0)) for d, mb in self.free.items()}, min(self.places, other.places)
        )

    def take(self, placement: Placement, coming: Room) -> tuple[Room, Room]:
        """Reserve a placement, first from what is free now, the rest from what is coming."""
        now = {d: min(max(self.free[d], 0), mb) for d, mb in placement.items() if d in self.free}
        later = {d: mb - now.get(d, 0) for d, mb in placement.items()}
        place_now = 1 if self.places > 0 else 0
        left = Room({d: mb - now.get(d, 0) for d, mb in self.free.items()}, self.places - place_now)
        rest = Room(
            {d: mb - later.get(d, 0) for d, mb in coming.free.items()}, coming.places - (1 - place_now)
        )
        return left, rest

    def most(self, need: Need) -> int:
        """The largest need that would have room here, on one device or split."""
        usable = {d: self.free[d] for d in need.devices if d in self.free}
        single = max(usable.values(), default=0)
        parts = [mb - need.overhead_mb for d, mb in usable.items() if _can_share(d)]
        split = sum(max(mb, 0) for mb in parts) + need.overhead_mb
        return max(0, single, split if len(parts) > 1 else 0)


def fit(need: Need, room: Room) -> Placement | None:
    """A placement if there is room now: the single device it fills best, else the smallest set of devices.

    A split model takes from each device in proportion to what is free there, as llama-server's
    `--tensor-split` does with these numbers.
    """
    if room.places < 1:
        return None
    if need.mb == 0:
        return {}
    usable = {d: room.free[d] for d in need.devices if d in room.free}
    roomy = [d for d, free in usable.items() if free >= need.mb]
    if roomy:
        return {min(roomy, key=lambda d: usable[d]): need.mb}
    willing = (d for d in usable if _can_share(d) and usable[d] > need.overhead_mb)
    by_size = sorted(willing, key=lambda d: -usable[d])
    for count in range(2, len(by_size) + 1):
        if (split := _split(need, {d: usable[d] for d in by_size[:count]})) is not None:
            return split
    return None


def _can_share(device: str) -> bool:
    """CUDA gives a process one part of a partitioned card, and nothing else."""
    return not device.startswith("MIG-")


def _split(need: Need, free: Mapping[str, int]) -> Placement | None:
    """`need.mb` counts the overhead of one device; each further device adds its own."""
    spread = {d: mb - need.overhead_mb for d, mb in free.items()}
    model_mb, total = need.mb - need.overhead_mb, sum(spread.values())
    if model_mb > total:
        return None
    return {d: -(-model_mb * mb // total) + need.overhead_mb for d, mb in spread.items()}
