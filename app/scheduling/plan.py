"""What a scheduling decision is: the limits that it keeps to, and what it can say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from app.domain.status import StopReason
from app.domain.views import Placement

NEVER = math.inf


@dataclass(frozen=True)
class Limits:
    max_models: int
    max_swap_wait_s: float
    aging_s: float


@dataclass(frozen=True)
class Load:
    """Start it, on this much of these devices."""

    alias: str
    placement: Placement


@dataclass(frozen=True)
class Stop:
    """Let running requests finish, then stop the process. `target` is the model that gets the room."""

    alias: str
    reason: StopReason
    target: str | None = None


@dataclass(frozen=True)
class Keep:
    """It drains for nobody any more: serve again."""

    alias: str


@dataclass(frozen=True)
class Forget:
    """Nobody waits for it and there is no room: a crashed model stays off, one to be preloaded is not."""

    alias: str
    reason: str


@dataclass(frozen=True)
class Refuse:
    """No room even if all that may be stopped were stopped. `ever`: it may fit at another time."""

    alias: str
    by_count: bool
    need_mb: int
    available_mb: int
    ever: bool


Action = Load | Stop | Keep | Forget | Refuse


@dataclass(frozen=True)
class Wait:
    """Why a model with waiting requests is not loaded yet: for the room of these models, which may be stopped
    at `at`. None of them: it waits for room that is being given back, or for the turn of others.
    """

    victims: tuple[str, ...] = ()
    at: float = NEVER


@dataclass(frozen=True)
class Plan:
    """`waits` decides nothing: it is what people are told."""

    actions: tuple[Action, ...]
    wake_at: float = NEVER
    waits: Mapping[str, Wait] = field(default_factory=dict)


@dataclass(frozen=True)
class Preview:
    """What a load asked for now would do. `wait_s` is how long busy victims may still hold it back."""

    fits: bool
    placement: Placement
    victims: tuple[str, ...] = ()
    wait_s: float = 0.0
    refusal: Refuse | None = None
