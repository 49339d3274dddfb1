"""Unpacking and reading bodies beside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from app.domain.errors import RouterError
from app.proxy.content_encoding import gunzip
from app.proxy.request_body import Data, RequestBody, Spool


class Read(NamedTuple):
    """What was found in a body."""

    data: Data
    """Unpacked."""
    fields: dict[str, Any]


Found = Read | RouterError
Tell = Callable[[Found | BaseException], None]
Parse = Callable[[Any], dict[str, Any]]
"""Of what a body's `data` is."""


class PendingRead:
    """One body that waits to be read, or is read now."""

    def __init__(self, tell: Tell, withdraw: Callable[[PendingRead], None]) -> None:
        self.tell: Tell | None = tell
        self._withdraw = withdraw

    def cancel(self) -> None:
        """Nobody is told. A body that is read now lives until that is over."""
        self.tell = None
        self._withdraw(self)


class BodyThread:
    """One at a time, in a thread: two that compute would share the loop's turns.

    There are no tasks: one that is cancelled refers to the error that ended it, and that to all that it had.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "bodies")
        self._waiting: dict[PendingRead, tuple[RequestBody, Callable[[Data], Found]]] = {}
        self._is_busy = False

    def read(
        self, body: RequestBody, tell: Tell, *, unpack_to: int | None, parse: Parse | None
    ) -> PendingRead:
        """`tell` is called later: with what was found, or the error that `gunzip` or `parse` raised.

        `unpack_to`: the most bytes that it may be, of one that is packed; without `parse` no fields are read.
        """
        reading = PendingRead(tell, self._forget)
        self._waiting[reading] = (body, partial(_find, unpack_to=unpack_to, parse=parse))
        self._go_on()
        return reading

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _forget(self, reading: PendingRead) -> None:
        self._waiting.pop(reading, None)

    def _go_on(self) -> None:
        if self._is_busy or not self._waiting:
            return
        reading = next(iter(self._waiting))
        (body, find), self._is_busy = self._waiting.pop(reading), True
        future = asyncio.get_running_loop().run_in_executor(self._thread, find, body.data)
        future.add_done_callback(partial(self._done, reading, body))

    def _done(self, reading: PendingRead, body: RequestBody, done: asyncio.Future[Found]) -> None:
        self._is_busy = False
        self._go_on()
        tell, reading.tell = reading.tell, None  # its owner may keep it
        if tell is not None and not done.cancelled():
            tell(done.exception() or done.result())


def _find(body: Data, *, unpack_to: int | None, parse: Parse | None) -> Found:
    """An error that is raised would keep its frames, with the body."""
    try:
        data = body if unpack_to is None or isinstance(body, Spool) else gunzip(body, unpack_to)
        return Read(data, parse(data) if parse is not None else {})
    except RouterError as error:
        return error.without_frames()
