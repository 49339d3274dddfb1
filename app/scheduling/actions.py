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
    """`max_swap_wait_s` is None where it follows from what a swap costs. `patience_swaps`: so many swaps long
    an idle model is kept for those who are expected, if it is one of those that are missed least.
    """

    max_models: int
    max_swap_wait_s: float | None
    aging_s: float
    foreign_wait_s: float = 0.0
    patience_swaps: float = 0.9


@dataclass(frozen=True)
class Load:
    """Start a process of it, on this much of these devices."""

    alias: str
    placement: Placement


@dataclass(frozen=True)
class Stop:
    """Let running requests finish, then stop its process. `target` is the model that gets the room."""

    alias: str
    reason: StopReason
    target: str | None = None


@dataclass(frozen=True)
class Resume:
    """Its process drains for nobody any more: serve again."""

    alias: str


@dataclass(frozen=True)
class GiveUp:
    """Nobody waits for it and there is no room: a crashed model stays off, one to be preloaded is not."""

    alias: str
    reason: str


@dataclass(frozen=True)
class Refuse:
    """No room even if all that may be stopped were stopped. `ever`: it may fit at another time.

    `by_others`: it would fit if other programs let go of their memory. `on_host`: it is the machine's own
    memory that is short. `layers_help`: the GPU has memory of its own, so that it matters how many layers go
    there. `is_blind`: no device has been read so far, not even the machine's own memory. Whoever arrived
    after `arrived_by` has not waited long enough yet.
    """

    alias: str
    by_count: bool
    need_mb: int
    available_mb: int
    ever: bool
    by_others: bool = False
    on_host: bool = False
    layers_help: bool = True
    is_blind: bool = False
    arrived_by: float = NEVER


@dataclass(frozen=True)
class Inspect:
    """Read its file, and what it would take: it may be loaded soon, and that is not known yet."""

    alias: str


Action = Load | Stop | Resume | GiveUp | Refuse | Inspect


@dataclass(frozen=True)
class Wait:
    """Why a model with waiting requests is not loaded yet: for the room of these models, which may be stopped
    at `at`. None of them: it waits for room that is being given back, or for the turn of others.

    `for_others`: for memory that other programs hold; if they have not let go by `at`, it is refused.
    """

    victims: tuple[str, ...] = ()
    at: float = NEVER
    for_others: bool = False

    @property
    def why(self) -> str:
        """In words, for people."""
        if self.for_others:
            return "other programs hold the memory"
        return f"for the room of {', '.join(self.victims)}" if self.victims else "for room or its turn"


@dataclass(frozen=True)
class Plan:
    """What to do now, and until `wake_at` or the next event.

    `waits` decides nothing: it is what people are told. `read_ahead` is the model whose files should be read
    into the page cache meanwhile: the next in turn of those for whom others have to go. `contended`: models
    that wait for room; if there are any, a slot that becomes free may not be granted before the next step.
    `held_up`: those, and models whose requests wait for a long load; nobody else asks for them meanwhile.
    """

    actions: tuple[Action, ...]
    wake_at: float = NEVER
    waits: Mapping[str, Wait] = field(default_factory=dict)
    read_ahead: str | None = None
    contended: frozenset[str] = frozenset()
    held_up: frozenset[str] = frozenset()

    @property
    def watches_others(self) -> bool:
        """The next step depends on what other programs do: the devices should be read again soon."""
        return any(wait.for_others for wait in self.waits.values())


@dataclass(frozen=True)
class Preview:
    """What a load asked for now would do. `wait_s` is how long busy victims may still hold it back."""

    fits: bool
    placement: Placement
    victims: tuple[str, ...] = ()
    wait_s: float = 0.0
    refusal: Refuse | None = None
