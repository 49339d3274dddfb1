"""Compiles the small C libraries that stand between a router under test and its machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def compile_library(source: Path, library: Path) -> Path:
    """Where that cannot be done the test is skipped; under CI it fails."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform != "linux":
        missing = f"{source.name} needs Linux and a C compiler: apt-get install gcc libc6-dev"
        if os.environ.get("CI") == "true":
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing)
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl", "-lm"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return library
