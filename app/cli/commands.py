"""The commands behind `run.py`. Each returns the exit code."""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from app import listen_check
from app.cli import check as config_check
from app.cli import init as config_init
from app.cli import upgrade_notes
from app.cli.demo_models import CHAT, ModelMissing, demo_configuration, demo_hints
from app.cli.devices import device_lines, device_warnings
from app.cli.server_choice import NothingComputes, candidates_here, choose
from app.configuration import file as config_file
from app.configuration.file import ConfigError
from app.core.config import Config
from app.kinds_from_files import with_kinds_from_files
from app.llama.binary import BinaryNotFound, find_binary, inspect_binary
from app.llama.command_line import BinaryInfo
from app.memory.probes.choice import DRIVER_TIMEOUT_S, find_gpus, in_time
from app.memory.probes.cuda_visible_devices import VARIABLE
from app.memory.probes.interface import GpuError, GpuProbe
from app.observability import router_log

SHOWN_NAMES = 8


def serve(options: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    try:
        config = with_kinds_from_files(config_file.load(options.config))
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
    try:
        config = demo_configuration(os.environ)
        candidates = candidates_here(config.system.llama_server_path)
        path = choose(candidates, config.spec(CHAT), _say)
        return _serve(config, path, hints=demo_hints(config.api.port))
    except (ConfigError, ModelMissing, NothingComputes) as error:
        return _complain(str(error))


def _serve(config: Config, llama_server: Path, path: Path | None = None, hints: str = "") -> int:
    """Raises `BinaryNotFound`."""
    router_log.apply(config)
    try:
        found_places = {
            port: listen_check.places(config.api.addresses, port, key)
            for key, port in config.api.ports.items()
        }
    except listen_check.CannotListen as error:
        return _complain(str(error))
    with ThreadPoolExecutor(2) as meanwhile:  # the imports take half a second, and so do these
        found = meanwhile.submit(inspect_binary, llama_server), meanwhile.submit(find_gpus, llama_server)
        from app import uvicorn_server
        from app.main import create_app
    binary, probe = found[0].result(), found[1].result()
    print(_banner(config, binary, probe), flush=True)
    if hints:
        print(hints, flush=True)
    app = create_app(config, probe=probe, binary=binary, config_path=path)
    app.state.configuration.subscribe(router_log.TAKES, router_log.apply)
    return uvicorn_server.run(app, found_places[config.api.port], config.api.port, path)


def _say(line: str) -> None:
    print(line, flush=True)


def _complain(message: str) -> int:
    print(message, file=sys.stderr)
    return 1


def _banner(config: Config, binary: BinaryInfo, probe: GpuProbe) -> str:
    preload = _listed(config.preload())
    devices, warnings = _devices(config, probe)
    rows = [
        ("address", "\n".join(listen_check.urls(config.api.addresses, config.api.port))),
        *(("for Ollama", url) for url in _ollama_urls(config)),
        ("llama-server", f"{binary.version}\n{binary.path}"),
        ("devices", "\n".join(devices)),
        ("models", _listed(tuple(config.models)) or "none: add some to the configuration"),
        ("preload", preload or "nothing; each model is loaded by its first request"),
        ("admins", upgrade_notes.admins(config)),
        *(("changed", note) for note in upgrade_notes.untold(config)),
        *(("missing here", note) for note in _missing_here(sys.platform)),
        *(("warning", text) for text in (*config.warnings(), *warnings)),
    ]
    return f"RouterModelCustom\n{_table(rows)}\n"


def _ollama_urls(config: Config) -> list[str]:
    port = config.api.ollama_port
    return [] if port is None else ["\n".join(listen_check.urls(config.api.addresses, port))]


def _table(rows: list[tuple[str, str]]) -> str:
    """Names on the left; a value of several lines stays in its column."""
    lines = []
    for name, value in rows:
        for number, line in enumerate(value.splitlines()):
            lines.append(f"  {name if number == 0 else '':<13} {line}")
    return "\n".join(lines)


def _devices(config: Config, probe: GpuProbe) -> tuple[list[str], list[str]]:
    """Lines about them, and warnings."""
    try:
        readings = in_time(probe.read, DRIVER_TIMEOUT_S)
    except (GpuError, TimeoutError) as error:
        return [f"unknown, the GPU driver does not tell ({error})"], []
    if not readings:
        return [f"no GPU, models run on the CPU ({probe.reason})"], []
    visible = os.environ.get(VARIABLE)
    return device_lines(readings, config, visible), device_warnings(readings, config, visible)


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
