"""`run.py demo` answers the README's first question."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.patience import exit_code
from tests.ports import free_port
from tests.router_process import ROOT, until_now

README = (ROOT / "README.md").read_text(encoding="utf-8")


def first_question() -> Any:
    command = next(
        block for block in re.findall(r"^```sh\n(.*?)^```", README, re.M | re.S) if "curl" in block
    )
    words = shlex.split(command.replace("\\\n", " "))
    return json.loads(words[words.index("-d") + 1])


@pytest.fixture
def demo(llama_server: Path, smollm2: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    port = free_port()
    outside = {k: v for k, v in os.environ.items() if not k.startswith(("ROUTER_", "CONFIG_PATH", "LLAMA_"))}
    settings = {
        "ROUTER_API__PORT": str(port),
        "ROUTER_SYSTEM__LLAMA_SERVER_PATH": str(llama_server),
        "ROUTER_SYSTEM__FIRST_PORT": str(free_port()),
        "ROUTER_SYSTEM__LOG_DIR": str(tmp_path / "logs"),
        "ROUTER_SYSTEM__CPU_THREADS": "1",
    }
    with (tmp_path / "output").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "run.py", "demo"],
            cwd=ROOT,
            env=outside | settings,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            exit_code(process)


def test_the_demo_says_that_its_llama_server_computes_and_answers(
    demo: tuple[subprocess.Popen[bytes], str], tmp_path: Path
) -> None:
    process, url = demo

    def answers() -> bool:
        assert process.poll() is None, (tmp_path / "output").read_text()
        try:
            return httpx.get(f"{url}/health", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    until_now(answers, 90)
    answer = httpx.post(f"{url}/v1/chat/completions", json=first_question(), timeout=90, trust_env=False)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"].strip()
    first = (tmp_path / "output").read_text().splitlines()[0]
    assert "computes on this machine" in first
