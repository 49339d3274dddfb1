"""One proxied request as one ASGI response: wait, talk to llama-server, pass the bytes on, leave."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Sequence
from enum import Enum
from typing import cast

import anyio
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from app.api.account import Account, Call
from app.api.errors import error_body, error_event
from app.api.http_protocol import CHECKED, Cycle, Head, RouterProtocol
from app.api.services import Services
from app.core.manager import Stay
from app.core.queue import Ticket
from app.domain.errors import InternalError, ModelCrashed, QueueTimeout, RouterError, UpstreamTimeout
from app.domain.events import Replayed
from app.domain.status import Status
from app.llama.runner import Runner
from app.models.supervisor import ModelInstance
from app.proxy.headers import passed_back
from app.proxy.upstream import Answer, Request, UpstreamGone
from app.proxy.usage import UsageScanner

logger = logging.getLogger(__name__)

HEARTBEAT_S = 5.0
"""A stream that waits gets its headers after this time, and a comment each time it passes again."""

BURIAL_S = 3.0
"""How long a replay waits for the supervisor to notice that the process died."""

LAST_WORD_S = 5.0
"""A client that does not read cannot be told why its stream ends."""

MAX_ERROR_BYTES = 65536
EVENT_STREAM = b"text/event-stream"


class _End(Enum):
    """Why an exchange was ended from outside."""

    CUT = "the process is stopped without waiting for it"
    TIMED_OUT = "nothing moved for too long"


class ClientStalled(Exception):
    """The client has not taken a byte for so long that its slot goes to somebody else."""


class Relay(Response):
    """Answers one call. Errors before the first byte are raised, later ones end the event stream.

    An `Errand` may have begun: then this goes on from there, with the errand's account.
    """

    background = None
    started = False  # headers have been sent
    stay: Stay | None = None  # the place that the errand has
    asked: Answer | None = None  # what the errand has asked for
    bug: Exception | None = None  # what stopped the errand
    _begun = False  # a byte of the answer has been sent
    _event_stream = False  # these headers said so
    _sending = False  # the client has not taken the last chunk yet
    _ended: _End | None = None
    _watchdog: asyncio.TimerHandle | None = None
    _cycle: Cycle | None = None
    _interruption: _Interruption

    def __init__(
        self,
        services: Services,
        instance: ModelInstance,
        call: Call,
        body: bytes,
        account: Account | None = None,
    ) -> None:
        self._services, self._instance, self._call, self._body = services, instance, call, body
        self._limits = services.config.system
        self._account = account or Account(call, instance.alias, services.manager.ticket(call.priority))
        self._usage = UsageScanner()
        self._account.usage = self._usage.usage
        self._now: Callable[[], float] = time.monotonic
        self._last_progress = self._account.ticket.granted_at or self._account.ticket.arrived

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error: RouterError | None = None
        self._interruption = _Interruption()
        self._cycle = scope.get("router.cycle")
        forget = _on_disconnect(scope, receive, self._leave)
        try:
            try:
                await self._answer(send)
            except RouterError as raised:
                error = raised
                if not self.started:
                    raise
                await self._end_in_band(raised, send)
        except asyncio.CancelledError:
            if not self._account.left:  # the server's own end
                self._account.left = True
                raise
            self._interruption.caught()
        except ClientStalled:  # the server closes a connection whose answer was not completed
            self._account.left = True
        except RouterError:
            raise
        except Exception:
            error = InternalError("a bug of the router")  # for the accounts; the 500 handler logs and answers
            raise
        finally:
            forget()
            self._drop_asked()
            self._account.close(error)
            self._services.bus.finished(self._account.event)

    def _drop_asked(self) -> None:
        """Nobody got to it."""
        if self.asked is not None:
            self.asked.close()
            self.asked = None

    def _leave(self) -> None:
        self._account.left = True
        self._interruption.strike()

    # --- the request's way

    async def _answer(self, send: Send) -> None:
        """Wait, exchange, and once more at the old place if the process died before the answer had begun."""
        ticket, manager = self._account.ticket, self._services.manager
        if self.stay is None:
            await manager.revive(self._instance)
        for last_try in (False, True):
            with self.stay or manager.admit(self._instance, ticket):
                if self.bug is not None:
                    raise self.bug
                await self._wait(ticket, send)
                runner = self._instance.runner
                if runner is not None and await self._attempt(ticket, runner, send):
                    return
            self.stay = None
            self._drop_asked()
            if self._begun or last_try:
                raise ModelCrashed(
                    f"llama-server for {self._instance.alias} ended while it answered; send the request again"
                )
            await self._burial(runner)
            if self._account.left:  # its time-out can swallow the cancellation
                raise asyncio.CancelledError
            ticket = ticket.again()
            self._services.bus.publish(Replayed(self._instance.alias))

    async def _wait(self, ticket: Ticket, send: Send) -> None:
        """Until the ticket is granted. A stream that waits long is told where it stands."""
        since = self._now() if ticket.is_replay else ticket.arrived
        deadline = since + self._limits.queue_timeout_sec
        while not await ticket.wait(min(HEARTBEAT_S, max(deadline - self._now(), 0.0))):
            if self._now() >= deadline:
                raise self._queue_timeout()
            if self._call.stream:
                await self._heartbeat(ticket, send)
        if self.asked is None:  # else the errand has told it
            self._account.granted(ticket, self._instance)

    async def _heartbeat(self, ticket: Ticket, send: Send) -> None:
        if not self.started:
            self._event_stream = True
            await self._start(send, 200, [(b"content-type", EVENT_STREAM)])
        view = self._instance.view()
        if view.status in (Status.STARTING, Status.LOADING):
            known = "" if view.load_progress is None else f" progress={view.load_progress:.2f}"
            comment = f": loading{known}\n\n"
        else:
            comment = f": queued position={self._instance.queue.position(ticket)}\n\n"
        await send(_body(comment.encode()))

    async def _attempt(self, ticket: Ticket, runner: Runner, send: Send) -> bool:
        """One exchange with one process; False if the process went away under it."""
        self._ended = None
        if self.asked is None or self.asked.has_some:
            self._last_progress = self._now()
        ticket.on_cut = self._cut
        self._look()
        try:
            await self._exchange(runner, send)
            return True
        except UpstreamGone as gone:
            logger.info("%s: the connection to llama-server failed: %s", self._instance.alias, gone)
            return False
        except asyncio.CancelledError:
            if self._account.left or self._ended is None:
                raise
            self._interruption.caught()
        finally:
            ticket.on_cut = None
            if self._watchdog is not None:
                self._watchdog.cancel()
        if self._ended is _End.CUT:
            return False
        if self._sending:
            logger.info("%s: a client stopped reading; its slot is taken back", self._instance.alias)
            raise ClientStalled
        raise UpstreamTimeout(
            f"llama-server for {self._instance.alias} sent nothing for "
            f"{self._limits.request_timeout_sec} s; ask for less, or raise system.request_timeout_sec"
        )

    def _cut(self) -> None:
        self._end(_End.CUT)

    def _end(self, how: _End) -> None:
        self._ended = self._ended or how
        self._interruption.strike()

    def _watch(self, delay_s: float) -> None:
        self._watchdog = asyncio.get_running_loop().call_later(delay_s, self._look)

    def _look(self) -> None:
        """Nothing for too long? Moved on only when it fires: re-arming it for every chunk costs more than a
        chunk."""
        quiet_s = self._now() - self._last_progress
        if quiet_s >= self._limits.request_timeout_sec:
            self._end(_End.TIMED_OUT)
        else:
            self._watch(self._limits.request_timeout_sec - quiet_s)

    async def _exchange(self, runner: Runner, send: Send) -> None:
        asked, self.asked = self.asked, None
        request = request_to(runner, self._call, self._body)
        answer = await self._services.upstream.send(request, runner.port, asked)
        try:
            self._account.status = answer.status
            streamed = answer.content_type.lower().startswith(EVENT_STREAM)
            if self.started and (answer.status != 200 or not streamed):
                await self._fail_in_band(answer, send)
            else:
                self._event_stream = streamed
                await self._pass_on(answer, send)
        finally:
            answer.close()

    async def _pass_on(self, answer: Answer, send: Send) -> None:
        """Bytes as they come. A plain answer's head waits for its first byte, so that it can be replayed."""
        streamed = self._event_stream
        if streamed and not self.started:
            await self._start(send, answer.status, answer.headers)
        forward: Callable[[bytes], bool] | None = None
        while chunk := await answer.read(forward):
            if streamed and chunk[0] == 58 and _only_comments(chunk):
                await send(_body(chunk))
                continue
            if not self._begun:
                await self._begin(answer, chunk, send)
            self._last_progress = self._now()
            self._usage.feed(chunk)
            is_last = answer.ended  # read now: a slow client lets more come in while it is sent this
            self._sending = True
            await send(_body(chunk, more=not is_last))
            self._sending = False
            self._last_progress = self._now()
            if is_last:
                return
            if streamed and self._cycle is not None:
                forward = self._forward
        if not self.started:
            await self._start(send, answer.status, answer.headers)
        await send(_body(b"", more=False))

    def _forward(self, chunk: bytes) -> bool:
        """An event on its shortest way. False for what `_pass_on` has to look at."""
        if chunk[0] == 58 or self._cycle is None or not self._cycle.write(chunk):
            return False
        self._last_progress = self._now()
        self._usage.feed(chunk)
        return True

    async def _begin(self, answer: Answer, chunk: bytes, send: Send) -> None:
        self._begun, self._account.first_byte_at = True, self._now()  # first: a head cannot be taken back
        self._usage.start(chunk)
        if not self.started:
            await self._start(send, answer.status, answer.headers)

    async def _fail_in_band(self, answer: Answer, send: Send) -> None:
        """llama-server refused after our headers had to be sent early: its error becomes an event."""
        text = b""
        while len(text) < MAX_ERROR_BYTES and (chunk := await answer.read()):
            text += chunk
        await send(_body(error_body(text, answer.status, self._call.endpoint), more=False))

    async def _burial(self, runner: Runner | None) -> None:
        """Let the supervisor notice the death first, else the replay is granted on a corpse."""
        if runner is None:
            return
        with anyio.move_on_after(BURIAL_S):
            await self._instance.without(runner)
            return
        await self._services.health.suspect(self._instance, runner)

    async def _end_in_band(self, error: RouterError, send: Send) -> None:
        """An event stream ends with the error. A plain answer is cut off, which its client notices."""
        if self._event_stream:
            with anyio.move_on_after(LAST_WORD_S):
                await send(_body(error_event(error, self._call.endpoint), more=False))

    # --- the answer's head

    async def _start(self, send: Send, status: int, upstream: Sequence[tuple[bytes, bytes]]) -> None:
        self.started = True
        headers = passed_back(upstream, self._event_stream) + self._account.headers()
        when = Head.SOON if self._event_stream else Head.WITH_BODY
        await send({"type": "http.response.start", "status": status, "headers": headers, CHECKED: when})

    def _queue_timeout(self) -> QueueTimeout:
        return QueueTimeout(
            f"no place on {self._instance.alias} within {self._limits.queue_timeout_sec} s; try again later, "
            "send a higher X-Request-Priority, or raise system.queue_timeout_sec",
            retry_after_s=self._instance.queue.expected_wait_s(),
        )


