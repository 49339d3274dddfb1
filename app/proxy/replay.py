"""Whether a request whose process ended is asked once more. One of which a byte was sent never is."""

from __future__ import annotations

import anyio

from app.core.health_monitor import HealthMonitor
from app.core.manager import ModelManager
from app.domain.errors import RequestCrashesModel, RouterError, ShuttingDown
from app.domain.event_bus import EventBus
from app.domain.events import Replayed
from app.llama.runner_interface import Runner
from app.proxy import timeout_and_crash_errors
from app.proxy.exchange_interfaces import Entrant

EXIT_WAIT_S = 3.0
"""How long a replay waits for the supervisor to notice that the process ended; then the process is probed."""


class Replays:
    """Of all models."""

    def __init__(
        self, manager: ModelManager, health: HealthMonitor, bus: EventBus, exit_wait_s: float
    ) -> None:
        self._manager, self._health, self._bus, self._exit_wait_s = manager, health, bus, exit_wait_s

    async def after_exit(self, entrant: Entrant, runner: Runner | None) -> None:
        """Calls `process_gone` of the entrant once this process is gone.

        Earlier the replay could be sent to the process that has just failed, and nobody would know why.
        """
        if runner is not None:
            with anyio.move_on_after(self._exit_wait_s) as wait:
                await entrant.instance.until_gone(runner)
            if wait.cancelled_caught:
                await self._health.suspect(entrant.instance, runner)
        error = self._instead_of_replay(entrant)
        if error is None:
            self._bus.publish(Replayed(entrant.instance.alias))
        entrant.process_gone(error)

    def _instead_of_replay(self, entrant: Entrant) -> RouterError | None:
        """A crash uses up no replay: whoever was in one runs alone the next time, and the time after that
        never. What killed the process from outside may do so for ever."""
        instance, ticket = entrant.instance, entrant.ticket
        if self._manager.closing:
            return ShuttingDown()
        try:
            if instance.crash_inquiry.is_open:
                instance.crash_inquiry.judge(ticket)
        except RequestCrashesModel as error:
            return error
        may_go_on = ticket.lost_in_crash or ticket.replays_left
        if may_go_on and not entrant.record.has_begun:
            return None
        return timeout_and_crash_errors.crashed(instance)
