"""What earlier loads took, in memory and time: a small file that survives restarts. Its loss costs little."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import anyio.to_thread

from app.domain.atomic_files import write_whole
from app.memory.probes.fixed_cost import FixedCost, SeenCost
from app.memory.probes.interface import Reading

logger = logging.getLogger(__name__)

FILE_NAME = "footprints.json"
VERSION = 1
KEPT_MODELS = 1000


@dataclass(frozen=True)
class LoadRecord:
    """One model file with one set of flags, in one build. 0 where nothing is known."""

    device_mb: int = 0  # buffers on all devices, as llama-server logged or announced them
    host_mb: int = 0  # the same on the host
    measured_mb: int = 0  # the most that the driver saw its process use
    floor_mb: int = 0  # it ran out of memory with less
    load_ms: int = 0  # the last load, from the spawn until it served

    @property
    def seen_mb(self) -> int | None:
        """What it took, as far as anybody has seen."""
        return self.measured_mb or self.device_mb or self.host_mb or None


class LoadHistory:
    """Read once, kept in memory, written after a change. Without a path it is kept in memory only."""

    def __init__(self, path: Path | None = None, build: str = "") -> None:
        self.build = build
        self._path, self._on_change = path, _nobody
        self._models: dict[str, LoadRecord] = {}
        self._costs: dict[str, SeenCost] = {}
        self._dirty = False

    def load(self) -> None:
        """Blocking. A file that cannot be used is left out, with a warning."""
        if self._path is None:
            return
        try:
            tree = json.loads(self._path.read_text("utf-8"))
            if tree["version"] != VERSION:
                raise ValueError(f"version {tree['version']}")
            models = {key: _record(entry) for key, entry in tree["models"].items()}
            costs = {str(kind): _seen(entry) for kind, entry in tree["overheads"].items()}
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            logger.warning("%s cannot be used and will be replaced: %r", self._path, error)
            return
        self._models, self._costs = models, costs

    def subscribe(self, on_change: Callable[[], None]) -> None:
        """There is something to `save`."""
        self._on_change = on_change

    def model(self, key: str) -> LoadRecord:
        return self._models.get(key, LoadRecord())

    def fixed_cost(self, devices: Iterable[Reading]) -> FixedCost:
        """The largest fixed cost of a process on such devices: as it was seen, or else a safe constant."""
        return max((self._cost(device) for device in devices), key=_total_mb, default=FixedCost(0, 0))

    def _cost(self, device: Reading) -> FixedCost:
        seen = self._costs.get(self._cost_key(device.kind))
        return device.cost if seen is None else seen.cost(device.cost.growth_mb)

    def put(self, key: str, **changes: int) -> None:
        """Change some of what is known of a model."""
        before = self.model(key)
        after = replace(before, **changes)
        if after == before:
            return
        self._models.pop(key, None)
        self._models[key] = after  # the last ones are the ones in use
        while len(self._models) > KEPT_MODELS:
            del self._models[next(iter(self._models))]
        self._changed()

    def saw_fixed_cost(self, kind: str, mb: int) -> None:
        """A process took this much on such a GPU beside its buffers."""
        key = self._cost_key(kind)
        before = self._costs.get(key, SeenCost(mb, 0))
        if (after := before.with_(mb)) != before:
            self._costs[key] = after
            self._changed()

    async def save(self) -> None:
        """Until nothing is unsaved."""
        while self._dirty and self._path is not None:
            self._dirty = False
            models = {key: asdict(record) for key, record in self._models.items()}
            costs = {kind: [seen.least_mb, seen.most_mb] for kind, seen in self._costs.items()}
            tree = {"version": VERSION, "overheads": costs, "models": models}
            await anyio.to_thread.run_sync(_write, self._path, tree)

    def _changed(self) -> None:
        self._dirty = True
        self._on_change()

    def _cost_key(self, kind: str) -> str:
        return f"{kind} / {self.build}"


def _nobody() -> None:
    """Is told of changes."""


def _total_mb(cost: FixedCost) -> int:
    return cost.total_mb


def _write(path: Path, tree: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(tree, indent=1))
    except OSError as error:
        logger.warning("%s cannot be written, what was learned is lost at the end: %s", path, error)


def _record(entry: dict[str, Any]) -> LoadRecord:
    return LoadRecord(**{name: _amount(mb) for name, mb in entry.items()})


def _seen(entry: object) -> SeenCost:
    """Earlier versions kept the largest only."""
    least, most = entry if isinstance(entry, list) else (entry, entry)
    return SeenCost(_amount(least), _amount(most))


def _amount(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no amount of memory")
    return value
