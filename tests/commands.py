"""The commands of run.py, as a shell runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests import llama_build

ROOT = Path(__file__).resolve().parent.parent


PRIVATE = ("ROUTER_", "CONFIG_PATH", "LLAMA_")


def environment(**variables: str) -> dict[str, str]:
    outside = {k: v for k, v in os.environ.items() if not k.startswith(PRIVATE)}
    return outside | {"ROUTER_SYSTEM__LLAMA_SERVER_PATH": str(llama_build.of())} | variables


def run_py(*args: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """What the command prints, and its exit code."""
    return subprocess.run(
        [sys.executable, "run.py", *args],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        timeout=timeout_s,
        check=False,
    )
