"""Which devices are used and why the others are not, for the start and for `check`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from app.core.config import Config
from app.memory.probes.cuda_visible_devices import VARIABLE
from app.memory.probes.interface import Reading, resolve


def device_lines(readings: Sequence[Reading], config: Config, visible: str | None) -> list[str]:
    """One for each. `visible` is `CUDA_VISIBLE_DEVICES`, if it is set."""
    lines = []
    for reading in readings:
        room = f"{reading.id}: {reading.name}, {reading.total_mb} MB, {reading.free_mb} MB free"
        lines.append("; ".join(filter(None, (room, _restriction(reading, readings, config, visible)))))
    return lines


def device_warnings(readings: Sequence[Reading], config: Config, visible: str | None) -> list[str]:
    """What a configuration says of devices that is not so, or that the environment says otherwise."""
    found = []
    for place, wanted in _named(config):
        hidden = [r.id for r in readings if r.is_hidden and r.id in resolve(readings, wanted)]
        if hidden:
            found.append(
                f"{place} names {_devices(hidden)}, which {VARIABLE}={visible} hides: the configuration "
                "counts, and the environment does not"
            )
        missing = [str(name) for name in wanted if not resolve(readings, [name])]
        if missing and readings:
            found.append(f"{place} names {_devices(missing)}, and there is no such device")
    return found


def _restriction(reading: Reading, readings: Sequence[Reading], config: Config, visible: str | None) -> str:
    """Empty for a device that every model may use."""
    if reading.error:
        return f"not used: {reading.error}"
    if reading.id in resolve(readings, config.system.gpu_devices):
        return ""
    if users := [place for place, wanted in _named(config) if reading.id in resolve(readings, wanted)]:
        return f"used only where {', '.join(users)} names it"
    if reading.is_hidden:
        return f"not used: {VARIABLE}={visible} hides it"
    if reading.same_as and config.system.gpu_devices is None:
        return f"not used: it is {reading.same_as}, which another back end shows"
    return "not used: system.gpu_devices does not name it"


def _named(config: Config) -> Iterator[tuple[str, Sequence[int | str]]]:
    """Each place that names devices, and which."""
    if config.system.gpu_devices is not None:
        yield "system.gpu_devices", config.system.gpu_devices
    for alias, model in config.models.items():
        if model.gpu_devices is not None:
            yield f"models.{alias}.gpu_devices", model.gpu_devices


def _devices(names: Sequence[str]) -> str:
    return f"{'device' if len(names) == 1 else 'devices'} {', '.join(names)}"
