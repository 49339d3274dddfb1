"""The commands and the program of README and docs/api.md, run as they stand against the demo's models."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.router_process import ROOT, MakeRouter, RouterProcess

ADDRESS = "http://127.0.0.1:8000"
DOCUMENTS = ("README.md", "docs/api.md", "docs/sizing.md")


def blocks(name: str, language: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


COMMANDS = [block for name in DOCUMENTS for block in blocks(name, "sh") if block.startswith("curl ")]


@pytest.fixture(scope="module")
def demo(make_shared_router: MakeRouter, smollm2: Path) -> RouterProcess:
    short = ["--predict", "64"]  # a sampled answer has no end of its own
    params = {"n_ctx": 2048}
    return make_shared_router(
        {
            "smollm2": {"model_path": smollm2, "params": params, "extra_args": short},
            "smollm2-embed": {"model_path": smollm2, "params": {**params, "embedding": True}},
        }
    )


def here(text: str, router: RouterProcess) -> str:
    assert ADDRESS in text
    return text.replace(ADDRESS, router.url)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: re.sub(r"\W+", "-", c)[:60])
def test_a_command_does_what_it_says(command: str, demo: RouterProcess) -> None:
    asked = here(command, demo).replace("curl ", "curl -sS --fail-with-body ", 1)
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=False, timeout=90)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout
    if "capital of France" in command:
        assert "The capital of France is Paris" in done.stdout


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 6


def test_the_program_does_what_it_says(demo: RouterProcess) -> None:
    (program,) = blocks("README.md", "python")
    command = [sys.executable, "-c", here(program, demo)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=90)
    assert done.returncode == 0, done.stderr
    assert "['smollm2', 'smollm2-embed']" in done.stdout
    assert "model_not_found Error code: 404 - model 'smollm3' not found" in done.stdout
