"""A stand-in for the NVIDIA driver's library, which the real `pynvml` loads; as a program, its reader."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.patience import WAIT_S, exit_code
from tests.shared_library import compile_library

ROOT = Path(__file__).parents[1]
SOURCE = Path(__file__).with_name("nvml_stub.c")
LIBRARY = "libnvidia-ml.so.1"
AT_ONCE_S = 0.5

GPU_LOST, UNINITIALIZED, NOT_SUPPORTED, NO_PERMISSION, NOT_LOADED, UNKNOWN = 15, 1, 3, 4, 9, 999


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a freshly compiled libnvidia-ml.so.1."""
    return compile_library(SOURCE, tmp_path_factory.mktemp("nvml") / LIBRARY).parent


class Driver:
    """What the stub shows. Devices and troubles are lines of its control file, replaced as a whole."""

    def __init__(self, library: Path, folder: Path) -> None:
        self._library, self._control = library, folder / "nvml.txt"
        self.show()

    def show(self, *lines: str) -> None:
        fresh = self._control.with_suffix(".new")
        fresh.write_text("".join(f"{line}\n" for line in lines))
        fresh.replace(self._control)

    @property
    def env(self) -> Mapping[str, str]:
        return {"LD_LIBRARY_PATH": str(self._library), "NVML_STUB": str(self._control)}


class Router:
    """A process that uses the probe as the router does, one command a line: `read`, or `read at once`, which
    waits for a driver that hangs no longer than it must."""

    def __init__(self, env: Mapping[str, str], start_timeout_s: float = WAIT_S) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.nvml"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **env, "START_TIMEOUT_S": str(start_timeout_s)},
        )

    def ask(self, command: str) -> Any:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def read(self) -> list[dict[str, Any]]:
        """The devices. Fails if the driver as a whole could not be read."""
        answer = self.ask("read")
        assert "error" not in answer, answer
        devices: list[dict[str, Any]] = answer["devices"]
        return devices

    def close(self) -> None:
        """It must be able to end, whatever the driver does."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        try:
            assert exit_code(self._process) == 0
        finally:
            self._process.kill()
            self._process.stdout.close()


def with_cuda(folder: Path, llama_server: Path) -> Path:
    """The real llama-server, but it says that it uses CUDA, so that NVML is asked. It runs on the CPU.

    Like CUDA it shows no device where the environment hides them all.
    """
    path = folder / "cuda-llama-server"
    path.write_text(
        '#!/bin/sh\nif [ "$1" = --list-devices ]; then echo "Available devices:"\n'
        'case "${CUDA_VISIBLE_DEVICES-0}" in\n'
        '""|-1) ;;\n*) echo "  CUDA0: Stub-0 (8192 MiB, 8192 MiB free)" ;;\nesac\nexit\nfi\n'
        f'exec {shlex.quote(str(llama_server))} "$@"\n'
    )
    path.chmod(0o755)
    return path


def gpu(index: int, total_mb: int, used_mb: int, mig: int = -1) -> str:
    return f"gpu {index} GPU-{index} Stub-{index} {total_mb} {used_mb} {mig}"


def _serve(commands: Iterator[str]) -> None:
    from app.memory.probes import choice
    from app.memory.probes.interface import GpuError

    choice.START_TIMEOUT_S = float(os.environ["START_TIMEOUT_S"])
    probe = choice.find_gpus()
    for command in commands:
        answer: dict[str, Any] = {"reason": probe.reason, "kind": type(probe).__name__}
        if timeout_s := {"read": WAIT_S, "read at once": AT_ONCE_S}.get(command.strip()):
            try:
                answer["devices"] = [asdict(r) for r in choice.in_time(probe.read, timeout_s)]
            except (GpuError, TimeoutError) as error:
                answer["error"] = f"{type(error).__name__}: {error}"
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve(iter(sys.stdin))
