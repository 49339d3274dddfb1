"""Compiles the small C libraries that stand between a router under test and its machine."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.real_parts import COMPILER, need


def compile_library(source: Path, library: Path) -> Path:
    command = [need(COMPILER), "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl", "-lm"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return library
