"""What takes long for a request, beside the event loop: unpacking, reading and translating."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
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


Work = Callable[[], Any]
Tell = Callable[[Any], None]
"""Of what was found: a `RouterError` if that was raised, else another exception if it was a bug."""

Parse = Callable[[Any], dict[str, Any]]
"""Of what a body's `data` is."""


class PendingWork:
    """Something that waits to be done, or is done now."""

    def __init__(self, tell: Tell, withdraw: Callable[[PendingWork], None]) -> None:
        self.tell: Tell | None = tell
        self._withdraw = withdraw

    def cancel(self) -> None:
        """Nobody is told. What is read now lives until that is over."""
        self.tell = None
        self._withdraw(self)


class BodyThread:
    """One at a time, in a thread: two that compute would share the loop's turns.

    There are no tasks: one that is cancelled refers to the error that ended it, and that to all that it had.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "bodies")
        self._waiting: OrderedDict[PendingWork, Work] = OrderedDict()
        self._is_busy = False

    def read(
        self, body: RequestBody, tell: Tell, *, unpack_to: int | None, parse: Parse | None
    ) -> PendingWork:
        """`tell` gets a `Read`, or the error that `gunzip` or `parse` raised.

        `unpack_to`: the most bytes that it may be, of one that is packed; without `parse` no fields are read.
        """
        return self.do(partial(_read, body, unpack_to=unpack_to, parse=parse), tell)

    def do(self, work: Work, tell: Tell, *, next_: bool = False) -> PendingWork:
        """`tell` is called later. `next_`: before all that waits, for what takes much memory until then."""
        pending = PendingWork(tell, self._forget)
        self._waiting[pending] = work
        if next_:
            self._waiting.move_to_end(pending, last=False)
        self._go_on()
        return pending

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _forget(self, pending: PendingWork) -> None:
        self._waiting.pop(pending, None)

    def _go_on(self) -> None:
        if self._is_busy or not self._waiting:
            return
        pending, work = self._waiting.popitem(last=False)
        self._is_busy = True
        future = asyncio.get_running_loop().run_in_executor(self._thread, _done, work)
        future.add_done_callback(partial(self._tell, pending))

    def _tell(self, pending: PendingWork, done: asyncio.Future[Any]) -> None:
        tell, pending.tell = pending.tell, None  # its owner may keep it
        self._is_busy = False
        try:
            if tell is not None and not done.cancelled():
                tell(done.exception() or done.result())
        finally:
            self._go_on()


def _read(body: RequestBody, *, unpack_to: int | None, parse: Parse | None) -> Read:
    data = body.data
    if unpack_to is not None and not isinstance(data, Spool):
        data = gunzip(data, unpack_to)
    return Read(data, parse(data) if parse is not None else {})


def _done(work: Work) -> Any:
    """An error that is raised would keep its frames, with the body."""
    try:
        return work()
    except RouterError as error:
        return error.without_frames()
