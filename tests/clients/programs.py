"""The client programs: what each one needs to be run, and what its library cannot do.

A program gets the router's address, goes through its steps, and prints what it saw of each as a line of JSON.
`make test-clients` installs what they need, in the versions that stand beside them.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
INSTALLED = ROOT / ".venv-clients"
NODE = "node"

STEPS = (
    "list", "chat", "stream", "tools", "swap", "embed",
    "unknown", "wrong_key", "broken", "too_long", "crashing", "failing",
)  # fmt: skip
"""Of every client, but for what it lacks."""

RESPONSES = "responses parse count failing_response"
"""Of clients that have all of OpenAI's Responses API."""


@dataclass(frozen=True)
class Program:
    name: str
    command: tuple[str | Path, ...]
    lacks: frozenset[str] = frozenset()
    """Steps that its library has no words for."""
    more: frozenset[str] = frozenset()
    """Steps that only it has."""
    options: tuple[str, ...] = ()
    """After the router's address."""
    installed: Path | None = None
    """What has to be there beside the command."""
    tries: int = 1
    """How often its library asks where the answer is a 5xx, although it is told not to. 0: not known, it asks
    about all models beside."""

    def find(self) -> str | None:
        """The program that runs it; None where something is not installed."""
        runs = shutil.which(self.command[0])
        return runs if self.installed is None or self.installed.exists() else None

    @property
    def steps(self) -> set[str]:
        return {*STEPS, *self.more} - self.lacks


def _python(name: str, lacks: str = "", more: str = "", folder: str = "python", tries: int = 1) -> Program:
    script = HERE / "python" / f"with_{name}.py"
    command = (INSTALLED / folder / "bin" / "python", script)
    label = name if folder == "python" else f"{name}-{folder}"
    return Program(label, command, frozenset(lacks.split()), frozenset(more.split()), tries=tries)


def _compiled(program: str, *command: str | Path, lacks: str = "", more: str = "", tries: int = 1) -> Program:
    """One program for all libraries of a language. It is told which one to use."""
    language, _, library = program.partition(" ")
    steps = frozenset(lacks.split()), frozenset(more.split())
    label, built = f"{language}-{library}", INSTALLED / language
    return Program(label, command, *steps, options=(library,), installed=built, tries=tries)


def _go(library: str, **steps: Any) -> Program:
    return _compiled(f"go {library}", INSTALLED / "go" / "clients", **steps)


def _java(library: str, **steps: Any) -> Program:
    classes = f"{INSTALLED / 'java' / 'classes'}{os.pathsep}{INSTALLED / 'java' / 'lib' / '*'}"
    return _compiled(f"java {library}", "java", "-cp", classes, "Main", **steps)


def _rust(library: str, **steps: Any) -> Program:
    return _compiled(f"rust {library}", INSTALLED / "rust" / "debug" / "clients", **steps)


def _node(name: str, *options: str, lacks: str = "", more: str = "", tries: int = 1) -> Program:
    script = HERE / "node" / f"with_{name}.js"
    label = "-".join(["node", name, *options])
    steps = frozenset(lacks.split()), frozenset(more.split())
    modules = HERE / "node" / "node_modules"
    return Program(label, (NODE, script), *steps, options=options, installed=modules, tries=tries)


OF_OLLAMA = "show ps keep_alive"
"""Steps of its own libraries. They cannot demand a call."""

PROGRAMS = (
    _python("openai", more=RESPONSES),
    _python("anthropic", lacks="embed", more="parse count"),
    _python("langchain", lacks="list"),
    _python("litellm", lacks="list"),
    _python("openai_agents", lacks="list embed"),
    _python("pydantic_ai", lacks="list embed"),
    _python("llm", lacks="list embed tools"),
    _python("llama_index", lacks="list", folder="llama-index", tries=3),
    _python("openai", more=RESPONSES, folder="llama-index"),
    _python("ollama", lacks="tools", more=OF_OLLAMA, folder="ollama"),
    _python("langchain_ollama", lacks="list tools", folder="ollama"),
    _python("llama_index_ollama", lacks="list tools embed", folder="ollama"),
    _python("llm_ollama", lacks="tools unknown wrong_key broken too_long crashing", folder="ollama", tries=0),
    _node("openai", more=RESPONSES),
    _node("anthropic", lacks="embed", more="count"),
    _node("ai_sdk", "openai-compatible", lacks="list", more="two_turns objects", tries=3),
    _node("ai_sdk", "openai", lacks="list", more="two_turns objects", tries=3),
    _node("ai_sdk", "anthropic", lacks="list embed", more="two_turns objects", tries=3),
    _node("langchain", lacks="list"),
    _node("ollama", lacks="tools", more=OF_OLLAMA),
    _go("openai-go", more=RESPONSES),
    _go("go-openai"),
    _go("anthropic-sdk-go", lacks="embed", more="count"),
    _go("langchaingo", lacks="list failing", more="breaking"),
    _go("ollama", lacks="tools wrong_key", more=OF_OLLAMA),
    _java("openai-java", more=RESPONSES),
    _java("langchain4j", lacks="failing", more="breaking", tries=3),
    _rust("async-openai", more="responses failing_response", tries=4),
    _rust("genai", lacks="list"),
    _rust("genai-responses", lacks="list embed"),
    _rust("rig"),
    _rust("rig-responses"),
)
