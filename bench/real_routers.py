"""Real routers over the same models, whose servers are as slow as those of large ones would be."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.peers import RouterMode
from tests import llama_build
from tests.ggufs import make_tiny
from tests.ports import free_port
from tests.router_process import RouterProcess, until_now
from tests.shared_library import compile_library

N_CTX, SLOTS, ROOM = 32768, 2, 2
SLOW = Path(__file__).with_name("slow_server.c")

COPIES = '#!/bin/sh\nwhile [ $# -gt 3 ]; do shift; done\nexec cp "$1" "$2"\n'  # its file, a new one, the type
CHAT_TEMPLATE = "{{ range .Messages }}{{ .Role }}: {{ .Content }}\n{{ end }}assistant: "


@dataclass(frozen=True)
class Pace:
    """By how much a server is slowed down: its start, each step of an answer, each token of a prompt."""

    load_s: float
    step_s: float = 0.0
    token_s: float = 0.0


class Stage:
    """The models' files, the most popular first, and how their servers are started."""

    def __init__(self, folder: Path, users: Mapping[str, int], pace: Pace) -> None:
        self.folder, self.users = folder, users
        self.llama_server = llama_build.of()
        self._count = folder / "starts"
        for seed, alias in enumerate(users):
            make_tiny(self.file(alias), context=N_CTX, seed=seed)
        self.env = {
            "LD_PRELOAD": str(compile_library(SLOW, folder / "slow_server.so")),
            "SLOW_START_S": str(pace.load_s),
            "SLOW_STEP_S": str(pace.step_s),
            "SLOW_TOKEN_S": str(pace.token_s),
            "SLOW_START_COUNT": str(self._count),
        }

    def file(self, alias: str) -> Path:
        return self.folder / f"{alias}.gguf"

    @property
    def starts(self) -> int:
        return self._count.stat().st_size if self._count.exists() else 0


Router = Callable[[Stage, Path], AbstractContextManager[str]]


@contextmanager
def ours(stage: Stage, folder: Path) -> Iterator[str]:
    models = {
        alias: {"model_path": stage.file(alias), "params": {"n_ctx": N_CTX}, "env": stage.env}
        for alias in stage.users
    }
    system = {"max_concurrent_models": ROOM, "parallel_requests": SLOTS, "cpu_threads": 1}
    router = RouterProcess(folder, stage.llama_server, models, system=system)
    router.start()
    try:
        yield router.wait_until_it_answers().url
    finally:
        router.stop()


@contextmanager
def router_mode(stage: Stage, folder: Path) -> Iterator[str]:
    flags = ["-np", str(SLOTS), "-c", str(N_CTX * SLOTS), "-t", "1"]
    os.environ.update(stage.env)
    try:
        with RouterMode(
            stage.llama_server, stage.folder, flags, folder / "peer.log", max_models=ROOM
        ) as peer:
            yield peer.url
    finally:
        for name in stage.env:
            del os.environ[name]


def llama_swap(program: str) -> Router:
    """Any two models may be loaded together; of equal sets it takes the first, here that of the popular."""

    @contextmanager
    def run(stage: Stage, folder: Path) -> Iterator[str]:
        path, address = folder / "llama-swap.yaml", f"127.0.0.1:{free_port()}"
        path.write_text(json.dumps(_llama_swap_config(stage)))  # which is YAML too
        command = [program, "--config", str(path), "--listen", address]
        with _running(command, dict(os.environ), folder, f"http://{address}") as url:
            yield url

    return run


def _llama_swap_config(stage: Stage) -> dict[str, object]:
    aliases = list(stage.users)
    pairs = [f"{a} & {b}" for i, a in enumerate(aliases) for b in aliases[i + 1 :]]
    command = f"{stage.llama_server} --port ${{PORT}} --host 127.0.0.1 -np {SLOTS} -c {N_CTX * SLOTS} -t 1"
    command += " --cache-ram 0 --offline -ngl 0 -m "
    models = {
        alias: {
            "cmd": command + str(stage.file(alias)),
            "proxy": "http://127.0.0.1:${PORT}",
            "concurrencyLimit": 100,
            "env": [f"{name}={value}" for name, value in stage.env.items()],
        }
        for alias in aliases
    }
    sets = {f"s{i}": pair for i, pair in enumerate(pairs)}
    router = {"use": "matrix", "settings": {"matrix": {"sets": sets}}}
    return {
        "healthCheckTimeout": 120,
        "startPort": free_port(),
        "models": models,
        "routing": {"router": router},
    }


def ollama(program: str) -> Router:
    """Over the same llama-server, which it looks for below the folder where it is started."""

    @contextmanager
    def run(stage: Stage, folder: Path) -> Iterator[str]:
        address, programs = f"127.0.0.1:{free_port()}", folder / "build" / "lib" / "ollama"
        programs.mkdir(parents=True)
        (programs / "llama-server").symlink_to(stage.llama_server)
        (programs / "llama-quantize").write_text(COPIES)  # asked whether a file is whole
        (programs / "llama-quantize").chmod(0o755)
        options = {
            "HOME": str(folder),
            "OLLAMA_HOST": address,
            "OLLAMA_MODELS": str(folder / "models"),
            "OLLAMA_MAX_LOADED_MODELS": str(ROOM),
            "OLLAMA_NUM_PARALLEL": str(SLOTS),
            "OLLAMA_CONTEXT_LENGTH": str(N_CTX),
            "OLLAMA_NO_CLOUD": "1",
        }
        env = {**os.environ, **stage.env, **options}
        with _running([program, "serve"], env, folder, f"http://{address}") as url:
            for alias in stage.users:
                _create_in_ollama(url, alias, stage.file(alias))
            yield url

    return run


def _create_in_ollama(url: str, alias: str, file: Path) -> None:
    data = file.read_bytes()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    model = {
        "model": alias,
        "files": {file.name: digest},
        "template": CHAT_TEMPLATE,
        "parameters": {"num_thread": 1},
        "stream": False,
    }
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as http:
        http.post(f"/api/blobs/{digest}", content=data).raise_for_status()
        http.post("/api/create", json=model).raise_for_status()


@contextmanager
def _running(command: Sequence[str], env: Mapping[str, str], folder: Path, url: str) -> Iterator[str]:
    with (folder / "router.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=env)
    try:
        until_now(lambda: _answers(f"{url}/v1/models"))
        yield url
    finally:
        process.terminate()
        process.wait(30)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
