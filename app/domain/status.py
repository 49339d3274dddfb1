"""What a model can be, which states follow each other, and why a loaded one goes."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class ModelKind(str, Enum):
    CHAT = "chat"
    EMBEDDING = "embedding"
    RERANK = "rerank"


class Health(str, Enum):
    """What the health monitor thinks of a loaded model's process."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"


class Status(str, Enum):
    OFF = "off"  # no process
    STARTING = "starting"  # spawned, its port does not answer yet
    LOADING = "loading"  # its port answers, the model is being read
    READY = "ready"  # serves
    DRAINING = "draining"  # finishes what runs, takes nothing new
    STOPPING = "stopping"  # told to exit
    CRASHED = "crashed"  # died unasked, may be started again
    FAILED = "failed"  # will not be started again by itself

    @property
    def public(self) -> str:
        """Outside, draining is a part of stopping."""
        return "stopping" if self is Status.DRAINING else self.value

    @property
    def has_process(self) -> bool:
        return self in _LIVE


_LIVE = frozenset({Status.STARTING, Status.LOADING, Status.READY, Status.DRAINING, Status.STOPPING})

MOVES: Mapping[Status, frozenset[Status]] = {
    Status.OFF: frozenset({Status.STARTING, Status.FAILED}),
    Status.STARTING: frozenset(
        {Status.LOADING, Status.READY, Status.STOPPING, Status.CRASHED, Status.FAILED}
    ),
    Status.LOADING: frozenset({Status.READY, Status.STOPPING, Status.CRASHED, Status.FAILED}),
    Status.READY: frozenset({Status.DRAINING, Status.STOPPING, Status.CRASHED, Status.FAILED}),
    Status.DRAINING: frozenset({Status.READY, Status.STOPPING, Status.FAILED}),
    Status.STOPPING: frozenset({Status.OFF, Status.FAILED}),
    Status.CRASHED: frozenset({Status.STARTING, Status.OFF, Status.FAILED}),
    Status.FAILED: frozenset({Status.OFF}),
}


class InvalidMove(RuntimeError):
    """A bug of ours: a state was left for one that cannot follow it."""


class StopReason(str, Enum):
    """Why a loaded model goes; the first five are the label of `router_model_evictions_total`."""

    MEMORY = "memory"
    COUNT = "count"
    IDLE = "idle"
    MANUAL = "manual"
    CONFIG = "config"
    SHUTDOWN = "shutdown"

    @property
    def is_swap(self) -> bool:
        """The policy chose it, so the policy may take it back while the model drains."""
        return self in (StopReason.MEMORY, StopReason.COUNT)
