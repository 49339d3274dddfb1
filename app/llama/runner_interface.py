"""The seam to the world of processes: what the rest of the router knows of a running llama-server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from app.domain.model_spec import ModelSpec
from app.domain.status import Status
from app.judgement.evidence import Evidence
from app.llama.exit_reason import Failure
from app.llama.load_output import LoadLog
from app.llama.output.log import ModelLog


class LoadError(Exception):
    """A load that did not end in a serving process."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


@dataclass(frozen=True)
class Exit:
    code: int
    failure: Failure


class Runner(Protocol):
    """One live llama-server. `phase`: STARTING until its port answers, then LOADING, READY when it serves."""

    pid: int
    port: int
    api_key: str
    phase: Status
    load_log: LoadLog
    log: ModelLog
    evidence: Evidence  # all that was observed of it
    unkillable: bool  # it was killed and lives on, inside a call of the kernel; `on_change` has told it

    async def ready(self) -> None:
        """Returns when it serves. Raises `LoadError`: it exited, or showed no progress for too long."""

    async def exited(self) -> Exit:
        """For any number of waiters; cancelling one changes nothing."""
        ...

    async def sample(self) -> None:
        """Observe what the system knows of it, which asks it nothing: also while an answer is waited for."""
        ...

    async def look(self, *, at_slots: bool) -> None:
        """Observe it afresh, and ask it for its slots, or only for its health. One at a time: who comes
        meanwhile waits for the look that is under way."""
        ...

    async def stop(self, grace_s: float = 2.0) -> None:
        """Returns when the process is reaped, or `unkillable`. Safe to call twice, and at the same time."""


OnChange = Callable[[Runner], None]


class Launcher(Protocol):
    async def check(self, spec: ModelSpec) -> None:
        """Before anybody is stopped for it: raises `LoadError` for what no room could help."""

    async def prepare(self, spec: ModelSpec) -> None:
        """While room is made for it: what makes its load quicker. Cancelled when the load begins."""

    def launch(
        self,
        spec: ModelSpec,
        placement: Mapping[str, int],
        on_change: OnChange,
        slot_folder: Path | None = None,
    ) -> AbstractAsyncContextManager[Runner]:
        """The process lives as long as the block: an unkillable one keeps it from ending.

        `on_change` hears of every news of its load, and when it does not die. In `slot_folder` it may save
        what its slots hold.
        """
        ...

    def kill_all(self) -> None:
        """At once and without waiting, also from a signal's handler or at the end of the program."""
