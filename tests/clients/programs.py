"""The client programs: what each one needs to be run, and what its library cannot do.

A program gets the router's address, goes through its steps, and prints what it saw of each as a line of JSON.
`make test-clients` installs what they need, in the versions that stand beside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
INSTALLED = ROOT / ".venv-clients"

STEPS = ("list", "chat", "stream", "tools", "swap", "embed", "unknown", "wrong_key", "broken", "failing")
"""Of every client, but for what it lacks."""


@dataclass(frozen=True)
class Program:
    name: str
    command: tuple[str | Path, ...]
    lacks: frozenset[str] = frozenset()
    """Steps that its library has no words for."""
    more: frozenset[str] = frozenset()
    """Steps that only it has."""

    @property
    def steps(self) -> set[str]:
        return {*STEPS, *self.more} - self.lacks


def _python(name: str, lacks: str = "", more: str = "", folder: str = "python") -> Program:
    script = HERE / "python" / f"with_{name}.py"
    command = (INSTALLED / folder / "bin" / "python", script)
    label = name if folder == "python" else f"{name}-{folder}"
    return Program(label, command, frozenset(lacks.split()), frozenset(more.split()))


PROGRAMS = (
    _python("openai", more="responses"),
    _python("anthropic", lacks="embed", more="count"),
    _python("langchain", lacks="list"),
    _python("litellm", lacks="list"),
    _python("openai_agents", lacks="list embed"),
    _python("pydantic_ai", lacks="list embed"),
    _python("llm", lacks="list embed tools"),
    _python("llama_index", lacks="list", folder="llama-index"),
    _python("openai", more="responses", folder="llama-index"),
)
