"""Agents of the command line as their users run them, against a router with real llama-servers that make room
for each other. What they are answered is known (`agent_model`), however long their own prompts are."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.agent_model import ANSWER, ASK_TO_RUN, RESULT, make_agent_model
from tests.clients.agent_programs import AGENTS, Agent
from tests.real_parts import Part, need
from tests.router_process import MakeRouter, RouterProcess

pytestmark = pytest.mark.clients

LONGEST_S = 300
"""Of one question, on a machine that is busy with other things."""

KEY = "secret"
QUESTION = "What is the capital of France?"

Ask = Callable[..., str]


@pytest.fixture(scope="module")
def router(
    make_shared_router: MakeRouter,
    smollm2: Path,
    garbage_gguf: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> RouterProcess:
    path = make_agent_model(tmp_path_factory.mktemp("agents") / "agent.gguf", words_of=smollm2)
    model = {"model_path": path, "params": {"n_ctx": 65536}}
    return make_shared_router(
        {"agent": model, "other": model, "broken": {"model_path": garbage_gguf}},
        api={"api_keys": [KEY]},
        key=KEY,
        system={"max_concurrent_models": 1},
    )


@pytest.fixture(params=AGENTS, ids=lambda agent: agent.name)
def agent(request: pytest.FixtureRequest) -> Agent:
    found: Agent = request.param
    return found


@pytest.fixture
def ask(agent: Agent, router: RouterProcess, tmp_path: Path) -> Ask:
    """All that its user sees."""

    def ask(question: str, model: str, key: str = KEY) -> str:
        home, work = tmp_path / "home", tmp_path / "work"
        for folder in (home, work):
            folder.mkdir(exist_ok=True)
        program = need(
            Part(f"The agent {agent.name}", agent.find, "make test-agents", "what its users see is")
        )
        done = subprocess.run(
            [program, *agent.command(model, question)],
            cwd=work,
            env=agent.environment(home, router.url, key, model),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LONGEST_S,
            check=False,
        )
        return " ".join(done.stdout.split())  # some break lines at the width of a terminal

    return ask


def test_an_agent_gets_its_answer_from_one_model_and_the_other(ask: Ask, router: RouterProcess) -> None:
    for model in ("agent", "other"):
        before = router.metric("router_requests_total", model=model, status="success")
        assert "".join(ANSWER) in ask(QUESTION, model)
        # Codex hangs up at the last event, some milliseconds before the end.
        assert router.metric("router_requests_total", model=model, status="success") > before
    assert router.state("agent") == "off"


def test_an_agent_runs_what_its_model_calls_for(agent: Agent, ask: Ask) -> None:
    if agent.runs_commands:
        seen = ask(f"Please {ASK_TO_RUN} that you know.", "agent")
        assert RESULT in seen
        assert "".join(ANSWER) in seen[seen.index(RESULT) :]


def test_an_agents_user_is_told_what_is_wrong(agent: Agent, ask: Ask) -> None:
    unknown = ask(QUESTION, "nobody")
    assert "nobody" in unknown
    assert "other" in unknown or "--model" in unknown  # Claude Code has words of its own
    assert "API key" in ask(QUESTION, "agent", key="wrong")
    if not agent.repeats_failures:
        assert "GGUF" in ask(QUESTION, "broken")
