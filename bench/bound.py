"""What a scheduler that knows the future could have done: `python -m bench.bound [SEEDS]`.

An evening of the crowd is played, and then its questions are scheduled once more, at the moments at which
they were asked, by dynamic programming over all sequences of swaps that begin when somebody waits. That
scheduler knows every question before it is asked, may stop a model in the middle of an answer, and answers
any number at once: nobody who loads what is asked for can do better, but for the grid of a quarter second.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from bench.crowd import CROWDS, WAYS, Crowd, Evening, play

STEP_S = 0.25
STOP_S = 0.3  # as in the simulator: from the decision until the memory is back
LENGTH_S = 300.0


@dataclass(frozen=True)
class _Asked:
    """A model's questions on the grid: how many until each step, their times in all, the first one after."""

    count: Sequence[int]
    total_s: Sequence[float]
    first_after: Sequence[float]

    @classmethod
    def of(cls, times: Sequence[float], steps: int) -> _Asked:
        cells: list[list[float]] = [[] for _ in range(steps + 1)]
        for when in times:
            cells[min(int(when / STEP_S), steps)].append(when)
        first, after = math.inf, []
        for cell in reversed(cells):
            first = min([*cell, first])
            after.append(first)
        return cls(
            [0, *accumulate(len(cell) for cell in cells)],
            [0.0, *accumulate(sum(cell) for cell in cells)],
            after[::-1],
        )

    def waited_s(self, gone: int, back: int, longest_s: float) -> float:
        """In all, if it is away between these two steps; infinite if somebody waits too long."""
        end_s = back * STEP_S
        if end_s - self.first_after[gone] > longest_s:
            return math.inf
        return (self.count[back] - self.count[gone]) * end_s - (self.total_s[back] - self.total_s[gone])


def least_wait_s(evening: Evening, aliases: Sequence[str], swap_s: float, longest_s: float) -> float:
    """In all, with room for all models but one, if nobody may wait longer than that."""
    steps = math.ceil(evening.length_s / STEP_S)
    swap = math.ceil(swap_s / STEP_S)
    asked = [_Asked.of([q.asked for q in evening.questions if q.alias == a], steps) for a in aliases]
    rest = [
        [0.0] * len(asked) for _ in range(steps + 1)
    ]  # by step and who goes then: the waits from there on
    for gone in range(steps, -1, -1):
        for model, questions in enumerate(asked):
            best = questions.waited_s(gone, steps, longest_s)
            first = min(questions.first_after[gone] / STEP_S, steps)
            for fetched in range(max(gone + swap, math.ceil(first)), steps + 1):
                waited_s = questions.waited_s(gone, min(fetched + swap, steps), longest_s)
                if waited_s >= best:
                    break  # the longer it is away, the more
                goes = min(rest[fetched][other] for other in range(len(asked)) if other != model)
                best = min(best, waited_s + goes)
            rest[gone][model] = best
    return min(rest[0])


def least_longest_s(evening: Evening, aliases: Sequence[str], swap_s: float) -> float:
    """The longest wait of that order of swaps whose longest is the shortest; to a step of the grid."""
    low, high = 0, math.ceil(evening.quantile(1.0) / STEP_S)  # in steps; the evening itself was possible
    while high - low > 1:
        middle = (low + high) // 2
        possible = least_wait_s(evening, aliases, swap_s, middle * STEP_S) < math.inf
        low, high = (low, middle) if possible else (middle, high)
    return high * STEP_S


def row(name: str, crowd: Crowd, seeds: int) -> str:
    """The mean first word of each way's evenings beside the least that their questions could have waited.

    Last come this router's longest wait, and the least that the longest could have been.
    """
    ours, fixed = ([play(crowd, way, LENGTH_S, seed) for seed in range(1, seeds + 1)] for way in WAYS[:3:2])
    means = [
        sum(e.mean for e in ours),
        sum(_least_mean(e, crowd, 1.0) for e in ours),
        sum(_least_mean(e, crowd, math.inf) for e in ours),
        sum(e.mean for e in fixed),
        sum(_least_mean(e, crowd, 1.0) for e in fixed),
        sum(e.quantile(1.0) for e in ours),
        sum(least_longest_s(e, list(crowd.users), _swap_s(crowd)) for e in ours),
    ]
    return f"| {name} | " + " | ".join(f"{mean / seeds:.2f}" for mean in means) + " |"


def _least_mean(evening: Evening, crowd: Crowd, slack: float) -> float:
    longest_s = evening.quantile(1.0) * slack
    in_all = least_wait_s(evening, list(crowd.users), _swap_s(crowd), longest_s)
    return in_all / len(evening.questions) + crowd.prompt_s


def _swap_s(crowd: Crowd) -> float:
    return crowd.load_s[0] + STOP_S


def main() -> None:
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    print(
        "| | this router, mean s | the future known, longest wait the same | any wait | fixed sets "
        "| the future known | this router, longest s | the future known |\n" + "| --- " * 8 + "|"
    )
    base = CROWDS["the same, 3 s"]
    for load_s in (1.0, 3.0, 10.0):
        for users in ((6, 4, 2), (4, 4, 4)):
            crowd = replace(base, users=dict(zip("abc", users, strict=True)), load_s=(load_s,))
            print(row(f"{users[0]}, {users[1]}, {users[2]} users, {load_s:g} s", crowd, seeds), flush=True)


if __name__ == "__main__":
    main()
