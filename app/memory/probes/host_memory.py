"""The machine's own memory: what it has, or what its control group may use of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

from app.domain.units import MIB
from app.domain.views import HOST
from app.memory.probes.interface import Reading


@dataclass(frozen=True)
class Bound:
    """Bytes that a control group, or the machine, may use and has left, file cache included."""

    total: int
    available: int


def host_reading(pids: Sequence[int] = (), root: Path = Path("/")) -> Reading:
    """With what each of these processes keeps there, files that it only maps left out. Blocking."""
    memory = psutil.virtual_memory()
    bounds = [Bound(memory.total, memory.available), *group_bounds(root)]
    total, available = min(b.total for b in bounds) // MIB, min(b.available for b in bounds) // MIB
    available = max(min(available, total), 0)
    by_pid = {pid: mb for pid in pids if (mb := process_mb(pid, root)) is not None}
    return Reading(
        HOST,
        HOST,
        "host memory",
        total,
        total - available,
        available,
        by_pid=by_pid,
        source="os",
    )


def machine_mb(root: Path = Path("/")) -> int:
    """What the machine has, or what its control group may use of it. Blocking."""
    totals = [psutil.virtual_memory().total, *(bound.total for bound in group_bounds(root))]
    return min(totals) // MIB


def process_mb(pid: int, root: Path = Path("/")) -> int | None:
    """Memory that nothing but its end gives back; None where the system does not tell (only Linux does)."""
    try:
        text = (root / "proc" / str(pid) / "status").read_text("ascii", "replace")
    except OSError:
        return None
    found = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    if "RssAnon" not in found:  # it is ending
        return None
    kib = sum(int(found.get(name, "0").split()[0]) for name in ("RssAnon", "RssShmem"))
    return kib // 1024


def group_bounds(root: Path = Path("/")) -> list[Bound]:
    """Of this process's control group and each one above it that has a limit."""
    return [bound for folder in _folders(root) if (bound := _bound(folder)) is not None]


def _folders(root: Path) -> Iterator[Path]:
    """From the process's own group up to the root of the hierarchy, as far as it is mounted."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return
    paths = {}
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            paths["cgroup" if controllers else "cgroup2"] = path
    for line in mounts:
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind in paths and (kind == "cgroup2" or "memory" in options.split(",")):
            mount_root, mount_point = before.split(" ")[3:5]
            yield from _upwards(root / mount_point.lstrip("/"), mount_root, paths[kind])


def _upwards(mount: Path, mount_root: str, path: str) -> Iterator[Path]:
    """A container may see only its part of the hierarchy: its path does not begin with the mount's then."""
    inside = PurePosixPath(path)
    relative = inside.relative_to(mount_root) if inside.is_relative_to(mount_root) else PurePosixPath()
    for folder in (relative, *relative.parents):
        yield mount / folder


def _bound(folder: Path) -> Bound | None:
    """None without a limit. The second names are those of the first version of control groups."""
    for limit_name, used_name, prefix in (
        ("memory.max", "memory.current", ""),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        limit, used = _number(folder / limit_name), _number(folder / used_name)
        if limit is not None and used is not None and limit < psutil.virtual_memory().total:
            return Bound(limit, limit - max(used - _reclaimable(folder / "memory.stat", prefix), 0))
    return None


def _reclaimable(path: Path, prefix: str) -> int:
    """File cache. Files in a tmpfs are not among them: nothing can be written back there."""
    try:
        entries = dict(line.split() for line in path.read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return sum(int(entries.get(prefix + name, 0)) for name in ("active_file", "inactive_file"))


def _number(path: Path) -> int | None:
    """None for a file that is not there, and for `max`."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