def request_to(runner: Runner, call: Call, body: bytes) -> Request:
    """The call with the key of this process."""
    headers = b"%bauthorization: Bearer %b\r\n" % (call.headers, runner.api_key.encode())
    return Request(call.method, call.path, headers, body, call.fresh)


class _Interruption:
    """Ends what this task waits for, once for any number of reasons: a cancel scope without its price, which
    was a tenth of a short request's CPU. Whoever catches the cancellation looks for the reason."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._pending = False

    def strike(self) -> None:
        if not self._pending:
            self._pending = True
            self._task.cancel()

    def caught(self) -> None:
        self._pending = False
        if sys.version_info >= (3, 11):
            self._task.uncancel()


def _on_disconnect(scope: Scope, receive: Receive, leave: Callable[[], None]) -> Callable[[], None]:
    """FastAPI does not tell a handler that waits. Our own server does; elsewhere a task has to listen.

    Returns what ends the listening.
    """
    connection: RouterProtocol | None = scope.get("router.connection")
    if connection is not None:
        return connection.watch(leave)
    task = asyncio.ensure_future(_until_disconnect(receive))
    task.add_done_callback(lambda ended: None if ended.cancelled() else leave())
    return cast("Callable[[], None]", task.cancel)


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _body(chunk: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": chunk, "more_body": more}


def _only_comments(chunk: bytes) -> bool:
    """True for SSE keep-alive comments. A network chunk may carry a comment and an event."""
    return all(not line or line.startswith(b":") for line in chunk.split(b"\n"))
