"""People in front of models that do not all fit: `python -m bench.crowd [HOURS] [SEED]`.

What somebody feels is the time from asking to the first word. Everybody asks one model only, and asks again
when the answer has been read, so whoever is kept waiting asks less. Time is virtual; the router's policy,
lifecycle and queue are the real ones, the other routers are models of their rules.
"""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from app.domain.priority import Priority
from app.scheduling.actions import Limits
from bench.other_routers import CountedWorld, FifoWorld, FirstComeWorld, FixedSetsWorld, LruWorld
from bench.world import Code, Outcome, Request, Spec, World

MODEL_MB = 6000
AUTO = Limits(max_models=99, max_swap_wait_s=None, aging_s=30.0)


class Thinking(Enum):
    """How the time between an answer and the next question is spread around its mean."""

    EXPONENTIAL = "exponential"
    EVEN = "even"
    FIXED = "fixed"

    def seconds(self, mean: float, chance: random.Random) -> float:
        if self is Thinking.FIXED:
            return mean
        if self is Thinking.EVEN:
            return chance.uniform(0.5 * mean, 1.5 * mean)
        return chance.expovariate(1 / mean)


@dataclass(frozen=True)
class Crowd:
    """`users` of each model. `places`: how many models fit on each of the `cards`.

    `load_s` are the models' in turn. `high` is the share of users who ask with high priority. With `pauses_s`
    the users of a model all fall silent for about that long, again and again.
    """

    users: Mapping[str, int]
    load_s: Sequence[float] = (3.0,)
    places: int = 2
    cards: int = 1
    slots: int = 2
    think_s: float = 4.0
    thinking: Thinking = Thinking.EXPONENTIAL
    prompt_s: float = 0.2
    answer_s: float = 0.6
    high: float = 0.0
    pauses_s: float = 0.0

    @property
    def specs(self) -> list[Spec]:
        cards = tuple(str(card) for card in range(self.cards))
        return [
            Spec(alias, MODEL_MB, self.load_s[i % len(self.load_s)], slots=self.slots, devices=cards)
            for i, alias in enumerate(self.users)
        ]

    @property
    def device_mb(self) -> list[int]:
        return [MODEL_MB * self.places + 100] * self.cards


@dataclass(frozen=True)
class Question:
    """`first_word_s` is not a number for one that was lost."""

    alias: str
    level: Priority
    asked: float
    first_word_s: float


@dataclass
class Evening:
    """What a crowd has seen in front of one router."""

    length_s: float
    loads: int = 0
    questions: list[Question] = field(default_factory=list)

    @property
    def lost(self) -> int:
        return sum(math.isnan(q.first_word_s) for q in self.questions)

    def waits(self, of: Callable[[Question], bool] = lambda _: True) -> list[float]:
        return sorted(q.first_word_s for q in self.questions if of(q) and not math.isnan(q.first_word_s))

    def quantile(self, share: float, of: Callable[[Question], bool] = lambda _: True) -> float:
        waits = self.waits(of)
        return waits[min(int(len(waits) * share), len(waits) - 1)] if waits else math.nan

    @property
    def mean(self) -> float:
        waits = self.waits()
        return sum(waits) / len(waits) if waits else math.nan

    @property
    def answers_per_min(self) -> float:
        return 60 * len(self.waits()) / self.length_s


class _User:
    def __init__(self, world: World, crowd: Crowd, alias: str, level: Priority, seed: str) -> None:
        self._world, self._crowd, self._alias, self._level = world, crowd, alias, level
        self._chance, self._pauses = random.Random(seed), random.Random(seed.rpartition(" ")[0])
        self._talks_until = self._chance_to_talk()
        self.seen: list[Question] = []
        world.at(self._chance.uniform(0, crowd.think_s), self._ask)

    def _ask(self) -> None:
        prompt_s = self._crowd.prompt_s * self._chance.lognormvariate(-0.125, 0.5)
        answer_s = self._crowd.answer_s * self._chance.lognormvariate(-0.125, 0.5)
        request = self._world.arrive(self._alias, self._level, prompt_s + answer_s)
        request.then = lambda: self._answered(request, prompt_s)

    def _answered(self, request: Request, prompt_s: float) -> None:
        first_word_s = request.waited_s + prompt_s if request.outcome is Outcome.SERVED else math.nan
        self.seen.append(Question(self._alias, self._level, request.ticket.arrived, first_word_s))
        pause_s = self._crowd.thinking.seconds(self._crowd.think_s, self._chance)
        if self._crowd.pauses_s and self._world.now > self._talks_until:
            pause_s += self._crowd.pauses_s
            self._talks_until = self._world.now + pause_s + self._chance_to_talk()
        self._world.after(pause_s, self._ask)

    def _chance_to_talk(self) -> float:
        """The same for all users of a model."""
        return self._pauses.uniform(0.5, 1.5) * (self._crowd.pauses_s or math.inf)


