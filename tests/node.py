"""Node, for the page's scripts: their unit tests run in it, and so does the check of their types."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.real_parts import NODE, TYPESCRIPT, need

ROOT = Path(__file__).resolve().parents[1]
PAGE_TESTS = sorted((ROOT / "tests" / "page").glob("*.test.js"))


def run_node(*arguments: str | Path) -> None:
    """Fails with what it printed."""
    done = subprocess.run(
        [need(NODE), *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.fail(done.stdout + done.stderr, pytrace=False)


def check_types(*arguments: str | Path) -> None:
    """tsc, as `make lint` installs it."""
    run_node(need(TYPESCRIPT), *arguments)
