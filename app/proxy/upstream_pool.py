"""Connections to llama-servers: kept ones, new ones, and ones that are opened before they are needed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial

from app.domain.alarm import Alarm
from app.domain.errors import Overloaded
from app.llama.os_calls import NO_FILES_LEFT, out_of_files
from app.proxy.answer_reader import KnownAnswerHeads
from app.proxy.exchange_interfaces import LinkUser, UpstreamGone
from app.proxy.upstream_connection import UpstreamConnection

logger = logging.getLogger(__name__)

IDLE_CONNECTION_S = 2.0
"""llama-server drops an idle connection after 5 s: ours must be gone well before."""

MAX_AHEAD = 4
"""To one process. An open connection holds one of its HTTP threads, of which it has eight more than slots."""


class Opening:
    """A connection that is being opened, for a user or for whoever comes next."""

    def __init__(self, user: LinkUser | None, withdraw: Callable[[Opening], None]) -> None:
        self.user, self._withdraw = user, withdraw
        self.task: asyncio.Task[None]

    def cancel(self) -> None:
        """From now on nobody can take it over: its task ends some turns later, and tells nobody."""
        self.user = None
        self._withdraw(self)
        self.task.cancel()


class UpstreamPool:
    """A request takes the connection that was used last. One that llama-server has closed meanwhile ends
    without a byte, and is told to be `stale`."""

    def __init__(self, idle_s: float = IDLE_CONNECTION_S) -> None:
        self.closed = False
        self.idle_s = idle_s
        self._heads = KnownAnswerHeads()
        self._idle: dict[int, list[UpstreamConnection]] = {}
        self._opening: dict[int, list[Opening]] = {}
        self._sweep_alarm = Alarm(self._sweep)

    def take(self, port: int) -> UpstreamConnection | None:
        """The one that was used last, if one is open and nobody uses it."""
        idle = self._idle.get(port)
        while idle:
            connection = idle.pop()
            if not connection.is_closing:
                return connection
        return None

    def open(self, port: int, user: LinkUser) -> Opening:
        """The user gets a new connection later; the result cancels the wait."""
        for opening in self._opening.get(port, ()):
            if opening.user is None:
                opening.user = user
                return opening
        return self._open(port, user)

    def open_ahead(self, port: int, wanted: int) -> None:
        """So many users will soon ask for a connection."""
        ready = len(self._idle.get(port, ())) + sum(o.user is None for o in self._opening.get(port, ()))
        for _ in range(min(wanted, MAX_AHEAD) - ready):
            self._open(port, None)

    def close(self) -> None:
        """Connections in use live on until they are released."""
        self.closed = True
        self._sweep_alarm.cancel()
        for opening in [o for openings in self._opening.values() for o in openings]:
            opening.cancel()
        for idle in self._idle.values():
            for connection in idle:
                connection.abort()
        self._idle.clear()

    # --- opening

    def _open(self, port: int, user: LinkUser | None) -> Opening:
        opening = Opening(user, partial(self._forget_opening, port))
        self._opening.setdefault(port, []).append(opening)
        opening.task = asyncio.get_running_loop().create_task(self._connect(port, opening))
        return opening

    async def _connect(self, port: int, opening: Opening) -> None:
        """The only coroutine of this side: event loops offer no other way to connect."""
        error: OSError | None = None
        try:
            connection = await self._connection(port)
        except OSError as raised:
            error = raised
        finally:
            self._forget_opening(port, opening)
        user = opening.user
        if error is None:
            self._opened(connection, user)
        elif user is None:
            logger.debug("port %d: no connection ahead: %s", port, error)
        elif out_of_files(error):
            user.refused(Overloaded(NO_FILES_LEFT, retry_after_s=1))
        else:
            user.broken(UpstreamGone(str(error)))

    async def _connection(self, port: int) -> UpstreamConnection:
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(
            lambda: UpstreamConnection(port, self._heads, self._keep, self._forget), "127.0.0.1", port
        )
        return made

    def _forget_opening(self, port: int, opening: Opening) -> None:
        openings = self._opening.get(port, [])
        if opening in openings:
            openings.remove(opening)
            if not openings:
                del self._opening[port]

    def _opened(self, connection: UpstreamConnection, user: LinkUser | None) -> None:
        if user is not None:
            user.connected(connection, True)
        else:
            self._keep(connection)

    # --- kept ones

    def _keep(self, connection: UpstreamConnection) -> None:
        if self.closed or connection.is_closing:
            connection.abort()
            return
        connection.idle_since = time.monotonic()
        self._idle.setdefault(connection.port, []).append(connection)
        if self._sweep_alarm.at is None:
            self._sweep_alarm.set_within(self.idle_s)

    def _forget(self, connection: UpstreamConnection) -> None:
        """It was closed."""
        idle = self._idle.get(connection.port)
        if idle and connection in idle:
            idle.remove(connection)

    def _sweep(self) -> None:
        limit = time.monotonic() - self.idle_s
        for port, idle in tuple(self._idle.items()):
            old = [connection for connection in idle if connection.idle_since <= limit]
            for connection in old:
                idle.remove(connection)
                connection.abort()
            if not idle:
                del self._idle[port]
        if self._idle:
            self._sweep_alarm.set_within(self.idle_s / 4)
