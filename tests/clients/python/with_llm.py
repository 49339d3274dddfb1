"""The command `llm`, with models that its configuration names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from telling import (
    ASK,
    BASE,
    BROKEN,
    CHAT,
    CRASHING,
    ENDLESS,
    KEY,
    MOST_TOKENS,
    NARROW,
    NOBODY,
    OTHER,
    WRONG_KEY,
    step,
    until_it_fails,
)

FOLDER = Path(tempfile.mkdtemp(prefix="llm-"))
ENTRY = "- model_id: here-{name}\n  model_name: {name}\n  api_base: {base}/v1\n  api_key_name: router\n"
NAMES = (CHAT, OTHER, NOBODY, BROKEN, NARROW, CRASHING, ENDLESS)
COMMAND = [sys.executable, "-m", "llm"]
LIMITS = ["-o", "max_tokens", str(MOST_TOKENS), "-o", "temperature", "0"]


def configure() -> None:
    models = "".join(ENTRY.format(name=name, base=BASE) for name in NAMES)
    (FOLDER / "extra-openai-models.yaml").write_text(models)
    (FOLDER / "keys.json").write_text(json.dumps({"router": KEY}))
    os.environ["LLM_USER_PATH"] = str(FOLDER)


def chat(name: str, *more: str) -> str:
    done = subprocess.run(
        [*COMMAND, "-m", f"here-{name}", *LIMITS, *more, ASK], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    return done.stdout.strip()


def stream(name: str, *options: str) -> list[str]:
    process = subprocess.Popen(
        [*COMMAND, "-m", f"here-{name}", *options, ASK], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    read = iter(lambda: process.stdout.read1(64).decode(errors="replace"), "")
    pieces = [*(until_it_fails(read) if name == ENDLESS else read)]
    error = process.communicate()[1].decode()
    if process.returncode:
        raise RuntimeError(error.strip())
    return pieces


configure()
step("chat", lambda: chat(CHAT))
step("stream", lambda: stream(CHAT, *LIMITS))
step("swap", lambda: [chat(OTHER), chat(CHAT)])
step("unknown", lambda: chat(NOBODY))
step("wrong_key", lambda: chat(CHAT, "--key", WRONG_KEY))
step("broken", lambda: chat(BROKEN))
step("too_long", lambda: chat(NARROW))
step("crashing", lambda: chat(CRASHING))
step("failing", lambda: stream(ENDLESS))
