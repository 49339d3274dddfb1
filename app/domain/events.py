"""What happened, for those who only watch: metrics, telemetry, the status stream, the access log."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from app.domain.priority import Priority
from app.domain.status import Status, StopReason


class Outcome(str, Enum):
    """How a request ended; the label of `router_requests_total`."""

    SUCCESS = "success"
    ERROR = "error"
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    TIMEOUT = "timeout"


class LoadResult(str, Enum):
    """How a load ended; a label of `router_model_loads_total`."""

    SUCCESS = "success"
    FAILED = "failed"
    ABANDONED = "abandoned"  # stopped before it was over


class MoveDirection(str, Enum):
    """Of kept conversations: out of a process at its stop, or back into one after its load."""

    SAVED = "saved"
    RESTORED = "restored"


class MoveResult(str, Enum):
    """How saving or restoring conversations went; a label of their counters."""

    SUCCESS = "success"
    FAILED = "failed"
    TIMEOUT = "timeout"
    DAMAGED = "damaged"  # only what was kept can be


@dataclass(frozen=True)
class StatusChanged:
    alias: str
    old: Status
    new: Status
    reason: str


class ModelChanged(NamedTuple):
    """Something that is shown changed: queue depth, requests in flight, load progress."""

    alias: str


@dataclass(frozen=True)
class LoadFinished:
    alias: str
    result: LoadResult
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
    direction: MoveDirection
    result: MoveResult
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
    """Times in seconds; `queue_wait_s` is arrival to grant, None where it was never granted. `quiet_s`
    is from what llama-server gave it last, or its grant, to its end; 0 where nothing was expected."""

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
    quiet_s: float = 0.0


class ReadingTaken(NamedTuple):
    """The devices were read. `is_news`: memory was waited for, or a device can be read again or no more."""

    is_news: bool


class BatchPublished(NamedTuple):
    """A batch of records is complete."""


Event = (
    BatchPublished
    | ReadingTaken
    | StatusChanged
    | ModelChanged
    | LoadFinished
    | Evicted
    | Restarted
    | CacheMoved
    | Replayed
    | RequestFinished
)
