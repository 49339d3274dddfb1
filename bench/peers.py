"""llama-server by itself and in its own router mode: what the router is measured beside."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import httpx

from tests.ports import free_port
from tests.router_process import until_now


class Peer:
    """A llama-server with these flags, ready when the block begins and gone when it ends."""

    def __init__(self, llama_server: Path, flags: Sequence[str], log: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [str(llama_server), "--host", "127.0.0.1", "--port", str(port), *flags]
        command += ["--cache-ram", "0", "--offline", "-ngl", "0"]
        env = {k: v for k, v in os.environ.items() if not k.startswith("LLAMA_")}
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=env
            )
        self.pid = self._process.pid

    def __enter__(self) -> Peer:
        until_now(self._answers)
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


class Direct(Peer):
    """One model, no router."""

    def __init__(self, llama_server: Path, model: Path, flags: Sequence[str], log: Path) -> None:
        super().__init__(llama_server, ["-m", str(model), *flags], log)


class RouterMode(Peer):
    """A folder of models; there a model's name is its file's stem."""

    def __init__(
        self, llama_server: Path, models: Path, flags: Sequence[str], log: Path, *, max_models: int
    ) -> None:
        own = ["--models-dir", str(models), "--models-max", str(max_models)]
        super().__init__(llama_server, [*own, *flags], log)
