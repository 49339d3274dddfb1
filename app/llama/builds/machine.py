"""What decides whether a ready-made llama-server can run here: system, processor, C library."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from pathlib import Path

_MACHINES = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}
_LIBRARY = {"linux": "glibc", "darwin": "macOS"}


@dataclass(frozen=True)
class Machine:
    """`system` as in `sys.platform`. `library` is the version of glibc, on a Mac of macOS; None: another one.

    `features` are the processor's, in the words of /proc/cpuinfo; None: this system does not tell.
    """

    system: str
    processor: str
    library: tuple[int, ...] | None
    features: frozenset[str] | None


@dataclass(frozen=True)
class Needs:
    """One kind of machine for which a build was made."""

    system: str
    processor: str
    library: tuple[int, ...] = ()  # this version or newer
    features: frozenset[str] = frozenset()


def this_machine() -> Machine:
    processor = platform.machine().lower()
    return Machine(sys.platform, _MACHINES.get(processor, processor), _library(), _features())


def unmet_need(machine: Machine, kinds: tuple[Needs, ...]) -> str | None:
    """Why a build for these kinds of machines cannot run here; None: it can, as far as can be told."""
    here = [k for k in kinds if (k.system, k.processor) == (machine.system, machine.processor)]
    if not here:
        made_for = ", ".join(dict.fromkeys(f"{kind.system} {kind.processor}" for kind in kinds))
        return f"it is for {made_for}; this is {machine.system} {machine.processor}"
    found = [_lacks(machine, kind) for kind in here]
    return None if None in found else found[0]


def _lacks(machine: Machine, kind: Needs) -> str | None:
    name = _LIBRARY.get(kind.system, "the system's version")
    if kind.library and machine.library is None:
        return f"it needs {name} {_dotted(kind.library)}, which is not what this system has"
    if kind.library and machine.library is not None and machine.library < kind.library:
        return f"it needs {name} {_dotted(kind.library)}; this is {_dotted(machine.library)}"
    missing = kind.features - machine.features if machine.features is not None else frozenset()
    return f"this processor has no {', '.join(sorted(missing))}" if missing else None


def parse_features(cpuinfo: str) -> frozenset[str] | None:
    """The flags of the first processor; None where the text has none, as on ARM."""
    line = next((line for line in cpuinfo.splitlines() if line.startswith("flags")), "")
    return frozenset(line.partition(":")[2].split()) or None


def parse_version(text: str) -> tuple[int, ...] | None:
    numbers = [part for part in text.split(".")[:2] if part.isdigit()]
    return tuple(map(int, numbers)) or None


def _library() -> tuple[int, ...] | None:
    if sys.platform == "darwin":
        return parse_version(platform.mac_ver()[0])
    name, version = platform.libc_ver()
    return parse_version(version) if name == "glibc" else None


def _features() -> frozenset[str] | None:
    try:
        return parse_features(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
