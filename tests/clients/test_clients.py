"""Client libraries as their users run them, against a router with real llama-servers that make room for each
other. Each program of `programs.PROGRAMS` tells what it saw; here it is judged, the same way for all."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.clients.programs import PROGRAMS, ROOT, Program
from tests.listening_proxy import ListeningProxy
from tests.real_parts import Part, need
from tests.router_process import MakeRouter, RouterProcess
from tests.shared_library import compile_library
from tests.tiny_models import calling

pytestmark = pytest.mark.clients

LONGEST_S = 300
"""Of a program, on a machine that is busy with other things."""

KEY = "secret"
MARK = '{"step"'
"""How a program's lines begin."""

LONG = "the of and " * 400 + "{{ messages[0].content }}"
"""A chat template with which every prompt is too long."""

CRASHING = "CRASH-BY-ABORT"
"""The name of a model, which its requests hold: it ends llama-server."""

OF_ERRORS = {
    "nobody": {"unknown"},
    "broken": {"broken"},
    "narrow": {"too_long"},
    CRASHING: {"crashing"},
    "endless": {"failing", "failing_response", "breaking"},
}
"""By the model that is asked for: each step asks once, nobody repeats what no repeat can change."""

Told = Mapping[str, Any]


@pytest.fixture(scope="module")
def router(
    make_shared_router: MakeRouter,
    smollm2: Path,
    tiny_gguf: Path,
    tiny_long_gguf: Path,
    garbage_gguf: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> RouterProcess:
    fragile = compile_library(ROOT / "tests" / "fragile.c", tmp_path_factory.mktemp("fragile") / "fragile.so")
    # Not every client can say that it wants the likeliest words.
    talks = {"model_path": smollm2, "params": {"n_ctx": 2048}, "extra_args": ["--temp", "0"]}
    return make_shared_router(
        {
            "chat": talks,
            "other": talks,
            "caller": {"model_path": tiny_gguf, "extra_args": calling()},
            "embed": {"model_path": tiny_gguf, "params": {"embedding": True, "pooling": "mean"}},
            "endless": {
                "model_path": tiny_long_gguf,
                "params": {"n_ctx": 131072},
                "extra_args": ["--ignore-eos"],
            },
            "broken": {"model_path": garbage_gguf},
            "narrow": {"model_path": tiny_gguf, "params": {"n_ctx": 256, "chat_template": LONG}},
            CRASHING: {"model_path": tiny_gguf, "env": {"LD_PRELOAD": str(fragile)}},
        },
        api={"api_keys": [KEY]},
        key=KEY,
        system={"max_concurrent_models": 1, "restart_window_sec": 1},  # what crashes is started again at once
    )


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_a_client_sees_what_its_users_expect(router: RouterProcess, program: Program) -> None:
    proxy = ListeningProxy(router.port)
    told = {line["step"]: line for line in run(program, router, proxy.url)}
    proxy.wait_until_closed()
    proxy.close()
    assert told.keys() == program.steps
    wrong = {step: line for step, line in told.items() if not JUDGED[step](line)}
    assert not wrong
    asked = {model: proxy.asked_for[model] for model in OF_ERRORS}
    assert not program.tries or asked == {model: times(program, steps) for model, steps in OF_ERRORS.items()}


def times(program: Program, steps: set[str]) -> int:
    """That the router is asked in them."""
    return len(steps & program.steps) * (program.tries if steps == {"crashing"} else 1)


# --- running


def run(program: Program, router: RouterProcess, url: str) -> Iterator[Told]:
    command = [need(_part(program)), *program.command[1:], url, *program.options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_environment(), text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        said: list[str] = []
        reading = threading.Thread(target=lambda pipe: said.extend(pipe), args=(process.stderr,))
        reading.start()
        watchdog = threading.Timer(LONGEST_S, process.kill)
        watchdog.start()
        for line in process.stdout:
            if not line.startswith(MARK):  # a library's own
                continue
            told = json.loads(line)
            if "begun" in told:
                router.eject("endless")  # at once: what runs there fails
            else:
                yield told
        watchdog.cancel()
        reading.join()
    assert process.returncode == 0, "".join(said)[-4000:]


def _part(program: Program) -> Part:
    return Part(f"The client {program.name}", program.find, "make test-clients", "what its users see is")


def _environment() -> dict[str, str]:
    """Without proxies; nothing is asked but the router, and nothing is sent home."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return kept | {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONUNBUFFERED": "1"}


# --- judging


def _has_text(line: Told) -> bool:
    return isinstance(line.get("saw"), str) and bool(line["saw"].strip())


def _has_texts(line: Told) -> bool:
    saw = line.get("saw")
    return isinstance(saw, list) and len(saw) == 2 and all(isinstance(text, str) and text for text in saw)


def _came_in_pieces(line: Told) -> bool:
    saw = line.get("saw")
    return isinstance(saw, list) and len(saw) > 1 and bool("".join(saw).strip())


def _lists_models(line: Told) -> bool:
    return {"chat", "other", "embed", "broken"} <= set(line.get("saw", ()))


def _called(line: Told) -> bool:
    return line.get("saw") in (["weather", {"city": "Paris"}], ["weather", {"city": "Rome"}])


def _is_a_place(saw: object) -> bool:
    return saw in ({"city": "Paris"}, {"city": "Rome"})


def _was_told(*words: str) -> Callable[[Told], bool]:
    """The error that its user sees has what the router said."""
    return lambda line: all(word in line.get("error", "") for word in words)


JUDGED: Mapping[str, Callable[[Told], bool]] = {
    "list": _lists_models,
    "chat": _has_text,
    "stream": _came_in_pieces,
    "responses": _has_texts,
    "two_turns": _has_texts,
    "parse": lambda line: _is_a_place(line.get("saw")),
    "objects": lambda line: [_is_a_place(saw) for saw in line.get("saw", ())] == [True, True],
    "count": lambda line: line.get("saw", 0) > 5,
    "tools": _called,
    "swap": _has_texts,
    "embed": lambda line: line.get("saw") == [64, 64],
    "unknown": _was_told("nobody", "embed"),
    "wrong_key": _was_told("API key"),
    "broken": _was_told("broken", "GGUF"),
    "too_long": _was_told("context"),
    "crashing": _was_told("crash"),
    "failing": _was_told("endless"),
    "failing_response": _was_told("endless"),
    "breaking": lambda line: bool(line.get("error")),  # as failing, for a library that overlooks why
    "show": lambda line: "completion" in line.get("saw", ()),
    "ps": lambda line: line.get("saw") == ["chat:latest"],
    "keep_alive": lambda line: line.get("saw") == ["load", "unload"],
}
