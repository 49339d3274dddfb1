"""One proxied request as one ASGI response: wait, talk to llama-server, pass the bytes on, leave."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import cast

import anyio
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from app.api.errors import error_body, error_event
from app.api.http_protocol import CHECKED, Cycle, Head, RouterProtocol
from app.api.services import Services
from app.core.errors import InternalError, ModelCrashed, QueueTimeout, RouterError, UpstreamTimeout
from app.core.events import Outcome, Replayed, RequestFinished
from app.core.instance import ModelInstance
from app.core.model_status import Priority, Status
from app.core.queue import Ticket
from app.core.runner import Runner
from app.core.upstream import Answer, UpstreamGone
from app.core.usage import UsageScanner

logger = logging.getLogger(__name__)

HEARTBEAT_S = 5.0
"""A stream that waits gets its headers after this time, and a comment each time it passes again."""

BURIAL_S = 3.0
"""How long a replay waits for the supervisor to notice that the process died."""

LAST_WORD_S = 5.0
"""A client that does not read cannot be told why its stream ends."""

MAX_ERROR_BYTES = 65536
EVENT_STREAM = b"text/event-stream"

_NOT_PASSED_BACK = frozenset({
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer",
    b"upgrade", b"transfer-encoding", b"server", b"date",
    b"access-control-allow-origin", b"access-control-allow-credentials",
})  # fmt: skip
_SET_FOR_STREAMS = frozenset({b"cache-control", b"x-accel-buffering"})


@dataclass(frozen=True)
class Call:
    """What a client asked for, as far as the router needs to know."""

    endpoint: str
    method: str
    path: str  # llama-server's path, with the query
    headers: Mapping[str, str]
    body: bytes
    stream: bool  # the client asked for an event stream
    fresh: bool  # needs a connection of its own
    priority: Priority
    lowered: bool
    request_id: str
    client: str


class _End(Enum):
    """Why an exchange was ended from outside."""

    CUT = "the process is stopped without waiting for it"
    TIMED_OUT = "nothing moved for too long"


class ClientStalled(Exception):
    """The client has not taken a byte for so long that its slot goes to somebody else."""


class Relay(Response):
    """Answers one call. Errors before the first byte are raised, later ones end the event stream."""

    background = None

    def __init__(self, services: Services, instance: ModelInstance, call: Call) -> None:
        self._services, self._instance, self._call = services, instance, call
        self._limits = services.config.system
        self._ticket = services.manager.ticket(call.priority)
        self._loop = asyncio.get_running_loop()
        self._interruption: _Interruption
        self._cycle: Cycle | None = None
        self._ended: _End | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        self._left = False  # the client has gone
        self.started = False  # headers have been sent
        self._begun = False  # a byte of the answer has been sent
        self._event_stream = False  # these headers said so
        self._sending = False  # the client has not taken the last chunk yet
        self._status = 200
        self._granted_at: float | None = None
        self._first_byte_at: float | None = None
        self._last_progress = 0.0
        self._load_s = 0.0
        self._usage = UsageScanner()
        self._now: Callable[[], float] = time.monotonic

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
            if not self._left:  # the server's own end
                self._left = True
                raise
            self._interruption.caught()
        except ClientStalled:  # the server closes a connection whose answer was not completed
            self._left = True
        except RouterError:
            raise
        except Exception:
            error = InternalError("a bug of the router")  # for the accounts; the 500 handler logs and answers
            raise
        finally:
            forget()
            self._services.bus.finished(self._finished(error))

    def _leave(self) -> None:
        self._left = True
        self._interruption.strike()

    # --- the request's way

    async def _answer(self, send: Send) -> None:
        """Wait, exchange, and once more at the old place if the process died before the answer had begun."""
        ticket, manager = self._ticket, self._services.manager
        for last_try in (False, True):
            with manager.admit(self._instance, ticket):
                await self._wait(ticket, send)
                runner = self._instance.runner
                if runner is not None and await self._attempt(ticket, runner, send):
                    return
            if self._begun or last_try:
                raise ModelCrashed(
                    f"llama-server for {self._instance.alias} ended while it answered; send the request again"
                )
            await self._burial(runner)
            if self._left:  # its time-out can swallow the cancellation
                raise asyncio.CancelledError
            ticket = ticket.again()
            self._services.bus.publish(Replayed(self._instance.alias))

    async def _wait(self, ticket: Ticket, send: Send) -> None:
        """Until the ticket is granted. A stream that waits long is told where it stands."""
        deadline = self._now() + self._limits.queue_timeout_sec
        while not await ticket.wait(min(HEARTBEAT_S, max(deadline - self._now(), 0.0))):
            if self._now() >= deadline:
                raise self._queue_timeout()
            if self._call.stream:
                await self._heartbeat(ticket, send)
        self._granted_at = ticket.granted_at
        loaded_from = max(ticket.arrived, self._instance.load_started)
        self._load_s += max(self._instance.ready_since - loaded_from, 0.0)

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
        self._ended, self._last_progress = None, self._now()
        ticket.on_cut = self._cut
        self._watch(self._limits.request_timeout_sec)
        try:
            await self._exchange(runner, send)
            return True
        except UpstreamGone as gone:
            logger.info("%s: the connection to llama-server failed: %s", self._instance.alias, gone)
            return False
        except asyncio.CancelledError:
            if self._left or self._ended is None:
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
        self._watchdog = self._loop.call_later(delay_s, self._look)

    def _look(self) -> None:
        """Nothing for too long? Moved on only when it fires: re-arming it for every chunk costs more than a
        chunk."""
        quiet_s = self._now() - self._last_progress
        if quiet_s >= self._limits.request_timeout_sec:
            self._end(_End.TIMED_OUT)
        else:
            self._watch(self._limits.request_timeout_sec - quiet_s)

    async def _exchange(self, runner: Runner, send: Send) -> None:
        call = self._call
        headers = {**call.headers, "Authorization": f"Bearer {runner.api_key}"}
        answer = await self._services.upstream.send(
            runner.port, call.method, call.path, headers, call.body, fresh=call.fresh
        )
        try:
            self._status = answer.status
            streamed = answer.content_type.lower().startswith(EVENT_STREAM)
            if self.started and (answer.status != 200 or not streamed):
                await self._fail_in_band(answer, send)
            else:
                self._event_stream = streamed
                await self._pass_on(answer, send)
        finally:
            answer.close()
            runner.answered()

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
        self._begun, self._first_byte_at = True, self._now()  # first: a head cannot be taken back
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
        headers = [header for header in upstream if header[0] not in _NOT_PASSED_BACK]
        if self._event_stream:
            headers = [header for header in headers if header[0] not in _SET_FOR_STREAMS]
            headers += [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
        headers += self._own_headers()
        when = Head.NOW if self._event_stream else Head.WITH_BODY
        await send({"type": "http.response.start", "status": status, "headers": headers, CHECKED: when})

    def _own_headers(self) -> list[tuple[bytes, bytes]]:
        own = []
        if self._granted_at is not None:
            own.append((b"x-queue-wait-ms", b"%d" % (1000 * self._queue_wait_s())))
            own.append((b"x-model-load-ms", b"%d" % (1000 * self._load_s)))
        if self._call.lowered:
            own.append((b"x-priority-effective", self._call.priority.label.encode()))
        return own

    # --- accounts

    def _queue_wait_s(self) -> float:
        return (self._granted_at or self._ticket.arrived) - self._ticket.arrived

    def _queue_timeout(self) -> QueueTimeout:
        return QueueTimeout(
            f"no place on {self._instance.alias} within {self._limits.queue_timeout_sec} s; try again later, "
            "send a higher X-Request-Priority, or raise system.queue_timeout_sec",
            retry_after_s=self._instance.queue.expected_wait_s(),
        )

    def _finished(self, error: RouterError | None) -> Callable[[], RequestFinished]:
        """What becomes the account. It does not hold the request's body."""
        call, usage, first = self._call, self._usage, self._first_byte_at
        arrived, ended = self._ticket.arrived, self._now()
        waited = None if self._granted_at is None else self._queue_wait_s()
        status = 499 if self._left else error.status if error is not None else self._status
        request_id, endpoint, client, priority = call.request_id, call.endpoint, call.client, call.priority
        alias, load_s, code = self._instance.alias, self._load_s, error.code if error is not None else None
        return lambda: RequestFinished(
            request_id=request_id,
            alias=alias,
            endpoint=endpoint,
            client=client,
            priority=priority,
            outcome=_outcome(status),
            status=status,
            error=code,
            duration_s=ended - arrived,
            queue_wait_s=waited,
            load_s=load_s,
            ttft_s=None if first is None else first - arrived,
            usage=usage.usage(),
        )


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


def _outcome(status: int) -> Outcome:
    if status < 400:
        return Outcome.SUCCESS
    return {499: Outcome.CANCELLED, 503: Outcome.REJECTED, 504: Outcome.TIMEOUT}.get(status, Outcome.ERROR)
