"""Node, for the page's scripts: their unit tests run in it, and so does the check of their types."""

from __future__ import annotations

import os
import shutil
import subprocess
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE_TESTS = sorted((ROOT / "tests" / "page").glob("*.test.js"))


def run_node(*arguments: str | Path) -> None:
    """Fails with what it printed. Without Node the test is skipped aloud, on CI it fails."""
    done = subprocess.run(
        [_found("node"), *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.fail(done.stdout + done.stderr, pytrace=False)


def check_types(*arguments: str | Path) -> None:
    """tsc, as `make lint` installs it."""
    tsc = ROOT / "node_modules" / "typescript" / "bin" / "tsc"
    if not tsc.exists():
        _missing("TypeScript is not installed (npm ci)")
    run_node(tsc, *arguments)


def _found(name: str) -> str:
    return shutil.which(name) or _missing(f"{name} is not installed (Debian: apt-get install nodejs npm)")


def _missing(text: str) -> str:
    if os.environ.get("CI") == "true":
        pytest.fail(text, pytrace=False)
    warnings.warn(f"{text}: the page's scripts were NOT checked", stacklevel=3)
    pytest.skip(text)
