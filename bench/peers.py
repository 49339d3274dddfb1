"""llama-server's own router mode, started on the same files: the peer that is measured beside us."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import httpx

from tests.router_process import free_port, until_now


class RouterMode:
    """`llama-server --models-dir FOLDER --models-max N`; a model's name there is its file's stem."""

    def __init__(
        self, llama_server: Path, models_dir: Path, *, max_models: int, n_ctx: int, log: Path
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [str(llama_server), "--models-dir", str(models_dir), "--models-max", str(max_models)]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "-np", "1", "-c", str(n_ctx)]
        command += ["-t", "2", "--cache-ram", "0", "--offline", "-ngl", "0"]
        env = {k: v for k, v in os.environ.items() if not k.startswith("LLAMA_")}
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=env
            )
        until_now(self._answers)

    def __enter__(self) -> RouterMode:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False
