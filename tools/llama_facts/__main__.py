"""`python -m tools.llama_facts BINARY`: whether this llama-server still behaves as the router expects.

Prints a table of held and changed facts; the exit code is 1 where one has changed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from app.llama.binary import BinaryNotFound, inspect_binary
from tests.ggufs import make_tiny
from tools.llama_facts import command_line, failures, loading, serving, stopping
from tools.llama_facts.fact import Area, Fact, changed, examine
from tools.llama_facts.server import Subject

AREAS: dict[str, Area] = {
    area[0]: area
    for area in (
        ("command line", command_line.claims),
        ("loading", loading.claims),
        ("failures", failures.claims),
        ("serving", serving.claims),
        ("stopping", stopping.claims),
    )
}


def row(fact: Fact) -> str:
    line = f"{'held   ' if fact.held else 'CHANGED'}  {fact.area:<12}  {fact.claim}"
    return line if fact.held else f"{line}\n{'':23}now: {fact.found}"


def report(binary: Path, areas: list[str]) -> int:
    """Prints as it finds out; the exit code."""
    facts: list[Fact] = []
    with tempfile.TemporaryDirectory(prefix="llama-facts-") as name:
        folder = Path(name)
        long = make_tiny(folder / "long.gguf", context=131072)
        subject = Subject(inspect_binary(binary), folder, make_tiny(folder / "tiny.gguf"), long)
        print(f"{binary}: {subject.binary.version}")
        for fact in examine([AREAS[area] for area in areas], subject):
            print(row(fact), flush=True)
            facts.append(fact)
    lost = changed(facts)
    print(f"{len(facts) - len(lost)} held, {len(lost)} changed")
    return 1 if lost else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.llama_facts", description=__doc__)
    parser.add_argument("binary", type=Path, help="the llama-server in question")
    parser.add_argument("--only", choices=AREAS, action="append", help="ask this only; may be given again")
    options = parser.parse_args()
    try:
        return report(options.binary, options.only or list(AREAS))
    except BinaryNotFound as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
