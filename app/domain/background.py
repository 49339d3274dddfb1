"""Tasks that run as long as the router and may not die in silence."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

logger = logging.getLogger(__name__)

RESTART_DELAY_S = 1.0


@dataclass
class TaskHealth:
    """`error` is set from a failure until the task has run for a while again."""

    restarts: int = 0
    error: str | None = None


class Background:
    """Owns the background tasks: restarts one that fails, shows it in `health`, ends them all in `stop`."""

    def __init__(self, restart_delay_s: float = RESTART_DELAY_S) -> None:
        self.health: dict[str, TaskHealth] = {}
        self._restart_delay_s = restart_delay_s
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Run `run` for ever. It must not return; if it does, that counts as a failure."""
        self.health[name] = TaskHealth()
        self._tasks[name] = asyncio.create_task(self._forever(name, run), name=name)

    def once(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Run it to its end, in the background. A failure stays visible."""
        self.health[name] = TaskHealth()
        self._tasks[name] = asyncio.create_task(self._logged(name, run), name=name)

    async def stop(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.clear()

    async def _logged(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        try:
            await run()
        except Exception as error:  # whatever it is: /health shows it, and the task is started again
            self.health[name].error = f"{type(error).__name__}: {error}"
            logger.exception("background task %s failed", name)

    async def _forever(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        health = self.health[name]
        while True:
            healthy_again = asyncio.get_running_loop().call_later(
                10 * self._restart_delay_s, self._healed, health
            )
            try:
                await self._logged(name, run)
            finally:
                healthy_again.cancel()
            health.error = health.error or "it ended by itself"
            health.restarts += 1
            await asyncio.sleep(self._restart_delay_s)

    @staticmethod
    def _healed(health: TaskHealth) -> None:
        health.error = None
