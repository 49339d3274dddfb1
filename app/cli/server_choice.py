"""Finds a llama-server that computes on this machine, and installs one if need be."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from app.domain.model_spec import ModelSpec
from app.llama.binary import BinaryNotFound, find_binary, in_path, inspect_binary
from app.llama.builds.install import BuildUnavailable, is_installed, provide, select
from app.llama.builds.known_builds import BUILDS, Build
from app.llama.builds.machine import Machine, this_machine, unmet_need
from app.llama.command_line import CommandError
from app.llama.self_test import SelfTestFailed, check_model
from app.memory.probes.choice import find_gpus
from app.memory.probes.interface import GpuError, resolve
from app.memory.probes.list_devices import list_devices

OWN_BINARY = (
    "No llama-server was found that works on this machine. Install llama.cpp (brew install llama.cpp, winget "
    "install llama.cpp, or build it), and put its llama-server into PATH, or name it in the environment: "
    "ROUTER_SYSTEM__LLAMA_SERVER_PATH=/path/to/llama-server (system.llama_server_path in a configuration)."
)
Tell = Callable[[str], None]


class NothingComputes(Exception):
    """No llama-server is of use here. The message says what to do."""


@dataclass(frozen=True)
class Candidate:
    """`get` may install it. It raises `BuildUnavailable` or `BinaryNotFound`."""

    name: str
    get: Callable[[], Path]
    unmet: str | None = None
    build: Build | None = None


def choose(candidates: Iterable[Candidate], spec: ModelSpec, tell: Tell) -> Path:
    """The first that answers with this model; each that does not gets a line. Raises `NothingComputes`."""
    for candidate in candidates:
        if candidate.unmet is None and candidate.build and not is_installed(candidate.build):
            tell(f"Installing llama-server {candidate.name} ...")
        began = time.monotonic()
        problem = candidate.unmet or _problem(candidate, spec)
        if problem:
            tell(f"llama-server {candidate.name}: not used, {problem}")
            continue
        tell(f"llama-server {candidate.name}: computes on this machine ({time.monotonic() - began:.1f} s)")
        if candidate.build is not None:
            with contextlib.suppress(OSError):
                select(candidate.build)
        return candidate.get()
    raise NothingComputes(OWN_BINARY)


def candidates_here(configured: str | None) -> list[Candidate]:
    """One that was configured stands alone."""
    if configured is not None:
        return [Candidate(configured, partial(find_binary, configured))]
    found = in_path()
    return in_order(this_machine(), found, found is not None and _shows_a_gpu(found))


def in_order(machine: Machine, found: Path | None, has_gpu: bool) -> list[Candidate]:
    """One in PATH comes first where it can use a GPU, else last: the others were tested with this router."""
    own = [Candidate(f"{found} (in PATH)", partial(Path, found))] if found is not None else []
    builds = [Candidate(b.name, partial(provide, b), unmet_need(machine, b.kinds), b) for b in BUILDS]
    return [*own, *builds] if has_gpu else [*builds, *own]


def _problem(candidate: Candidate, spec: ModelSpec) -> str | None:
    try:
        _test(candidate.get(), spec)
    except (BuildUnavailable, BinaryNotFound, CommandError, SelfTestFailed) as error:
        return str(error)
    return None


def _shows_a_gpu(binary: Path) -> bool:
    try:
        return bool(list_devices(binary))
    except GpuError:
        return False


def _test(path: Path, spec: ModelSpec) -> None:
    """Where the router would put the model."""
    binary = inspect_binary(path)
    try:
        readings = find_gpus(path).read()
    except GpuError:
        readings = ()
    places = resolve(readings, spec.gpu_devices)
    check_model(binary, spec, {r.id: r.free_mb for r in readings if r.id in places[:1]})
