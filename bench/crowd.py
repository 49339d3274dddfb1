"""A crowd of people who ask, read and ask again, in front of models that do not all fit, in virtual time.

What somebody feels is the time from asking to the first word. Everybody asks one model only, and asks again
when the answer has been read, so whoever is kept waiting asks less: as in a real office, and unlike traffic
from a list.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from app.domain.priority import Priority
from app.scheduling.plan import Limits
from bench.world import Outcome, Spec, World

MODEL_MB = 6000
AGING_S = 30.0


@dataclass(frozen=True)
class Crowd:
    """`users` of each model. `places` is how many models fit on each of the `cards`."""

    users: Mapping[str, int]
    load_s: Sequence[float] = (3.0,)  # of the models in turn
    places: int = 2
    cards: int = 1
    slots: int = 2
    think_s: float = 4.0
    spread: str = "exponential"  # of the time to think: or even, or fixed
    prompt_s: float = 0.2
    answer_s: float = 0.6
    high: float = 0.0  # share of the users who ask with high priority
    pause_s: float = 0.0  # everybody of a model falls silent for that long, now and then: bursts

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
    """One that was answered, or lost (then `first_word_s` is infinite)."""

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

    def waits(self, of: Callable[[Question], bool] = lambda _: True) -> list[float]:
        return sorted(q.first_word_s for q in self.questions if of(q))

    def quantile(self, share: float, of: Callable[[Question], bool] = lambda _: True) -> float:
        waits = self.waits(of)
        return waits[min(int(len(waits) * share), len(waits) - 1)] if waits else float("nan")

    @property
    def mean(self) -> float:
        return sum(q.first_word_s for q in self.questions) / max(len(self.questions), 1)

    @property
    def answers_per_min(self) -> float:
        return 60 * len(self.questions) / self.length_s


class _User:
    def __init__(self, world: World, crowd: Crowd, alias: str, level: Priority, seed: str) -> None:
        self.world, self.crowd, self.alias, self.level = world, crowd, alias, level
        self.chance = random.Random(seed)
        self.seen: list[Question] = []
        world.at(self.chance.uniform(0, crowd.think_s), self.ask)

    def ask(self) -> None:
        crowd = self.crowd
        prompt_s = crowd.prompt_s * self.chance.lognormvariate(-0.125, 0.5)
        answer_s = crowd.answer_s * self.chance.lognormvariate(-0.125, 0.5)
        request = self.world.arrive(self.alias, self.level, prompt_s + answer_s)
        asked = self.world.now

        def answered() -> None:
            self.seen.append(Question(self.alias, self.level, asked, request.waited_s + prompt_s))
            self.world.after(self.think_s(), self.ask)

        request.then = answered

    def think_s(self) -> float:
        mean, chance = self.crowd.think_s, self.chance
        if self.crowd.spread == "fixed":
            return mean
        if self.crowd.spread == "even":
            return chance.uniform(0.5 * mean, 1.5 * mean)
        return chance.expovariate(1 / mean)


def play(crowd: Crowd, way: Callable[..., World], limits: Limits, seconds: float, seed: int) -> Evening:
    world = way(crowd.specs(), crowd.device_mb, limits, max_waiting=10**6)
    users = []
    chance = random.Random(f"{seed} levels")
    for alias, count in crowd.users.items():
        for number in range(count):
            level = Priority.HIGH if chance.random() < crowd.high else Priority.NORMAL
            users.append(_User(world, crowd, alias, level, f"{seed} {alias} {number}"))
    world.run(seconds)
    questions = sorted((q for u in users for q in u.seen), key=lambda q: q.asked)
    return Evening(seconds, sum(m.loads for m in world.models.values()), questions)
