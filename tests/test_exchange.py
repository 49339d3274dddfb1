"""The state machine of one proxied request: no sockets, no tasks, the clock is the test's."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest

from app.core.config import Config, SystemConfig
from app.core.queue import RequestQueue, Ticket
from app.domain.config_types import Heartbeats
from app.domain.errors import (
    AnswerTooLarge,
    BadRequest,
    ModelError,
    Overloaded,
    QueueFull,
    RouterError,
    ShuttingDown,
)
from app.domain.priority import Priority
from app.domain.request_fingerprint import Work
from app.domain.status import Status
from app.domain.views import ModelView, ProcessView
from app.models.lifecycle import Lifecycle
from app.models.restarts import RestartLimits
from app.proxy import timeout_and_crash_errors
from app.proxy.answer_mode import HELD_BYTES
from app.proxy.answer_reader import AnswerHead
from app.proxy.dialect_by_path import dialect_of
from app.proxy.dialects.anthropic_stream import MessagesTranslator
from app.proxy.dialects.shown_wait import ShowWait
from app.proxy.dialects.translation_interface import Asked, Times
from app.proxy.exchange import Exchange
from app.proxy.exchange_interfaces import Surroundings, UpstreamGone
from app.proxy.forwarded_headers import Headers, from_lines
from app.proxy.phase import Phase
from app.proxy.reply import Reply
from app.proxy.request_body import RequestBody
from app.proxy.request_memory_limit import ClientMemory
from app.proxy.request_record import RequestRecord, RoutedRequest
from app.proxy.timeouts_and_heartbeats import HEAD_WAITS_S, HEARTBEAT_S

SYSTEM = SystemConfig(queue_timeout_sec=30)
JSON: Headers = [(b"content-type", b"application/json")]
EVENTS: Headers = [(b"content-type", b"text/event-stream"), (b"keep-alive", b"timeout=5")]
EVENT = b"data: 1\n\n"
LOST = UpstreamGone("connection reset")
STALE = UpstreamGone("closed", stale=True)


class Link:
    """A connection to llama-server; keeps what it is told to do."""

    def __init__(self) -> None:
        self.asked: list[tuple[RoutedRequest, str, Any]] = []
        """For what, with which key, and the body."""
        self.is_fresh: bool | None = None
        self.released = self.resumed = 0

    def ask(self, request: RoutedRequest, api_key: str, body: Any, listener: Any, *, is_fresh: bool) -> None:
        self.asked.append((request, api_key, body))
        self.is_fresh = is_fresh

    def release(self) -> None:
        self.released += 1

    def resume(self) -> None:
        self.resumed += 1


class Pending:
    is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class World:
    """All seams of one exchange, and the model that it is for."""

    def __init__(
        self,
        *,
        stream: bool = False,
        method: str = "POST",
        endpoint: str = "/v1/x",
        heartbeats: Heartbeats = Heartbeats.COMMENTS,
        translator: Any = None,
        again: Any = None,
        is_step: bool = False,
        kept_bytes: int = 0,
        show_wait: ShowWait | None = None,
    ) -> None:
        self.now = 1000.0
        self.wakes_at = 0.0
        self.queue = RequestQueue(slots=1, max_waiting=10)
        self.runner: Any = Runner()
        self.status, self.alias = Status.READY, "m"
        self.lifecycle = Lifecycle("m", RestartLimits(3, 600, 2), 890.0)
        self.lifecycle.load_started, self.lifecycle.ready_since = 890.0, 900.0
        self.load_progress: float | None = None
        self.spec = SimpleNamespace(request_timeout_s=20)
        self.asked_about: list[float] = []
        self.pause_s = 0.0
        self.crash_inquiry = self
        # slots
        self.is_full = False
        self.reason: str | None = None
        self.entered: list[Ticket] = []
        self.left: list[Ticket] = []
        self.given_up_tickets: list[Ticket] = []
        self.ended_with: list[Any] = []
        self.waits_for_exit: Pending | None = None
        # links
        self.link = Link()
        self.has_link = True
        self.ahead = 0
        self.opening: Pending | None = None
        # downstream
        self.heads: list[tuple[int, dict[bytes, bytes], int | None]] = []
        self.sent = b""
        self.is_complete = self.is_cut = self.is_aborted = self.is_slow = False
        request = RoutedRequest(
            endpoint, method, endpoint, b"accept: x\r\n", stream, not stream, Priority.NORMAL, False, "id", ""
        )
        record = RequestRecord(request, self.alias, Ticket(Priority.NORMAL, self.now, 30.0))
        everything: Any = self
        self.memory, self.filled = ClientMemory(Config(), 1024), 0
        body = RequestBody(self.memory)
        body.add(b"body")
        self.exchange = Exchange(
            everything,
            record,
            body,
            Reply(
                everything,
                record,
                lambda: self.now,
                dialect_of(endpoint),
                heartbeats=heartbeats,
                memory=self.memory,
                asked=Asked(b"", stream, translator, again=again, is_step=is_step, kept_bytes=kept_bytes),
                show_wait=show_wait,
            ),
            Surroundings(everything, Links(self), everything, SYSTEM, lambda: self.now, self._wake),
        )

    def _wake(self, delay_s: float) -> None:
        self.wakes_at = self.now + delay_s

    def view(self) -> ModelView:
        process = ProcessView(self.status, load_progress=self.load_progress)
        return ModelView(self.alias, self.status, processes=(process,))

    def pass_time(self, seconds: float) -> None:
        """With all the calls that were asked for."""
        until = self.now + seconds
        while self.wakes_at and self.wakes_at <= until and self.exchange.phase is not Phase.ENDED:
            self.now, self.wakes_at = max(self.now, self.wakes_at), 0.0
            self.exchange.due(self.now)
        self.now = until

    # --- what takes long

    def do(self, work: Callable[[], Any], tell: Callable[[Any], None], *, next_: bool) -> Pending:
        self.beside = (work, tell)
        self.working = Pending()
        return self.working

    def work(self) -> None:
        work, tell = self.beside
        tell(work())

    # --- slots

    def enter(self, exchange: Exchange) -> Pending | None:
        self.entered.append(exchange.ticket)
        exchange.ticket.owner = exchange
        if not self.is_full:
            exchange.ticket.grant(self.now)
        return None

    def leave(self, exchange: Exchange) -> None:
        exchange.ticket.owner = None
        if exchange.ticket not in self.left:
            self.left.append(exchange.ticket)

    def given_up(self, exchange: Exchange) -> None:
        assert exchange.ticket not in self.left and exchange.asks_for() is not None
        self.given_up_tickets.append(exchange.ticket)

    def waits_because(self, exchange: Exchange) -> str | None:
        return self.reason

    def patience_s(self, exchange: Exchange, runner: Any, quiet_since: float) -> float:
        self.asked_about.append(self.now - quiet_since)
        limit_s: float = self.spec.request_timeout_s
        return max(quiet_since + limit_s - self.now, 0.0)

    def awake_s(self, since: float, now: float) -> float:
        return now - since - self.pause_s

    def lost(self, exchange: Exchange, runner: Any) -> Pending:
        assert runner is self.runner or runner is None
        self.waits_for_exit = Pending()
        return self.waits_for_exit

    def gone(self) -> None:
        """The process that was lost has ended: who has begun, or has no replay left, is told."""
        is_over = self.exchange.record.has_begun or not self.exchange.ticket.replays_left
        model: Any = self
        self.exchange.process_gone(timeout_and_crash_errors.crashed(model) if is_over else None)

    def may_forget(self, size: int) -> bool:
        return size > 0

    def ended(self, exchange: Exchange) -> None:
        self.leave(exchange)
        self.ended_with.append(exchange.record.event())

    # --- downstream

    def start(self, status: int, lines: bytes, length: int | None) -> None:
        self.heads.append((status, dict(from_lines(lines)), length))

    def write(self, data: bytes, last: bool) -> bool:
        assert self.heads, "a body without a head"
        assert not (self.is_complete or self.is_cut or self.is_aborted)
        self.sent += data
        self.is_complete = last
        return not self.is_slow

    def cut(self) -> None:
        self.is_cut = True

    def abort(self) -> None:
        self.is_aborted = True

    # --- short for

    def asked(self) -> Exchange:
        self.exchange.begin()
        assert self.exchange.phase is Phase.ASKED
        return self.exchange

    def streaming(self) -> Exchange:
        exchange = self.asked()
        exchange.head(AnswerHead(200, EVENTS), None)
        exchange.body(EVENT, False)
        return exchange

    @property
    def code(self) -> str:
        """Of the error that is the answer, or the last event."""
        text = self.sent.split(b"data: ")[-1]
        code: str = json.loads(text)["error"]["code"]
        return code

    def begin(self, *, is_full: bool = False, has_link: bool = True) -> None:
        self.is_full, self.has_link = is_full, has_link
        self.exchange.begin()

    def fill(self, *, but: int = 0) -> None:
        """By others."""
        size = self.memory.limit - self.memory.held - but
        self.memory.take(size)
        self.filled += size

    def check_over(self, *, error: str | None, status: int) -> None:
        """Everything has been given back, once, and the observers know."""
        assert self.exchange.phase is Phase.ENDED
        (event,) = self.ended_with
        assert (event.error, event.status) == (error, status)
        assert set(map(id, self.entered)) <= set(map(id, self.left)) or not self.entered
        assert self.exchange._link is self.exchange._pending is None
        assert self.memory.held == self.filled
        assert self.exchange.ticket.owner is None


class Runner:
    port, api_key, phase = 8085, "secret", Status.READY


class Links:
    def __init__(self, world: World) -> None:
        self._world = world

    def take(self, port: int) -> Link | None:
        assert port == Runner.port
        return self._world.link if self._world.has_link else None

    def open(self, port: int, user: Any) -> Pending:
        assert port == Runner.port
        self._world.opening = Pending()
        return self._world.opening

    def open_ahead(self, port: int, wanted: int) -> None:
        self._world.ahead = wanted


# --- the usual ways


def test_a_plain_answer_is_passed_on_whole_in_one_write() -> None:
    world = World()
    exchange = world.asked()
    (asked,) = world.link.asked
    assert asked == (world.exchange.record.request, "secret", b"body")
    world.now += 2
    exchange.head(AnswerHead(201, JSON), 4)
    assert exchange.body(b"{", False)
    assert world.heads == []
    exchange.body(b"1.}", True)
    ((status, headers, length),) = world.heads
    assert (status, length, world.sent, world.is_complete) == (201, 4, b"{1.}", True)
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"x-request-id"] == b"id"
    assert headers[b"x-queue-wait-ms"] == headers[b"x-model-load-ms"] == b"0"
    world.check_over(error=None, status=201)
    assert (world.link.released, world.ended_with[0].ttft_s, world.ended_with[0].duration_s > 0) == (
        1,
        2,
        True,
    )


def test_a_stream_passes_event_by_event() -> None:
    world = World(stream=True)
    exchange = world.streaming()
    ((status, headers, length),) = world.heads
    assert (status, length, world.sent) == (200, None, EVENT)
    assert (headers[b"cache-control"], headers[b"x-accel-buffering"]) == (b"no-cache", b"no")
    assert b"keep-alive" not in headers
    assert not world.link.asked[0][0].keep_alive
    exchange.body(EVENT, False)
    exchange.body(b"data: [DONE]\n\n", True)
    assert world.sent == EVENT + EVENT + b"data: [DONE]\n\n"
    world.check_over(error=None, status=200)


def test_what_is_long_or_of_unknown_length_passes_as_it_comes() -> None:
    for length in (None, HELD_BYTES + 1):
        world = World()
        exchange = world.asked()
        exchange.head(AnswerHead(200, JSON), length)
        exchange.body(b"some", False)
        assert (world.sent, world.heads[0][2], world.is_complete) == (b"some", length, False)
        exchange.body(b"more", True)
        assert (world.sent, world.is_complete) == (b"somemore", True)


@pytest.mark.parametrize(
    ("method", "status", "length"), [("HEAD", 200, 5), ("GET", 304, 5), ("GET", 204, None)]
)
def test_an_answer_without_a_body_keeps_its_length(method: str, status: int, length: int | None) -> None:
    world = World(method=method)
    exchange = world.asked()
    exchange.head(AnswerHead(status, JSON), length)
    exchange.body(b"", True)
    assert (world.heads[0][0], world.heads[0][2], world.sent) == (status, length, b"")
    world.check_over(error=None, status=status)
    assert world.ended_with[0].ttft_s is None


def test_llama_servers_own_error_passes_as_it_is_on_its_own_paths() -> None:
    world = World(stream=True, endpoint="/infill")
    exchange = world.asked()
    exchange.head(AnswerHead(400, JSON), 2)
    exchange.body(b"{}", True)
    assert (world.heads[0][0], world.sent) == (400, b"{}")
    world.check_over(error=None, status=400)


@pytest.mark.parametrize("length", [60, None])
def test_llama_servers_own_error_is_made_whole_on_the_paths_of_other_apis(length: int | None) -> None:
    """The status is by the meaning of what it says."""
    world = World()
    exchange = world.asked()
    exchange.head(AnswerHead(500, JSON), length)
    exchange.body(b'{"error":{"code":500,"message":"Invalid base64', False)
    exchange.body(b' value","type":"server_error","n":1}}', True)
    ((status, headers, sent),) = world.heads
    assert (status, sent) == (400, len(world.sent))
    assert json.loads(world.sent)["error"] == {
        "message": "Invalid base64 value",
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_request",
        "n": 1,
    }
    assert (headers[b"x-should-retry"], headers[b"x-queue-wait-ms"]) == (b"false", b"0")
    world.check_over(error=None, status=400)


@pytest.mark.parametrize("began", [b"", EVENT])
def test_an_error_that_llama_server_tells_in_its_stream_is_made_whole(began: bytes) -> None:
    world = World(stream=True)
    exchange = world.streaming()
    world.sent = b""
    exchange.body(began + b'data: {"error":{"code":500,"message"', False)
    assert world.sent == began
    exchange.body(b':"Compute error.","type":"server_error"}}\n\n', False)
    exchange.body(b"", True)
    assert world.sent.startswith(began + b"data: {")
    assert world.code == "server"
    assert world.sent.count(b"data: {") == 1
    assert (world.is_complete, world.is_cut) == (False, True)  # as behind the router's own
    world.check_over(error=None, status=500)


def test_a_text_that_looks_like_an_error_is_none() -> None:
    world = World(stream=True)
    exchange = world.streaming()
    text = b"data: " + json.dumps({"content": 'data: {"error"'}).encode() + b"\n\n"
    exchange.body(text, True)
    assert world.sent == EVENT + text
    world.check_over(error=None, status=200)


# --- translated answers


class Shouting:
    """Waits for whole lines."""

    failure: RouterError | None = None
    held = 0
    is_over = False

    def __init__(self, _times: Times) -> None:
        self.rest = b""

    @property
    def waiting(self) -> int:
        return len(self.rest)

    def whole(self, body: bytes) -> bytes:
        return body.upper() + b"!"

    def done(self) -> None:
        pass

    def feed(self, data: bytes) -> bytes:
        *lines, self.rest = (self.rest + data).split(b"\n")
        if b"broken" in lines:
            self.failure = ModelError("m", status=500, type_="server_error", code="server")
            return b""
        return b"".join(line.upper() + b"\n" for line in lines)

    def end(self) -> bytes:
        return b"" if self.failure else b"bye"

    def fail(self, error: RouterError) -> bytes:
        return b"alas: " + error.code.encode()


def test_a_plain_answer_is_translated_whole() -> None:
    world = World(translator=Shouting)
    exchange = world.asked()
    exchange.head(AnswerHead(200, JSON), None)
    exchange.body(b"some", False)
    assert world.heads == []
    exchange.body(b"thing", True)
    assert (world.sent, world.heads[0][2]) == (b"SOMETHING!", 10)


LARGE = b"a" * 600_000


def test_a_large_answer_is_translated_beside_the_loop_and_passed_on_in_pieces() -> None:
    """Slot and connection are free meanwhile, and it has its place in memory."""
    world = World(translator=Shouting)
    exchange = world.asked()
    exchange.head(AnswerHead(200, JSON), len(LARGE))
    exchange.body(LARGE[:400_000], False)
    assert world.memory.held >= len(LARGE)
    exchange.body(LARGE[400_000:], True)
    assert (exchange.phase, world.heads) == (Phase.TRANSLATING, [])
    assert (world.left, world.link.released) == ([exchange.ticket], 1)
    assert world.memory.held >= 2 * len(LARGE)
    world.work()
    assert 0 < len(world.sent) < len(LARGE)
    world.pass_time(0)
    assert (world.sent, world.is_complete) == (LARGE.upper() + b"!", True)
    world.check_over(error=None, status=200)


def test_a_slow_client_gets_a_large_answer_as_it_takes_it() -> None:
    world = World(translator=Shouting)
    exchange = world.asked()
    exchange.head(AnswerHead(200, JSON), None)
    exchange.body(LARGE, True)
    world.is_slow = True
    world.work()
    had = len(world.sent)
    world.pass_time(10)
    assert len(world.sent) == had
    exchange.writable()
    assert had < len(world.sent) < len(LARGE)
    world.pass_time(21)
    assert world.is_aborted
    world.check_over(error=None, status=499)


def test_a_client_that_leaves_while_its_answer_is_translated_leaves_nothing() -> None:
    world = World(translator=Shouting)
    exchange = world.asked()
    exchange.head(AnswerHead(200, JSON), None)
    exchange.body(LARGE, True)
    world.pass_time(100)  # that is not its fault
    assert not world.is_aborted
    exchange.client_left()
    assert world.working.is_cancelled
    world.check_over(error=None, status=499)


@pytest.mark.parametrize("announced", [True, False])
def test_an_answer_without_a_place_in_memory_is_refused(announced: bool) -> None:
    world = World(translator=Shouting)
    exchange = world.asked()
    world.fill(but=len(LARGE) // 2)
    exchange.head(AnswerHead(200, JSON), len(LARGE) if announced else None)
    exchange.body(LARGE[:1] if announced else LARGE, False)
    assert (world.heads[0][0], world.code) == (503, "overloaded")
    world.check_over(error="overloaded", status=503)


def test_the_record_of_a_refused_answer_keeps_no_body() -> None:
    """It is read later, and the frames that its error has passed held the request: 40 MB for minutes."""
    world = World(translator=Shouting)
    exchange = world.asked()
    exchange.head(AnswerHead(200, JSON), None)
    exchange.body(LARGE, False)
    world.fill()
    exchange.body(b"", True)
    world.check_over(error="overloaded", status=503)
    error = exchange.record._error
    assert error is not None and error.__traceback__ is None


@pytest.mark.parametrize("announced", [True, False])
def test_an_answer_that_never_has_a_place_is_no_mistake_of_its_client(announced: bool) -> None:
    world = World(translator=Shouting)
    exchange = world.asked()
    world.memory.limit = len(LARGE) - 1
    exchange.head(AnswerHead(200, JSON), len(LARGE) if announced else None)
    exchange.body(LARGE[:1] if announced else LARGE, False)
    assert (world.heads[0][0], world.code) == (502, "answer_too_large")
    assert world.heads[0][1][b"x-should-retry"] == b"false"
    world.check_over(error="answer_too_large", status=502)


def test_a_bug_in_a_translation_is_told() -> None:
    world = World(translator=Shouting)
    exchange = world.asked()
    exchange.head(AnswerHead(200, JSON), None)
    exchange.body(LARGE, True)
    exchange.translated(lambda _: None, ValueError("of ours"))
    assert (world.heads[0][0], world.code) == (500, "internal_error")


def streaming_large(world: World) -> Exchange:
    """An event of it is translated beside the event loop."""
    exchange = world.asked()
    exchange.head(AnswerHead(200, EVENTS), None)
    assert exchange.body(LARGE + b"\nb", False) is False, "no more until that is told"
    assert exchange.phase is Phase.TRANSLATING
    return exchange


def test_a_large_event_is_translated_beside_the_loop_and_passed_on_in_pieces() -> None:
    """llama-server waits meanwhile, in its slot."""
    world = World(stream=True, translator=Shouting)
    exchange = streaming_large(world)
    exchange.writable()
    world.pass_time(100)  # its client has no part in that
    assert (world.heads, world.left, world.link.released, world.link.resumed) == ([], [], 0, 0)
    world.work()
    assert (0 < len(world.sent) < len(LARGE), world.link.resumed) == (True, 0)
    assert world.memory.held > len(LARGE)
    world.pass_time(0)
    assert (world.sent, world.link.resumed, exchange.phase) == (LARGE.upper() + b"\n", 1, Phase.ANSWERING)
    exchange.body(b"c\n", True)
    assert world.sent[len(LARGE) :] == b"\nBC\nbye"
    world.check_over(error=None, status=200)


def test_a_few_bytes_that_complete_a_large_event_are_translated_beside_the_loop_too() -> None:
    world = World(stream=True, translator=Shouting)
    exchange = world.asked()
    exchange.head(AnswerHead(200, EVENTS), None)
    for at in range(0, 40_000, 1000):
        if not exchange.body(LARGE[at : at + 1000], False):
            world.work()
    assert exchange.body(b"\n", False) is False
    assert world.sent == b""
    world.work()
    assert world.sent == LARGE[:40_000].upper() + b"\n"


def test_a_slow_client_gets_a_large_event_as_it_takes_it() -> None:
    world = World(stream=True, translator=Shouting)
    exchange = streaming_large(world)
    world.is_slow = True
    world.work()
    had = len(world.sent)
    world.pass_time(10)
    assert (len(world.sent), world.link.resumed) == (had, 0)
    while len(world.sent) < len(LARGE):
        exchange.writable()
    assert world.link.resumed == 0
    world.is_slow = False
    exchange.writable()
    assert world.link.resumed == 1


def test_a_large_end_of_a_stream_gives_its_slot_back_first() -> None:
    world = World(stream=True, translator=Shouting)
    exchange = world.asked()
    exchange.head(AnswerHead(200, EVENTS), None)
    exchange.body(LARGE + b"\n", True)
    assert (world.left, world.link.released) == ([exchange.ticket], 1)
    world.work()
    world.pass_time(0)
    assert (world.sent, world.is_complete) == (LARGE.upper() + b"\nbye", True)
    world.check_over(error=None, status=200)


def test_an_error_in_a_large_end_of_a_stream_is_told() -> None:
    world = World(stream=True, translator=Shouting)
    exchange = world.asked()
    exchange.head(AnswerHead(200, EVENTS), None)
    exchange.body(b"one\n", False)
    exchange.body(LARGE + b"\nbroken\n", True)
    world.work()
    world.pass_time(0)
    assert world.sent == b"ONE\nalas: server"
    assert exchange.record.status == 500


def test_an_event_that_is_too_large_is_told() -> None:
    world = World(stream=True, translator=Shouting)
    exchange = streaming_large(world)
    exchange.translated(lambda _: None, AnswerTooLarge("an event of more than 8 MB"))
    assert (world.heads[0][0], world.code) == (502, "answer_too_large")
    world.check_over(error="answer_too_large", status=502)


def test_a_process_that_fails_while_a_first_event_is_translated_is_asked_again() -> None:
    world = World(stream=True, translator=Shouting)
    exchange = streaming_large(world)
    exchange.cut()
    assert world.working.is_cancelled
    world.gone()
    assert exchange.phase is Phase.ASKED
    exchange.head(AnswerHead(200, EVENTS), None)
    exchange.body(b"one\n", True)
    assert world.sent == b"ONE\nbye"


@pytest.mark.parametrize("translated", ["before", "while it exits", "after"])
def test_a_process_that_fails_while_an_event_is_translated_is_told_behind_that(translated: str) -> None:
    world = World(stream=True, translator=Shouting)
    exchange = world.asked()
    exchange.head(AnswerHead(200, EVENTS), None)
    exchange.body(b"one\n", False)
    exchange.body(LARGE + b"\n", False)
    if translated == "before":
        world.work()
    exchange.cut()
    if translated == "while it exits":
        world.work()
        assert world.sent == b"ONE\n", "its slot is not free yet"
    world.gone()
    if translated == "after":
        world.pass_time(0)
        assert (world.sent, world.left) == (b"ONE\n", [exchange.ticket])
        world.work()
    world.pass_time(0)
    assert world.sent == b"ONE\n" + LARGE.upper() + b"\nalas: model_crashed"
    assert not world.working.is_cancelled
    world.check_over(error="model_crashed", status=502)


def test_a_client_that_takes_half_an_event_of_a_process_that_failed_is_cut_off() -> None:
    world = World(stream=True, translator=Shouting)
    exchange = world.asked()
    exchange.head(AnswerHead(200, EVENTS), None)
    exchange.body(b"one\n", False)
    exchange.body(LARGE + b"\n", False)
    exchange.cut()
    world.gone()
    world.is_slow = True
    world.work()
    had = world.sent
    world.pass_time(1000)
    assert (world.sent, world.is_aborted, exchange.phase) == (had, True, Phase.ENDED)


def test_a_replay_leaves_what_was_translated_behind_a_heartbeat() -> None:
    """Its head had been sent, but nothing of an answer."""
    world = World(stream=True, translator=Shouting)
    world.is_full = True
    exchange = world.exchange
    exchange.begin()
    world.pass_time(6)
    assert world.heads
    exchange.ticket.grant(world.now)
    exchange.head(AnswerHead(200, EVENTS), None)
    exchange.body(LARGE + b"\n", False)
    exchange.cut()
    assert not world.working.is_cancelled
    world.is_full = False
    world.gone()
    assert world.working.is_cancelled
    assert exchange.phase is Phase.ASKED


def test_what_a_translator_keeps_of_a_stream_has_its_place() -> None:
    """Counted in steps."""

    class Keeping(Shouting):
        def feed(self, data: bytes) -> bytes:
            self.held += len(data)
            return super().feed(data)

    world = World(stream=True, translator=Keeping)
    before = world.memory.held
    exchange = world.asked()
    exchange.head(AnswerHead(200, EVENTS), None)
    event, kept = b"A" * 9999 + b"\n", 50
    for _ in range(kept):
        exchange.body(event, False)
    assert len(event) * (kept - 10) <= world.memory.held - before < len(event) * (kept + 10)
    world.fill()
    while exchange.phase is Phase.ANSWERING:
        exchange.body(event, False)
        kept += 1
    assert kept <= 70
    assert world.sent == event * (kept - 1) + b"alas: overloaded"
    world.check_over(error="overloaded", status=503)


def test_a_connection_that_breaks_while_an_event_is_translated_ends_that() -> None:
    world = World(stream=True, translator=Shouting)
    streaming_large(world).broken(LOST)
    assert world.working.is_cancelled
    world.gone()
    assert world.exchange.phase is Phase.ASKED


def test_a_connection_that_could_not_be_opened_is_not_withdrawn() -> None:
    """Its task is the one that tells so."""
    world = World()
    world.begin(has_link=False)
    assert world.opening is not None
    world.exchange.broken(LOST)
    assert not world.opening.is_cancelled


def test_a_stream_has_no_length() -> None:
    """What comes to it may be more: a translation, an error."""
    world = World(stream=True)
    exchange = world.asked()
    exchange.head(AnswerHead(200, EVENTS), len(EVENT))
    exchange.body(EVENT, True)
    assert world.heads[0][2] is None


def test_the_head_of_an_answer_that_is_lost_is_not_sent() -> None:
    world = World(stream=True)
    exchange = world.asked()
    exchange.head(AnswerHead(200, EVENTS), None)
    exchange.broken(LOST)
    world.gone()
    assert exchange.phase is Phase.ASKED
    world.pass_time(2 * HEAD_WAITS_S)
    exchange.due(world.now)
    assert world.heads == []


def test_what_a_translator_keeps_of_a_request_has_its_place() -> None:
    world = World(translator=Shouting, kept_bytes=1_000_000)
    assert world.memory.held == len(b"body") + 1_000_000
    exchange = world.asked()
    exchange.head(AnswerHead(200, JSON), None)
    exchange.body(b"some", True)
    world.check_over(error=None, status=200)


def test_a_stream_is_settled_before_its_last_event_is_sent() -> None:
    """Its client may ask at once for what is stored then."""

    class Storing(Shouting):
        def feed(self, data: bytes) -> bytes:
            self.is_over = data == b"two\n"
            return super().feed(data)

        def done(self) -> None:
            stored.append(world.sent)

    stored: list[bytes] = []
    world = World(stream=True, translator=Storing)
    exchange = world.asked()
    exchange.head(AnswerHead(200, EVENTS), None)
    exchange.body(b"one\n", False)
    assert stored == []
    exchange.body(b"two\n", False)
    assert (stored, world.sent) == ([b"ONE\n"], b"ONE\nTWO\n")


def test_a_large_event_that_cannot_be_translated_is_told_as_an_event() -> None:
    world = World(stream=True, translator=Shouting)
    exchange = world.asked()
    exchange.head(AnswerHead(200, EVENTS), None)
    exchange.body(b"one\n", False)
    exchange.body(LARGE + b"\n", False)
    _, tell = world.beside
    tell(AnswerTooLarge("too many values"))
    assert world.sent == b"ONE\nalas: answer_too_large"
    world.check_over(error="answer_too_large", status=502)


@pytest.mark.parametrize("is_found", [True, False])
def test_a_large_event_without_a_place_is_told_as_an_event(is_found: bool) -> None:
    """Before it is translated, or when it is too large then. Nothing of it has been sent."""
    world = World(stream=True, translator=Shouting)
    exchange = world.asked()
    exchange.head(AnswerHead(200, EVENTS), None)
    exchange.body(b"one\n", False)
    if is_found:
        exchange.body(LARGE + b"\n", False)
    world.fill()
    if is_found:
        _, tell = world.beside
        tell(LARGE * 3)
    else:
        exchange.body(LARGE + b"\n", False)
    assert world.sent == b"ONE\nalas: overloaded"
    world.check_over(error="overloaded", status=503)


def test_a_stream_is_translated_as_it_comes() -> None:
    world = World(stream=True, translator=Shouting)
    exchange = world.asked()
    exchange.head(AnswerHead(200, EVENTS), None)
    assert world.heads == []
    exchange.body(b"one\ntw", False)
    assert world.sent == b"ONE\n"
    exchange.body(b":\n\n", False)
    exchange.body(b"o\n", False)
    exchange.body(b"", True)
    assert (world.sent, world.is_complete) == (b"ONE\n:\n\nTWO\nbye", True)
    world.check_over(error=None, status=200)


def test_the_translator_tells_how_a_stream_that_has_begun_fails() -> None:
    world = World(stream=True, translator=Shouting)
    exchange = world.asked()
    exchange.head(AnswerHead(200, EVENTS), None)
    exchange.body(b"one\n", False)
    exchange.broken(LOST)
    world.gone()
    assert world.sent == b"ONE\nalas: model_crashed"


def test_the_translator_tells_the_error_that_llama_server_told_in_its_stream() -> None:
    world = World(stream=True, translator=Shouting)
    exchange = world.asked()
    exchange.head(AnswerHead(200, EVENTS), None)
    exchange.body(b"one\nbroken\n", False)
    exchange.body(b"", True)
    assert world.sent == b"alas: server"
    world.check_over(error=None, status=500)


def test_a_replay_has_a_translator_of_its_own() -> None:
    world = World(stream=True, translator=Shouting)
    exchange = world.asked()
    exchange.head(AnswerHead(200, EVENTS), None)
    exchange.broken(LOST)
    world.gone()
    exchange.head(AnswerHead(200, EVENTS), None)
    exchange.body(b"one\n", True)
    assert world.sent == b"ONE\nbye"


def test_an_error_is_not_translated() -> None:
    world = World(translator=Shouting)
    exchange = world.asked()
    exchange.head(AnswerHead(404, JSON), 2)
    exchange.body(b"no", True)
    assert (world.heads[0][0], world.code) == (404, "invalid_request")


# --- asked again


def refused(world: World) -> Exchange:
    exchange = world.asked()
    exchange.head(AnswerHead(400, JSON), 2)
    exchange.body(b'{"error":{"code":400,"message":"too long"}}', True)
    return exchange


def test_a_request_that_is_refused_is_asked_otherwise_in_the_same_slot() -> None:
    world = World(again=lambda error, asked: error.message.encode())
    exchange = refused(world)
    assert (exchange.phase, world.heads) == (Phase.ASKED, [])
    assert world.link.asked[-1][2] == b"too long"
    exchange.head(AnswerHead(200, JSON), 2)
    exchange.body(b"ok", True)
    assert (world.sent, world.is_complete) == (b"ok", True)
    world.check_over(error=None, status=200)


def test_an_error_that_nothing_can_be_done_about_is_told() -> None:
    world = World(again=lambda error, asked: None)
    refused(world)
    assert (world.heads[0][0], world.code) == (400, "invalid_request")


def test_a_client_that_leaves_while_it_is_asked_again_leaves_nothing() -> None:
    world = World(again=lambda error, asked: b"shorter")
    refused(world).client_left()
    world.check_over(error=None, status=499)


class Asking(Shouting):
    """Wants to know more, of what is long; refuses what is empty."""

    def whole(self, body: bytes) -> Any:
        if not body:
            raise BadRequest("nothing")
        then: Any = Shouting
        return Asked(body + b"?", False, then, "/more")


@pytest.mark.parametrize("told", [b"some", LARGE])
def test_the_answer_to_a_step_is_another_question_in_the_same_slot(told: bytes) -> None:
    world = World(translator=Asking, is_step=True)
    exchange = world.asked()
    exchange.head(AnswerHead(200, JSON), None)
    exchange.body(told, True)
    if told is LARGE:
        world.work()
    assert (exchange.phase, world.heads, world.left) == (Phase.ASKED, [], [])
    request, _, body = world.link.asked[-1]
    assert (request.path, body) == ("/more", told + b"?")
    exchange.head(AnswerHead(200, JSON), 2)
    exchange.body(b"ok", True)
    if told is LARGE:
        world.work()
    assert (world.sent, world.is_complete) == (b"OK!", True)
    world.check_over(error=None, status=200)


def test_a_process_that_dies_after_a_step_is_asked_for_the_next_one_again() -> None:
    world = World(translator=Asking, is_step=True)
    exchange = world.asked()
    exchange.head(AnswerHead(200, JSON), None)
    exchange.body(b"some", True)
    exchange.broken(LOST)
    world.gone()
    assert [(request.path, body) for request, _, body in world.link.asked[1:]] == [("/more", b"some?")] * 2


def test_a_step_may_find_what_is_wrong_with_a_request() -> None:
    world = World(translator=Asking, is_step=True)
    exchange = world.asked()
    exchange.head(AnswerHead(200, JSON), 0)
    exchange.body(b"", True)
    assert (world.heads[0][0], world.code) == (400, "invalid_request")


def test_a_question_without_a_place_in_memory_is_refused() -> None:
    class Longer(Asking):
        def whole(self, body: bytes) -> Any:
            return super().whole(body * 3)

    world = World(translator=Longer, is_step=True)
    exchange = world.asked()
    exchange.head(AnswerHead(200, JSON), None)
    exchange.body(LARGE, True)
    world.fill()
    world.work()
    assert (world.heads[0][0], world.code) == (503, "overloaded")


# --- the head of a stream


def test_a_streams_head_goes_with_its_first_event() -> None:
    world = World(stream=True)
    exchange = world.asked()
    exchange.head(AnswerHead(200, EVENTS), None)
    assert world.heads == []
    world.pass_time(HEAD_WAITS_S / 2)
    exchange.body(EVENT, False)
    assert world.sent == EVENT


def test_a_streams_head_does_not_wait_long_for_its_first_event() -> None:
    """A prompt can take minutes. It can still be replayed."""
    world = World(stream=True)
    world.asked().head(AnswerHead(200, EVENTS), None)
    world.pass_time(HEAD_WAITS_S)
    assert (len(world.heads), world.sent) == (1, b"")
    world.exchange.broken(LOST)
    world.gone()
    world.exchange.head(AnswerHead(200, EVENTS), None)
    world.exchange.body(EVENT, True)
    assert (len(world.heads), world.sent) == (1, EVENT)


def test_comments_are_no_progress_and_no_beginning() -> None:
    world = World(stream=True)
    exchange = world.asked()
    exchange.head(AnswerHead(200, EVENTS), None)
    world.now += 15
    exchange.body(b":\n\n", False)
    exchange.writable()  # it took the comment, which it did not have to be waited for
    assert world.sent == b":\n\n"
    assert not exchange.record.has_begun
    world.pass_time(6)
    assert world.code == "upstream_timeout"


def test_what_has_come_of_a_stream_is_counted_and_when_the_last_of_it_came() -> None:
    world = World(stream=True)
    exchange = world.asked()
    exchange.head(AnswerHead(200, EVENTS), None)
    assert exchange.generated == 0
    exchange.body(2 * b'data: {"choices":[]}\n\n', False)
    exchange.body(b":\n\n", False)
    assert exchange.generated == 2
    world.pass_time(20)
    assert world.code == "upstream_timeout"
    assert world.ended_with[0].quiet_s > 0
    assert World().asked().generated is None


# --- waiting


def test_who_waits_is_asked_when_its_ticket_is_granted() -> None:
    world = World()
    world.is_full = True
    world.exchange.begin()
    assert (world.exchange.phase, world.link.asked) == (Phase.QUEUED, [])
    world.now += 7
    world.entered[0].grant(world.now)
    exchange = world.exchange
    exchange.head(AnswerHead(200, JSON), 2)
    exchange.body(b"{}", True)
    assert world.heads[0][1][b"x-queue-wait-ms"] == b"7000"
    assert world.ended_with[0].queue_wait_s == 7


def test_a_stream_that_waits_gets_its_head_and_comments() -> None:
    world = World(stream=True)
    world.is_full, world.status, world.load_progress = True, Status.LOADING, None
    world.exchange.begin()
    world.pass_time(HEARTBEAT_S - 0.1)
    assert world.heads == []
    world.pass_time(0.1)
    assert (world.heads[0][0], world.sent) == (200, b": loading\n\n")
    assert b"x-queue-wait-ms" not in world.heads[0][1]
    world.load_progress = 0.5
    world.pass_time(HEARTBEAT_S)
    world.status = Status.READY
    world.pass_time(HEARTBEAT_S)
    assert world.sent == b": loading\n\n: loading progress=0.50\n\n: queued position=1\n\n"
    world.status, world.reason = Status.OFF, "other programs hold the memory"
    world.pass_time(HEARTBEAT_S)
    assert world.sent.endswith(b': queued position=1 reason="other programs hold the memory"\n\n')
    world.entered[0].grant(world.now)
    world.exchange.head(AnswerHead(200, EVENTS), None)
    world.exchange.body(EVENT, True)
    assert world.sent.endswith(b'memory"\n\n' + EVENT)
    assert len(world.heads) == 1


def test_blank_heartbeats_are_empty_lines_and_llama_servers_own_too() -> None:
    world = World(stream=True, heartbeats=Heartbeats.BLANK)
    world.is_full = True
    world.exchange.begin()
    world.pass_time(HEARTBEAT_S)
    assert (len(world.heads), world.sent) == (1, b"\n")
    world.entered[0].grant(world.now)
    world.exchange.head(AnswerHead(200, EVENTS), None)
    world.exchange.body(b":\n\n", False)
    world.exchange.body(EVENT, True)
    assert world.sent == b"\n\n" + EVENT


@pytest.mark.parametrize("heartbeats", Heartbeats)
def test_a_wait_that_is_shown_is_no_part_of_the_answer(heartbeats: Heartbeats) -> None:
    """Whatever else is configured. The process fails behind it, and the answer is begun anew."""
    world = World(stream=True, heartbeats=heartbeats, show_wait=lambda text: f"<{text}>".encode())
    world.is_full = True
    world.exchange.begin()
    world.pass_time(HEARTBEAT_S)
    assert (len(world.heads), world.sent) == (1, b"<queued position=1>")
    world.entered[0].grant(world.now)
    world.exchange.head(AnswerHead(200, EVENTS), None)
    assert not world.exchange.record.has_begun
    world.exchange.broken(UpstreamGone("it died"))
    world.exchange.process_gone(None)
    world.pass_time(HEARTBEAT_S)
    world.entered[-1].grant(world.now)
    world.exchange.head(AnswerHead(200, EVENTS), None)
    world.exchange.body(EVENT, True)
    assert world.sent == b"<queued position=1>" * 2 + EVENT
    assert world.exchange.record.ticket is not world.entered[-1]
    assert world.ended_with[0].ttft_s == pytest.approx(2 * HEARTBEAT_S)


def test_without_heartbeats_not_even_the_head_comes_before_the_answer() -> None:
    world = World(stream=True, heartbeats=Heartbeats.OFF)
    world.is_full = True
    world.exchange.begin()
    world.pass_time(29.9)
    assert world.heads == []
    world.pass_time(0.1)
    assert (world.code, world.heads[0][0]) == ("queue_timeout", 504)


@pytest.mark.parametrize("endpoint", ["/v1/x", "/v1/messages"])
def test_an_error_of_llama_server_after_our_head_is_an_event(endpoint: str) -> None:
    world = World(stream=True, endpoint=endpoint)
    world.is_full = True
    world.exchange.begin()
    world.pass_time(HEARTBEAT_S)
    world.entered[0].grant(world.now)
    world.exchange.head(AnswerHead(400, JSON), 30)
    world.exchange.body(b'{"error":{', False)
    world.exchange.body(b'"code":"x"}}', True)
    assert world.code == "x"
    assert (b"event: error\n" in world.sent) == (endpoint == "/v1/messages")
    world.check_over(error=None, status=400)


def test_a_plain_request_gets_nothing_while_it_waits() -> None:
    world = World()
    world.is_full = True
    world.exchange.begin()
    world.pass_time(29.9)
    assert world.heads == []


@pytest.mark.parametrize("stream", [False, True])
def test_the_wait_in_the_queue_has_an_end(stream: bool) -> None:
    world = World(stream=stream)
    world.is_full = True
    world.exchange.begin()
    world.pass_time(29.9)
    assert world.exchange.phase is Phase.QUEUED
    world.pass_time(0.1)
    assert (world.code, world.heads[0][0]) == ("queue_timeout", 200 if stream else 504)
    world.check_over(error="queue_timeout", status=504)


@pytest.mark.parametrize("error", [QueueFull("full", retry_after_s=3), Overloaded("over")])
def test_who_is_refused_is_told_why(error: RouterError) -> None:
    world = World()
    world.is_full = True
    world.exchange.begin()
    world.entered[0].refuse(error)
    status, headers, length = world.heads[0]
    assert (status, length, world.code) == (503, len(world.sent), error.code)
    assert headers.get(b"retry-after") == (b"3" if error.retry_after_s else None)
    world.check_over(error=error.code, status=503)


def test_who_waits_for_a_stream_of_others_has_a_connection_opened_ahead() -> None:
    for stream, ahead in ((True, 1), (False, 0)):
        world = World(stream=stream)
        world.is_full = True
        world.queue.push(world.exchange.ticket)
        world.exchange.begin()
        assert world.ahead == ahead


# --- connecting


def test_a_connection_may_take_its_time() -> None:
    world = World()
    world.has_link = False
    world.exchange.begin()
    assert world.exchange.phase is Phase.CONNECTING
    world.exchange.connected(world.link, True)
    assert (world.exchange.phase, world.link.is_fresh) == (Phase.ASKED, True)


def test_a_connection_that_comes_too_late_is_given_back() -> None:
    world = World()
    world.has_link = False
    world.exchange.begin()
    world.exchange.client_left()
    world.exchange.connected(world.link, True)
    assert (world.link.released, world.link.asked) == (1, [])


def test_a_stale_connection_is_replaced_by_a_fresh_one_without_a_replay() -> None:
    world = World()
    exchange = world.asked()
    exchange.broken(STALE)
    assert (exchange.phase, len(world.link.asked), world.opening is not None) == (Phase.CONNECTING, 1, True)
    exchange.connected(world.link, True)
    assert world.link.is_fresh
    assert (exchange.phase, len(world.entered), len(world.link.asked)) == (Phase.ASKED, 1, 2)


def test_no_files_left_is_the_routers_own_word() -> None:
    world = World()
    world.has_link = False
    world.exchange.begin()
    world.exchange.refused(Overloaded("no files", retry_after_s=1))
    assert world.code == "overloaded"
    world.check_over(error="overloaded", status=503)


# --- llama-server fails


@pytest.mark.parametrize("came", ["nothing", "head", "some"])
def test_what_broke_off_unseen_is_asked_for_again_once_its_process_is_gone(came: str) -> None:
    world = World()
    exchange = world.asked()
    if came != "nothing":
        exchange.head(AnswerHead(200, JSON), 4)
    if came == "some":
        exchange.body(b"{", False)
    exchange.broken(LOST)
    assert (exchange.phase, world.left, world.heads) == (Phase.EXITING, [], []), "who ran is still to be seen"
    world.gone()
    assert world.left == [world.entered[0]]
    first, second = world.entered
    assert (second.key, second.order, second.is_replay) == (first.key, first.order, True)
    exchange.head(AnswerHead(200, JSON), 2)
    exchange.body(b"{}", True)
    assert world.sent == b"{}"
    world.check_over(error=None, status=200)


def test_a_second_failure_is_told() -> None:
    world = World()
    world.asked().broken(LOST)
    world.gone()
    world.exchange.broken(LOST)
    world.gone()
    assert (world.heads[0][0], world.code) == (502, "model_crashed")
    world.check_over(error="model_crashed", status=502)


def test_a_crash_uses_up_no_replay() -> None:
    world = World()
    world.asked()
    for _ in range(3):
        world.exchange.broken(LOST)
        world.exchange.ticket.lost_in_crash = True
        world.gone()
        assert world.exchange.phase is Phase.ASKED
    assert world.exchange.ticket.replays_left == 1


def test_what_a_router_that_stops_says_is_told_at_once() -> None:
    world = World(stream=True)
    world.streaming().cut()
    world.exchange.process_gone(ShuttingDown("the router is shutting down"))
    assert (world.code, world.is_cut) == ("shutting_down", True)
    world.check_over(error="shutting_down", status=503)


def test_what_is_asked_for_is_known_by_path_and_body() -> None:
    exchange = World().exchange
    assert exchange.asks_for() == Work("/v1/x", b"body")
    exchange.client_left()
    assert exchange.asks_for() is None


def test_a_stream_that_has_begun_ends_with_an_error_event() -> None:
    world = World(stream=True)
    world.streaming().broken(LOST)
    world.gone()
    assert (world.code, world.is_complete, world.is_cut) == ("model_crashed", False, True)
    world.check_over(error="model_crashed", status=502)


@pytest.mark.parametrize("endpoint", ["/v1/messages", "/v1/responses"])
def test_a_stream_ends_well_behind_an_error_that_no_client_overlooks(endpoint: str) -> None:
    world = World(stream=True, endpoint=endpoint)
    world.streaming().broken(LOST)
    world.gone()
    assert (world.is_complete, world.is_cut) == (True, False)


def test_a_plain_answer_that_has_begun_is_cut_off() -> None:
    world = World()
    exchange = world.asked()
    exchange.head(AnswerHead(200, JSON), None)
    exchange.body(b"{", False)
    exchange.broken(LOST)
    world.gone()
    assert (world.sent, world.is_complete, world.is_aborted) == (b"{", False, True)
    world.check_over(error="model_crashed", status=502)


def test_who_is_cut_is_served_by_the_next_process() -> None:
    world = World()
    exchange = world.asked()
    ticket = exchange.ticket
    assert ticket.owner is not None
    ticket.owner.cut()
    assert (world.link.released, exchange.phase) == (1, Phase.EXITING)
    world.gone()
    assert exchange.phase is Phase.ASKED


def test_a_process_that_is_gone_when_the_ticket_is_granted() -> None:
    world = World()
    world.is_full = True
    world.exchange.begin()
    world.runner = None
    world.entered[0].grant(world.now)
    assert world.exchange.phase is Phase.EXITING


def test_a_replay_waits_its_full_time_again() -> None:
    world = World()
    world.asked()
    world.now += 19
    world.exchange.broken(LOST)
    world.is_full = True
    world.gone()
    world.pass_time(29)
    assert world.exchange.phase is Phase.QUEUED
    world.pass_time(1)
    assert world.code == "queue_timeout"


# --- time


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_does_not_come_is_a_time_out(stream: bool) -> None:
    world = World(stream=stream)
    world.asked()
    world.pass_time(19.9)
    assert world.exchange.phase is Phase.ASKED
    world.pass_time(0.1)
    assert (world.heads[0][0], world.code) == (504, "upstream_timeout")
    assert world.link.released == 1
    world.check_over(error="upstream_timeout", status=504)


def test_every_piece_is_progress() -> None:
    for stream in (False, True):
        world = World(stream=stream)
        exchange = world.asked()
        exchange.head(AnswerHead(200, EVENTS if stream else JSON), None if stream else 100)
        for _ in range(5):
            world.pass_time(15)
            exchange.body(EVENT, False)
        assert exchange.phase is Phase.ANSWERING
        world.pass_time(20)
        assert world.code == "upstream_timeout"


def test_a_connection_that_is_never_there_is_a_time_out() -> None:
    world = World()
    world.has_link = False
    world.exchange.begin()
    world.pass_time(20)
    assert world.code == "upstream_timeout"
    assert world.opening is not None
    assert world.opening.is_cancelled


# --- the client


def test_a_slow_client_stops_llama_server() -> None:
    world = World(stream=True)
    exchange = world.streaming()
    world.is_slow = True
    assert exchange.body(EVENT, False) is False
    exchange.writable()
    assert world.link.resumed == 1
    exchange.writable()
    assert world.link.resumed == 1


def test_a_client_that_stops_reading_loses_its_slot() -> None:
    world = World(stream=True)
    exchange = world.streaming()
    world.is_slow = True
    exchange.body(EVENT, False)
    world.pass_time(20)
    assert world.is_aborted
    world.check_over(error=None, status=499)


def test_a_client_that_reads_at_times_keeps_its_slot() -> None:
    world = World(stream=True)
    exchange = world.streaming()
    for _ in range(3):
        world.is_slow = True
        exchange.body(EVENT, False)
        world.pass_time(15)
        exchange.writable()
    assert exchange.phase is Phase.ANSWERING


def test_the_end_that_comes_while_the_client_is_slow_is_not_lost() -> None:
    world = World(stream=True)
    exchange = world.streaming()
    world.is_slow = True
    assert exchange.body(b"data: last\n\n", True)
    assert world.is_complete
    world.check_over(error=None, status=200)


WAYS: dict[str, Callable[[World], object]] = {
    "queued": lambda world: world.begin(is_full=True),
    "connecting": lambda world: world.begin(has_link=False),
    "asked": lambda world: world.asked(),
    "answering": lambda world: world.streaming(),
    "exiting": lambda world: world.asked().broken(LOST),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_client_may_leave_at_any_point(way: Callable[[World], object]) -> None:
    world = World(stream=True)
    way(world)
    link, heads = world.exchange._link, len(world.heads)
    world.exchange.client_left()
    assert len(world.heads) == heads
    assert world.link.released == (link is not None)
    for pending in (world.opening, world.waits_for_exit):
        assert pending is None or pending.is_cancelled
    world.check_over(error=None, status=499)


LAST_EVENTS = {
    "/v1/chat/completions": b"data: [DONE]\n\n",
    "/v1/completions": b"data: [DONE]\n\n",
    "/completion": b'data: {"content":"","stop":true,"timings":{}}\n\n',
    "/v1/messages": b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
}


@pytest.mark.parametrize(("endpoint", "last"), LAST_EVENTS.items(), ids=LAST_EVENTS)
def test_a_client_that_leaves_behind_the_last_event_has_its_answer(endpoint: str, last: bytes) -> None:
    translator = partial(MessagesTranslator, "m") if endpoint == "/v1/messages" else None
    for cut in (0, 9, len(last) - 1):
        world = World(stream=True, endpoint=endpoint, translator=translator)
        exchange = world.streaming()
        exchange.body(b'data: {"content":"data: [DONE] \\"stop\\":true"}\n\n' + last[:cut], False)
        exchange.body(last[cut:], False)
        exchange.client_left()
        world.check_over(error=None, status=200)
        assert world.link.released == 1


@pytest.mark.parametrize(("endpoint", "last"), LAST_EVENTS.items(), ids=LAST_EVENTS)
def test_a_client_that_leaves_before_the_last_event_has_left(endpoint: str, last: bytes) -> None:
    translator = partial(MessagesTranslator, "m") if endpoint == "/v1/messages" else None
    for piece in (b'data: {"content":"data: [DONE] \\"stop\\":true"}\n\n', last[:-2]):
        world = World(stream=True, endpoint=endpoint, translator=translator)
        exchange = world.streaming()
        exchange.body(piece, False)
        exchange.client_left()
        world.check_over(error=None, status=499)


def test_a_client_that_leaves_without_having_read_the_last_event_has_left() -> None:
    world = World(stream=True)
    exchange, world.is_slow = world.streaming(), True
    assert not exchange.body(LAST_EVENTS["/v1/completions"], False)
    exchange.client_left()
    world.check_over(error=None, status=499)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_nothing_happens_after_the_end(way: Callable[[World], object]) -> None:
    """Timers and callbacks may still be on their way."""
    world = World(stream=True)
    way(world)
    exchange = world.exchange
    exchange.client_left()
    sent = world.sent
    exchange.due(world.now + 1000)
    exchange.writable()
    exchange.client_left()
    exchange.connected(Link(), True)
    assert (world.sent, len(world.ended_with), exchange.phase) == (sent, 1, Phase.ENDED)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_who_leaves_before_the_answer_comes_is_given_up(way: Callable[[World], object]) -> None:
    """llama-server finds out by itself only where it writes events."""
    world = World(stream=True)
    way(world)
    is_given_up = world.exchange.phase is Phase.ASKED
    world.exchange.client_left()
    assert len(world.given_up_tickets) == is_given_up


def test_a_plain_answer_that_computes_for_too_long_is_given_up() -> None:
    world = World()
    world.asked()
    world.pass_time(20)
    assert (world.code, len(world.given_up_tickets)) == ("upstream_timeout", 1)


def test_an_answer_that_is_whole_is_not_given_up() -> None:
    world = World()
    exchange = world.asked()
    exchange.head(AnswerHead(200, JSON), 2)
    exchange.body(b"{}", True)
    exchange.client_left()
    assert not world.given_up_tickets


def test_a_client_may_leave_while_it_is_written_to() -> None:
    world = World()
    exchange = world.asked()
    exchange.head(AnswerHead(200, JSON), 2)
    write = world.write

    def leaving(data: bytes, last: bool) -> bool:
        exchange.client_left()
        return write(data, last)

    cast(Any, world).write = leaving
    exchange.body(b"{}", True)
    world.check_over(error=None, status=499)


# --- bugs


def fail(*_: object, **__: object) -> Any:
    raise RuntimeError("a bug")


BUGS: dict[str, Callable[[World], object]] = {
    "enter": lambda world: setattr(world, "enter", fail),
    "ask": lambda world: setattr(world.link, "ask", fail),
}


@pytest.mark.parametrize("place", BUGS)
def test_a_bug_is_logged_and_answered(place: str, caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    BUGS[place](world)
    world.exchange.begin()
    assert (world.heads[0][0], world.code) == (500, "internal_error")
    assert "RuntimeError: a bug" in caplog.text
    world.check_over(error="internal_error", status=500)


def test_a_bug_that_cannot_be_told_ends_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    exchange = world.asked()
    cast(Any, world).start = fail
    exchange.head(AnswerHead(200, JSON), 2)
    exchange.body(b"{}", True)
    assert world.is_aborted
    assert "RuntimeError: a bug" in caplog.text
    assert "could not say so" in caplog.text
    world.check_over(error="internal_error", status=500)


def test_a_bug_in_the_middle_of_a_stream_is_its_last_event() -> None:
    world = World(stream=True)
    exchange = world.streaming()
    cast(Any, exchange.reply)._usage = partial(fail)
    exchange.body(EVENT, False)
    assert world.code == "internal_error"
    world.check_over(error="internal_error", status=500)
