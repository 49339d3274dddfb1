"""Processes that outlive SIGKILL, inside a call of the kernel: the model goes on without them."""

from __future__ import annotations

import logging
from collections.abc import Callable

from app.llama.exit_reason import Failure, FailureKind
from app.memory.ledger.memory_ledger import MemoryLedger
from app.memory.model_memory import ModelMemory
from app.models.supervisor import Supervisor

logger = logging.getLogger(__name__)


class UnkillableProcesses:
    """Of one model. Each one's task stays with it, and its memory stays taken, until it can be reaped."""

    def __init__(self, memory: ModelMemory, ledger: MemoryLedger, reconcile_soon: Callable[[], None]) -> None:
        self._memory, self._ledger, self._reconcile_soon = memory, ledger, reconcile_soon
        self._reserved_as: dict[Supervisor, str] = {}

    def add(self, process: Supervisor, pid: int) -> Failure:
        """Why the model has lost it."""
        self._reserved_as[process] = self._memory.keep_unkillable(pid)
        message = f"llama-server (pid {pid}) does not die: it hangs inside the kernel. See dmesg."
        return process.cause or Failure(FailureKind.TIMEOUT, message, None, ())

    def reaped(self, process: Supervisor) -> None:
        name = self._reserved_as.pop(process)
        logger.warning("%s has died after all", name)
        self._ledger.release(name, crashed=True)
        self._reconcile_soon()
