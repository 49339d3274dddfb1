"""The command `llm` with its plugin for Ollama's API, which asks the router for the models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

from telling import ASK, BASE, CHAT, EMBED, ENDLESS, KEY, MOST_TOKENS, OTHER, step, until_it_fails

COMMAND = [sys.executable, "-m", "llm"]
LIMITS = ["-o", "num_predict", str(MOST_TOKENS), "-o", "temperature", "0"]


def run(*words: str) -> str:
    done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    return done.stdout.strip()


def chat(name: str) -> str:
    return run("-m", f"ollama/{name}", *LIMITS, ASK)


def names() -> list[str]:
    """Of models that chat and of those that embed."""
    words = (run("models") + run("embed-models")).replace(":latest", "").split()
    return [word.removeprefix("ollama/").strip(",()") for word in words if word.startswith("ollama/")]


def stream(name: str, *options: str) -> list[str]:
    process = subprocess.Popen(
        [*COMMAND, "-m", f"ollama/{name}", *options, ASK], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    read = iter(lambda: process.stdout.read1(64).decode(errors="replace"), "")
    pieces = [*(until_it_fails(read) if name == ENDLESS else read)]
    error = process.communicate()[1].decode()
    if process.returncode:
        raise RuntimeError(error.strip())
    return pieces


def embed() -> list[int]:
    return [len(json.loads(run("embed", "-m", f"ollama/{EMBED}", "-c", given))) for given in "ab"]


os.environ |= {
    "LLM_USER_PATH": tempfile.mkdtemp(prefix="llm-"),
    "OLLAMA_HOST": BASE,
    "OLLAMA_API_KEY": KEY,
}
step("list", names)
step("chat", lambda: chat(CHAT))
step("stream", lambda: stream(CHAT, *LIMITS))
step("swap", lambda: [chat(OTHER), chat(CHAT)])
step("embed", embed)
step("failing", lambda: stream(ENDLESS))
