"""The README and the documents agree with the code."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.core import config
from app.domain import errors
from app.main import create_app
from tools import configuration_reference

ROOT = Path(__file__).resolve().parent.parent
README, API, CONFIGURATION, TROUBLESHOOTING = (
    (ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", "docs/api.md", "docs/configuration.md", "docs/troubleshooting.md")
)
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def error_codes(base: type[errors.RouterError] = errors.RouterError) -> Iterator[tuple[int, str]]:
    for kind in base.__subclasses__():
        yield kind.status, kind.code
        yield from error_codes(kind)


def routes() -> set[tuple[str, str]]:
    paths = create_app(config.Config()).openapi()["paths"]
    return {(method.upper(), path) for path, methods in paths.items() for method in methods}


def named_endpoints() -> set[tuple[str, str]]:
    found = re.findall(r"`(GET|POST|DELETE) (/[^`? ]*)[^`]*`", API)
    return {(method, path) for method, path in found}


def test_the_configuration_reference_is_up_to_date() -> None:
    made = configuration_reference.with_reference(CONFIGURATION)
    assert made == CONFIGURATION, "run: python -m tools.configuration_reference"


def test_every_error_code_has_advice() -> None:
    rows = re.findall(r"^\| ([\d, ]+) \| (`[a-z_`, ]+) \|", TROUBLESHOOTING, re.M)
    told = [(statuses, code) for statuses, codes in rows for code in re.findall(r"`([a-z_]+)`", codes)]
    raised = set(error_codes())
    assert {code for _, code in told} == {code for _, code in raised}
    for status, code in raised:
        assert any(str(status) in statuses for statuses, named in told if named == code), (status, code)


def test_every_endpoint_of_the_reference_exists_and_the_other_way_round() -> None:
    there, told = routes(), named_endpoints()
    written = {(method, re.sub(r"\{alias:path\}", "{alias}", path)) for method, path in there}
    tunnel = {route for route in written if route[1].startswith("/upstream/")}  # the reference says ANY
    assert told == written - tunnel


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_every_link_to_a_file_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", document.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_every_file_of_the_code_that_is_named_exists(document: Path) -> None:
    """By its path, or by the end of it."""
    folders = [ROOT / name for name in ("app", "bench", "docs", "monitoring", "packaging", "tests", "tools")]
    named = re.findall(r"`([\w./-]+\.(?:py|js|c|toml|yml))(?:::\w+)?`", document.read_text(encoding="utf-8"))
    missing = [name for name in named if not (ROOT / name).exists()]
    assert [name for name in missing if not any(any(folder.rglob(name)) for folder in folders)] == []


def test_the_versions_of_clients_are_those_that_are_tested() -> None:
    told = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8").partition("## What was tried")[2]
    told += (ROOT / "docs" / "ollama.md").read_text(encoding="utf-8").partition("## Tried with")[2]
    named = [(name, version) for name, version in _clients() if f"`{name}`" in told]
    assert {name for name, _ in named} >= {
        *("openai", "anthropic", "langchain-openai", "litellm", "llm", "ollama", "aider-chat"),
        *("openai-java", "langchain4j-open-ai", "async-openai", "genai", "rig-core"),
        *("@anthropic-ai/claude-code", "@openai/codex", "opencode-ai"),
    }
    assert len([name for name, _ in named if name.startswith("github.com/")]) >= 4
    assert [(name, version) for name, version in named if version not in told] == []


def _clients() -> Iterator[tuple[str, str]]:
    """The packages of all languages, each with its version."""
    clients = ROOT / "tests" / "clients"
    for folder in ("node", "agents"):
        node = json.loads((clients / folder / "package.json").read_text(encoding="utf-8"))
        yield from node["dependencies"].items()
    for files, package in (
        ("python/*.txt", r"^([\w.-]+)==(.+)$"),
        ("agents/requirements-aider.txt", r"^(aider-chat)==(.+)$"),
        ("go/go.mod", r"^\s+(\S+) v(\S+)$"),
        ("java/pom.xml", r"<artifactId>(.+)</artifactId>\s*<version>(.+)</version>"),
        ("rust/Cargo.toml", r'^([\w-]+) = .*"=([\d.]+)"'),
    ):
        for file in sorted(clients.glob(files)):
            yield from re.findall(package, file.read_text(encoding="utf-8"), re.M)


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 160


def test_every_make_target_of_the_readme_exists() -> None:
    shell = re.findall(r"^```sh\n(.*?)^```", README, re.M | re.S)
    for target in set(re.findall(r"`?make ([a-z-]+)`?", "\n".join(shell))):
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
