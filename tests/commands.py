"""The commands of run.py, as a shell runs them."""

from __future__ import annotations

import os
from pathlib import Path

from tests import llama_build

ROOT = Path(__file__).resolve().parent.parent


PRIVATE = ("ROUTER_", "CONFIG_PATH", "LLAMA_")


def environment(**variables: str) -> dict[str, str]:
    outside = {k: v for k, v in os.environ.items() if not k.startswith(PRIVATE)}
    return outside | {"ROUTER_SYSTEM__LLAMA_SERVER_PATH": str(llama_build.of())} | variables
