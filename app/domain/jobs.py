"""Tasks that end by themselves, each under a name of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine

from app.domain.errors import RouterError

logger = logging.getLogger(__name__)


class Jobs:
    """Keeps them until they end; one that fails is logged."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, name: str, run: Callable[[], Coroutine[object, object, None]]) -> asyncio.Task[None]:
        """One task of that name at a time: one that runs already is the answer."""
        if name not in self._tasks:
            task = asyncio.create_task(run(), name=name)
            self._tasks[name] = task
            task.add_done_callback(lambda t: self._ended(name, t))
        return self._tasks[name]

    def cancel(self, name: str) -> None:
        if (task := self._tasks.get(name)) is not None:
            task.cancel()

    def cancel_all(self) -> None:
        for task in self._tasks.values():
            task.cancel()

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        self._tasks.pop(name, None)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, RouterError):
            logger.info("%s: %s", name, error.message)
        else:
            logger.error("%s failed", name, exc_info=error)
