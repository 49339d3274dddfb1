"""Measures everything and writes `docs/benchmarks.md` with its plot: `python -m bench.report [ROUNDS]`."""

from __future__ import annotations

import asyncio
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from html import escape
from importlib.metadata import version
from pathlib import Path

from app.llama.binary import inspect_binary
from bench import control_path, lifecycle, overhead
from bench.overhead import Target
from tests import llama_build

CROWD = "\n## A crowd in the simulator\n"
DOCS = Path(__file__).parents[1] / "docs"
PLOT = Path("images/benchmarks.svg")
PACKAGES = ("uvicorn", "uvloop", "httptools", "fastapi")

INTRODUCTION = """# Benchmarks

`make bench` measures all of this and writes this page. What is in one table was measured in turns in a run:
llama-server alone, RouterModelCustom in front of it, and llama-server's own router mode, each over the same
tiny model with the same flags, so the model costs next to nothing and what is left is the way to it. CPU is
that of the routing process alone. Values are medians over the rounds, with the smallest and the largest;
*ratio* is RouterModelCustom's in relation to router mode's (below 1 is better, except for requests/s and
events/s). Metrics, priorities and the access log were on.

llama-server alone may show seconds in the rows of 16 clients: kept connections hold its HTTP threads, and
who has none waits for one to be dropped.

"""


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |\n"


def table(group: Sequence[Target]) -> str:
    heads = ["", *(target.name for target in group), *(["ratio"] if len(group) > 2 else [])]
    text = _row(heads) + _row("---" for _ in heads)
    for figure, values, ratio in overhead.rows(list(group)):
        shown = [f"**{ratio:.2f}**" if ratio is not None else ""] if len(group) > 2 else []
        text += _row([figure.strip(), *values, *shown])
    return text


def plot(group: Sequence[Target]) -> str:
    """One bar a figure: the router's cost in relation to router mode's, which is the line at 1."""
    bars = [
        (figure.strip(), ratio)
        for figure, _, ratio in overhead.rows(list(group))
        if ratio is not None and figure.startswith(("CPU", "median", "p99"))
    ]
    step, left, unit = 24, 330, 200
    height = step * len(bars) + 50
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 820 {height}" font-family="sans-serif" '
        'font-size="13"><rect width="100%" height="100%" fill="#fff"/>',
        '<text x="10" y="20" font-weight="bold">RouterModelCustom in relation to llama-server\'s router mode'
        " (shorter is better)</text>",
    ]
    for number, (name, ratio) in enumerate(bars):
        y, width = 34 + number * step, min(ratio, 2.2) * unit
        colour = "#2a7f62" if ratio <= 1 else "#b4632d"
        parts.append(f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect x="{left}" y="{y}" width="{width:.0f}" height="{step - 6}" fill="{colour}"/>')
        parts.append(f'<text x="{left + width + 6:.0f}" y="{y + 14}">{ratio:.2f}</text>')
    line = left + unit
    parts.append(f'<path d="M{line} 28V{height - 12}" stroke="#444" stroke-dasharray="4 3"/></svg>\n')
    return "\n".join(parts)


def machine() -> str:
    cpu = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")),
        platform.processor(),
    ) if sys.platform == "linux" else platform.processor()  # fmt: skip
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return (
        f"Machine: {os.cpu_count()} cores ({cpu}), {platform.system()} {platform.machine()}, no GPU. "
        f"Python {platform.python_version()}, {packages}; {inspect_binary(llama_build.of()).version}.\n\n"
    )


def main(rounds: int) -> None:
    real, stubbed = asyncio.run(overhead.measure(rounds))
    overhead.show((real, stubbed))
    others = [*lifecycle.rows(), *control_path.rows()]
    for name, value in others:
        print(f"{name:60}{value:>24}")
    text = INTRODUCTION + machine() + f"![the ratios]({PLOT})\n\n"
    text += f"## Beside llama-server's router mode, {rounds} rounds\n\n{table(real)}\n"
    text += f"## In front of a stub that answers at once\n\n{table(stubbed)}\n"
    text += "## Start, idle, swaps, long streams\n\n" + _row(["", ""]) + _row(["---", "---"])
    text += "".join(_row([name.strip(), value]) for name, value in others)
    text += (
        "\nWhat a scheduling step, a ticket and 200 watchers cost: `python -m bench.control_path`, "
        "`python -m bench.watching`. Makespans of mixed traffic beside router mode: "
        "`python -m bench.scheduling`.\n"
    )
    page = DOCS / "benchmarks.md"
    _, crowd, rest = page.read_text().partition(CROWD)  # made by bench.crowd and bench.real_crowd
    page.write_text(text + crowd + rest)
    (DOCS / PLOT).write_text(plot(real))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
