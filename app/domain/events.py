"""What happened, for those who only watch: metrics, telemetry, the status stream, the access log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from app.domain.status import Priority, Status, StopReason

logger = logging.getLogger(__name__)


class Outcome(str, Enum):
    """How a request ended; the label of `router_requests_total`."""

    SUCCESS = "success"
    ERROR = "error"
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    TIMEOUT = "timeout"


@dataclass(frozen=True)
class StatusChanged:
    alias: str
    old: Status
    new: Status
    reason: str


class Touched(NamedTuple):
    """Something that is shown changed: queue depth, requests in flight, load progress."""

    alias: str


@dataclass(frozen=True)
class LoadFinished:
    alias: str
    result: str  # success, failed, abandoned
    seconds: float


@dataclass(frozen=True)
class Evicted:
    alias: str
    reason: StopReason


@dataclass(frozen=True)
class Restarted:
    alias: str


@dataclass(frozen=True)
class CacheMoved:
    """A model's conversations were saved before its stop, or restored after its load, or should have been."""

    alias: str
    saved: bool  # else restored
    result: str  # success, failed, timeout; of a restore also damaged
    tokens: int
    size: int
    seconds: float


@dataclass(frozen=True)
class Replayed:
    alias: str


class Usage(NamedTuple):
    """Tokens of one answer; `generation_tps` is llama-server's own figure, in tokens per second."""

    prompt: int = 0
    generated: int = 0
    cached: int = 0
    generation_tps: float | None = None


class RequestFinished(NamedTuple):
    """Times in seconds; `queue_wait_s` is arrival to grant, None where it was never granted."""

    request_id: str
    alias: str
    endpoint: str
    client: str
    priority: Priority
    outcome: Outcome
    status: int
    error: str | None
    duration_s: float
    queue_wait_s: float | None
    load_s: float
    ttft_s: float | None
    usage: Usage


class Settled(NamedTuple):
    """A batch of accounts is complete."""


Event = (
    Settled
    | StatusChanged
    | Touched
    | LoadFinished
    | Evicted
    | Restarted
    | CacheMoved
    | Replayed
    | RequestFinished
)
Subscriber = Callable[[Event], None]


BATCH_S = 0.25


class EventBus:
    """Calls every subscriber at once, in order. One that fails is logged and harms nobody else."""

    def __init__(self, later: Callable[[float, Callable[[], None]], object] | None = None) -> None:
        """`later` calls a function after so many seconds; without it nothing is put off."""
        self._later = later
        self._finished: list[Callable[[], RequestFinished]] = []
        self._touched: set[str] = set()
        self._is_due = False
        self._subscriptions: list[tuple[Subscriber, tuple[type[Event], ...]]] = []
        self._by_kind: dict[type[Event], tuple[Subscriber, ...]] = {}

    def subscribe(self, subscriber: Subscriber, *kinds: type[Event]) -> Callable[[], None]:
        """To these kinds of events, to all if none is named. Returns the function that ends it."""
        subscription = (subscriber, kinds)
        self._subscriptions.append(subscription)
        self._by_kind.clear()

        def end() -> None:
            self._subscriptions.remove(subscription)
            self._by_kind.clear()

        return end

    def publish(self, event: Event) -> None:
        subscribers = self._by_kind.get(type(event))
        if subscribers is None:
            subscribers = self._by_kind[type(event)] = self._interested_in(type(event))
        for subscriber in subscribers:
            try:
                subscriber(event)
            except Exception:
                logger.exception("a subscriber failed on %s", event)

    def finished(self, account: Callable[[], RequestFinished]) -> None:
        """A request's account, made and published within `BATCH_S`, or before, by `settle`.

        Accounts in a batch cost a third of what they cost one by one: a request ends every few milliseconds,
        and by then the processor's caches have forgotten all about logging, parsing and histograms.
        """
        self._finished.append(account)
        if not self._is_due:
            self._put_off()

    def touch(self, alias: str) -> None:
        """`Touched`, once for all the touches of a batch."""
        self._touched.add(alias)
        if not self._is_due:
            self._put_off()

    def _put_off(self) -> None:
        if self._later is None:
            self.settle()
        else:
            self._is_due = True
            self._later(BATCH_S, self._batch_is_due)

    def _batch_is_due(self) -> None:
        self._is_due = False
        self.settle()

    def settle(self) -> None:
        """Publish the accounts of all requests that have ended: whoever shows totals calls this first."""
        accounts, self._finished = self._finished, []
        for account in accounts:
            try:
                event = account()
            except Exception:
                logger.exception("a request's account failed")
            else:
                self.publish(event)
        self.publish(Settled())
        touched, self._touched = self._touched, set()
        for alias in touched:
            self.publish(Touched(alias))

    def _interested_in(self, kind: type[Event]) -> tuple[Subscriber, ...]:
        return tuple(subscriber for subscriber, kinds in self._subscriptions if not kinds or kind in kinds)
