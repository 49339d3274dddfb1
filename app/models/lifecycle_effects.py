"""What goes into a model's `Lifecycle`, and what comes out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from app.domain.events import Event
from app.llama.exit_reason import Failure

# --- what goes in


class Blame(Enum):
    """Who is to blame for the end of a process that nobody wanted. Only what is held against the model itself
    brings it nearer to `failed`."""

    MODEL = "the model, its file or its process"
    OTHER_PROGRAMS = "they took its memory while it was loaded"
    REQUEST = "the only request that ran; several in a row, with none answered in between, are the model's"
    PERHAPS_REQUEST = "one of the requests that ran, perhaps: they are run once more, one at a time"


@dataclass(frozen=True)
class ProcessEnd:
    """How a process ended. Without a failure it did as it was told, or nobody knows why it ended."""

    failure: Failure | None = None
    blame: Blame = Blame.MODEL


# --- what comes out


@dataclass(frozen=True)
class EndProcess:
    """Cut the requests that run, and make the process exit."""


@dataclass(frozen=True)
class RejectWaiting:
    """Everybody who waits for the model is told this."""

    failure: Failure


@dataclass(frozen=True)
class Note:
    """Nothing changed, but an operator should know."""

    text: str


Effect = Event | EndProcess | RejectWaiting | Note
Effects = Sequence[Effect]
