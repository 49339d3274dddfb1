"""One proxied request as one ASGI response: wait, talk to llama-server, pass the bytes on, leave."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import aiohttp
import anyio
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send
from yarl import URL

from app.api.errors import error_body, error_event
from app.api.services import Services
from app.core.errors import InternalError, ModelCrashed, QueueTimeout, RouterError, UpstreamTimeout
from app.core.events import Outcome, Replayed, RequestFinished
from app.core.instance import ModelInstance
from app.core.model_status import Priority, Status
from app.core.queue import Ticket
from app.core.runner import Runner
from app.core.upstream import UpstreamGone, UsageScanner

logger = logging.getLogger(__name__)

HEARTBEAT_S = 5.0
"""A stream that waits gets its headers after this time, and a comment each time it passes again."""

BURIAL_S = 3.0
"""How long a replay waits for the supervisor to notice that the process died."""

LAST_WORD_S = 5.0
"""A client that does not read cannot be told why its stream ends."""

MAX_ERROR_BYTES = 65536
EVENT_STREAM = "text/event-stream"

_NOT_PASSED_BACK = frozenset({
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "upgrade",
    "transfer-encoding", "server", "date", "access-control-allow-origin", "access-control-allow-credentials",
})  # fmt: skip


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


class ClientStalled(Exception):
    """The client has not taken a byte for so long that its slot goes to somebody else."""


class Relay(Response):
    """Answers one call. Errors before the first byte are raised, later ones end the event stream."""

    background = None

    def __init__(self, services: Services, instance: ModelInstance, call: Call) -> None:
        self._services, self._instance, self._call = services, instance, call
        self._limits = services.config.system
        self._ticket = services.manager.ticket(call.priority)
        self._started = False  # headers have been sent
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
        left = False
        leaving = asyncio.ensure_future(_until_disconnect(receive))
        try:
            with anyio.CancelScope() as stay:
                leaving.add_done_callback(lambda _: stay.cancel())
                await self._answer(send)
            left = stay.cancelled_caught
        except ClientStalled:  # the server closes a connection whose answer was not completed
            left = True
        except RouterError as raised:
            error = raised
            if not self._started:
                raise
            await self._end_in_band(raised, send)
        except Exception:
            error = InternalError("a bug of the router")  # for the accounts; the 500 handler logs and answers
            raise
        finally:
            leaving.cancel()
            self._publish(error, left)

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
        if not self._started:
            await self._start(send, 200, {"content-type": EVENT_STREAM})
        view = self._instance.view()
        if view.status in (Status.STARTING, Status.LOADING):
            known = "" if view.load_progress is None else f" progress={view.load_progress:.2f}"
            comment = f": loading{known}\n\n"
        else:
            comment = f": queued position={self._instance.queue.position(ticket)}\n\n"
        await send(_body(comment.encode()))

    async def _attempt(self, ticket: Ticket, runner: Runner, send: Send) -> bool:
        """One exchange with one process; False if the process went away under it."""
        timed_out = False

        def expire() -> None:
            nonlocal timed_out
            timed_out = True
            scope.cancel()

        with (
            anyio.CancelScope() as scope,
            ticket.cut_by(scope.cancel),
            _Watchdog(self._limits.request_timeout_sec, lambda: self._last_progress, expire) as watchdog,
        ):
            self._last_progress = watchdog.started
            try:
                await self._exchange(runner, send)
            except UpstreamGone as gone:
                logger.info("%s: the connection to llama-server failed: %s", self._instance.alias, gone)
                return False
        if timed_out and self._sending:
            logger.info("%s: a client stopped reading; its slot is taken back", self._instance.alias)
            raise ClientStalled
        if timed_out:
            raise UpstreamTimeout(
                f"llama-server for {self._instance.alias} sent nothing for "
                f"{self._limits.request_timeout_sec} s; ask for less, or raise system.request_timeout_sec"
            )
        return not scope.cancelled_caught

    async def _exchange(self, runner: Runner, send: Send) -> None:
        call = self._call
        url = URL(f"http://127.0.0.1:{runner.port}{call.path}", encoded=True)
        headers = {**call.headers, "Authorization": f"Bearer {runner.api_key}"}
        answer = await self._services.upstream.send(url, call.method, headers, call.body, fresh=call.fresh)
        async with answer:
            self._status = answer.status
            streamed = answer.content_type == EVENT_STREAM
            if self._started and (answer.status != 200 or not streamed):
                await self._fail_in_band(answer, send)
            else:
                await self._pass_on(answer, send, streamed)

    async def _pass_on(self, answer: aiohttp.ClientResponse, send: Send, streamed: bool) -> None:
        """Bytes as they come. A plain answer's head waits for its first byte, so that it can be replayed."""
        if streamed and not self._started:
            await self._start(send, answer.status, answer.headers)
        try:
            async for chunk in answer.content.iter_any():
                if streamed and chunk[0] == 58 and _only_comments(chunk):
                    await send(_body(chunk))
                    continue
                if not self._begun:
                    await self._begin(answer, chunk, send)
                self._last_progress = self._now()
                self._usage.feed(chunk)
                self._sending = True
                await send(_body(chunk))
                self._sending = False
                self._last_progress = self._now()
        except (aiohttp.ClientError, ConnectionError) as error:
            raise UpstreamGone(str(error) or type(error).__name__) from error
        if not self._started:
            await self._start(send, answer.status, answer.headers)
        await send(_body(b"", more=False))

    async def _begin(self, answer: aiohttp.ClientResponse, chunk: bytes, send: Send) -> None:
        self._begun, self._first_byte_at = True, self._now()  # first: a head cannot be taken back
        self._usage.start(chunk)
        if not self._started:
            await self._start(send, answer.status, answer.headers)

    async def _fail_in_band(self, answer: aiohttp.ClientResponse, send: Send) -> None:
        """llama-server refused after our headers had to be sent early: its error becomes an event."""
        try:
            text = await answer.content.read(MAX_ERROR_BYTES)
        except (aiohttp.ClientError, ConnectionError) as error:
            raise UpstreamGone(str(error)) from error
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

    async def _start(self, send: Send, status: int, upstream: Mapping[str, str]) -> None:
        self._started = True
        headers = [
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in upstream.items()
            if name.lower() not in _NOT_PASSED_BACK
        ]
        self._event_stream = upstream.get("content-type", "").startswith(EVENT_STREAM)
        if self._event_stream:
            headers = [h for h in headers if h[0] not in (b"cache-control", b"x-accel-buffering")]
            headers += [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
        await send(
            {"type": "http.response.start", "status": status, "headers": headers + self._own_headers()}
        )

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

    def _publish(self, error: RouterError | None, left: bool) -> None:
        arrived = self._ticket.arrived
        first = self._first_byte_at
        status = error.status if error is not None else self._status
        self._services.bus.publish(
            RequestFinished(
                request_id=self._call.request_id,
                alias=self._instance.alias,
                endpoint=self._call.endpoint,
                client=self._call.client,
                priority=self._call.priority,
                outcome=_outcome(status, left),
                status=499 if left else status,
                error=error.code if error is not None else None,
                duration_s=self._now() - arrived,
                queue_wait_s=None if self._granted_at is None else self._queue_wait_s(),
                load_s=self._load_s,
                ttft_s=None if first is None else first - arrived,
                usage=self._usage.usage(),
            )
        )


class _Watchdog:
    """Calls `expire` when `last_progress` has not moved for `timeout_s`.

    One timer, moved on only when it fires: re-arming it for every chunk would cost more than the chunk.
    """

    def __init__(
        self, timeout_s: float, last_progress: Callable[[], float], expire: Callable[[], None]
    ) -> None:
        self.started = time.monotonic()
        self._timeout_s, self._last_progress, self._expire = timeout_s, last_progress, expire
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> _Watchdog:
        self._arm(self._timeout_s)
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self, delay_s: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._check)

    def _check(self) -> None:
        quiet_s = time.monotonic() - self._last_progress()
        if quiet_s >= self._timeout_s:
            self._expire()
        else:
            self._arm(self._timeout_s - quiet_s)


async def _until_disconnect(receive: Receive) -> None:
    """FastAPI does not tell a handler that waits, so somebody has to listen."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _body(chunk: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": chunk, "more_body": more}


def _only_comments(chunk: bytes) -> bool:
    """True for SSE keep-alive comments. A network chunk may carry a comment and an event."""
    return all(not line or line.startswith(b":") for line in chunk.split(b"\n"))


def _outcome(status: int, left: bool) -> Outcome:
    if left:
        return Outcome.CANCELLED
    if status < 400:
        return Outcome.SUCCESS
    return {503: Outcome.REJECTED, 504: Outcome.TIMEOUT}.get(status, Outcome.ERROR)
