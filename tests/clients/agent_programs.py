"""Agents of the command line: how each is told the router's address, and asked one thing without a terminal.

`make test-agents` installs them, in the versions that stand in `agents/package.json` and in
`agents/requirements-aider.txt`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.clients.programs import HERE, INSTALLED

Environment = Mapping[str, str]


@dataclass(frozen=True)
class Agent:
    name: str
    program: Path
    command: Callable[[str, str], tuple[str, ...]]
    """What follows the program, for a model and a question."""
    configure: Callable[[Path, str, str, str], Environment]
    """Writes what it reads into its home, and gives its environment, for the router's address, a key, and a
    model."""
    runs_commands: bool = True
    repeats_failures: bool = False
    """It tries what it was told not to try again, for a minute and longer."""

    def find(self) -> str | None:
        return shutil.which(self.program)

    def environment(self, home: Path, url: str, key: str, model: str) -> dict[str, str]:
        """Nothing of this machine's but where programs are: what it does must not depend on who runs it."""
        own = {"HOME": str(home), "PATH": os.environ["PATH"]}
        return own | {**self.configure(home, url, key, model)}


# --- Claude Code


def _claude(_home: Path, url: str, key: str, model: str) -> Environment:
    models = dict.fromkeys(("ANTHROPIC_MODEL", "ANTHROPIC_DEFAULT_HAIKU_MODEL"), model)
    quiet = {"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1"}
    return {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_AUTH_TOKEN": key} | models | quiet


def _ask_claude(_model: str, question: str) -> tuple[str, ...]:
    told = ("--output-format", "stream-json", "--verbose")
    return "-p", *told, "--allowedTools=Bash", "--", question


# --- Codex

_CODEX = """
model_provider = "router"
[model_providers.router]
name = "router"
base_url = "{url}/v1"
env_key = "ROUTER_KEY"
wire_api = "responses"
"""


def _codex(home: Path, url: str, key: str, _model: str) -> Environment:
    (home / "config.toml").write_text(_CODEX.format(url=url))
    return {"CODEX_HOME": str(home), "ROUTER_KEY": key}


def _ask_codex(model: str, question: str) -> tuple[str, ...]:
    free = ("--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox")
    return "exec", "--json", "--ephemeral", *free, "-m", model, question


# --- opencode


def _opencode(home: Path, url: str, key: str, model: str) -> Environment:
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "options": {"baseURL": f"{url}/v1", "apiKey": key},
        "models": {model: {}},
    }
    told = {"provider": {"router": provider}, "share": "disabled", "autoupdate": False}
    (home / "opencode.json").write_text(json.dumps(told))
    return {"OPENCODE_CONFIG": str(home / "opencode.json"), "OPENCODE_DISABLE_MODELS_FETCH": "1"}


def _ask_opencode(model: str, question: str) -> tuple[str, ...]:
    return "run", "--format", "json", "-m", f"router/{model}", question


# --- aider


def _aider(_home: Path, url: str, key: str, _model: str) -> Environment:
    return {"OPENAI_API_BASE": f"{url}/v1", "OPENAI_API_KEY": key, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}


def _ask_aider(model: str, question: str) -> tuple[str, ...]:
    quiet = ("--no-git", "--no-analytics", "--no-check-update", "--no-show-model-warnings", "--no-pretty")
    return "--model", f"openai/{model}", *quiet, "--yes-always", "--message", question


_NODE = HERE / "agents" / "node_modules" / ".bin"

AGENTS = (
    Agent("claude-code", _NODE / "claude", _ask_claude, _claude),
    Agent("codex", _NODE / "codex", _ask_codex, _codex),
    Agent("opencode", _NODE / "opencode", _ask_opencode, _opencode),
    Agent("aider", INSTALLED / "aider" / "bin" / "aider", _ask_aider, _aider,
          runs_commands=False, repeats_failures=True),
)  # fmt: skip