@dataclass(frozen=True)
class Way:
    """A router's rule. `reverse`: the order of the models, where that matters, is the worst one."""

    name: str
    world: type[World]
    limits: Limits = AUTO
    reverse: bool = False


WAYS = [
    Way("this router", World),
    Way("... with `max_swap_wait_sec` 0", World, Limits(99, 0.0, 30.0)),
    Way("fixed sets, the popular first", FixedSetsWorld),
    Way("fixed sets, the popular last", FixedSetsWorld, reverse=True),
    Way("first come, any idle goes", FirstComeWorld),
    Way("at most 8 in a row", CountedWorld),
    Way("one queue", FifoWorld),
    Way("least recently used, at once", LruWorld),
]


def play(crowd: Crowd, way: Way, seconds: float, seed: int, code: Code | None = None) -> Evening:
    specs = crowd.specs[::-1] if way.reverse else crowd.specs
    world = way.world(specs, crowd.device_mb, way.limits, max_waiting=10**6, code=code)
    users, levels = [], random.Random(f"{seed} levels")
    for alias, count in crowd.users.items():
        for number in range(count):
            level = Priority.HIGH if levels.random() < crowd.high else Priority.NORMAL
            users.append(_User(world, crowd, alias, level, f"{seed} {alias} {number}"))
    world.run(seconds)
    questions = sorted((q for user in users for q in user.seen), key=lambda q: q.asked)
    return Evening(seconds, sum(m.loads for m in world.models.values()), questions)


# --- the table

_TWELVE = dict(zip("abcdefghijkl", (8, 6, 5, 4, 3, 3, 2, 2, 1, 1, 1, 1), strict=True))
_THREE = {"a": 6, "b": 4, "c": 2}

CROWDS = {
    "6, 4, 2 users; room for 2; load 1 s": Crowd(_THREE, (1.0,)),
    "the same, 3 s": Crowd(_THREE, (3.0,)),
    "the same, 10 s": Crowd(_THREE, (10.0,)),
    "4, 4, 4 users, 3 s": Crowd(dict.fromkeys("abc", 4), (3.0,)),
    "6, 4, 2 users, 0.3 s": Crowd(_THREE, (0.3,)),
    "6, 4, 2 users, 30 s, a minute to think": Crowd(_THREE, (30.0,), think_s=60.0),
    "6, 4, 2 users, room for 1, 3 s": Crowd(_THREE, (3.0,), places=1),
    "12 models, room for 4, 3 s": Crowd(_TWELVE, (3.0,), places=4),
    "12 models, room for 4, 10 s, half a minute to think": Crowd(_TWELVE, (10.0,), places=4, think_s=30.0),
    "8 models, 2 cards with room for 2, 1 to 30 s": Crowd(
        dict(zip("abcdefgh", (5, 4, 3, 3, 2, 2, 1, 1), strict=True)), (1, 3, 10, 30), places=2, cards=2
    ),
    "6, 4, 2 users in bursts, 3 s": Crowd(_THREE, (3.0,), pauses_s=60.0),
    "long prompts: 2 s, 4 slots": Crowd(_THREE, (3.0,), slots=4, prompt_s=2.0, answer_s=4.0),
}

HEADER = "| | p50 s | p90 | p99 | longest | mean | loads/h | answers/min | lost |\n" + "| --- " * 9 + "|"


def row(name: str, evening: Evening) -> str:
    waits = (evening.quantile(share) for share in (0.5, 0.9, 0.99, 1.0))
    figures = " | ".join(f"{value:.2f}" for value in (*waits, evening.mean))
    loads = 3600 * evening.loads / evening.length_s
    return f"| {name} | {figures} | {loads:.0f} | {evening.answers_per_min:.0f} | {evening.lost} |"


def trade(seconds: float, seed: int) -> None:
    """How long an idle model is kept, and what that gives and takes."""
    for swaps in (0.0, 0.5, 0.9, 1.5, 2.0, 3.0):
        way = Way(f"{swaps:g}", World, replace(AUTO, patience_swaps=swaps))
        print(row(way.name, play(Crowd(_THREE), way, seconds, seed)), flush=True)


def main() -> None:
    hours = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    seed, began = int(sys.argv[2]) if len(sys.argv) > 2 else 1, time.perf_counter()
    for name, crowd in CROWDS.items():
        print(f"\n**{name}**\n\n{HEADER}", flush=True)
        for way in WAYS:
            print(row(way.name, play(crowd, way, hours * 3600, seed)), flush=True)
    print(f"\n**kept for, in swaps: 6, 4, 2 users, 3 s**\n\n{HEADER}")
    trade(hours * 3600, seed)
    print(f"\n{hours:g} h each, seed {seed}; simulated in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
