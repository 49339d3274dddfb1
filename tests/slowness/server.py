"""Stands for a llama-server whose every phase can be slow, or hang. `stand_in` makes one of this file.

Its PLAN is in its environment. SIGUSR1: its main loop hangs, while its HTTP threads go on answering. SIGUSR2:
it spins. SIGHUP: it hangs up on all whom it serves. It needs the standard library only, and starts quickly.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import select
import shlex
import signal
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TICK_S = 0.1
PING_S = 1.0


@dataclass(frozen=True)
class Plan:
    """Seconds; of a tuple one is drawn each time."""

    slots: int = 1
    seed: int = 0
    bind_s: float = 0.0
    """Until its port is bound."""
    silent_s: float = 0.0
    """Then the port is open, and HTTP says nothing."""
    load_s: float = 0.0
    """Then it says that it loads."""
    reports: bool = False
    """It knows llama-server's protocol of reports while it loads."""
    health_s: tuple[float, ...] = (0.0,)
    props_s: tuple[float, ...] = (0.0,)
    slots_s: tuple[float, ...] = (0.0,)
    read_s: tuple[float, ...] = (0.0,)
    """For a prompt."""
    step_s: tuple[float, ...] = (0.05,)
    """For each token."""
    tells_slots: bool = True
    tells_of_hangs: bool = False
    """It tells of its slots also while its main loop hangs, which the real one does not."""
    is_quiet: bool = True
    """Its log says nothing of its requests."""
    flood_s: float = 0.0
    """So long it writes lines of one character as fast as they go."""
    ends_with: int | None = None
    """Its first start of all ends so, in the middle of its load."""
    counts: str = ""
    """A file that gets a byte for each start."""
    counts_tasks: str = ""
    """One that gets a byte for each request that got a slot."""

    def env(self) -> dict[str, str]:
        return {"PLAN": json.dumps(asdict(self))}


def stand_in(folder: Path, llama_server: Path) -> Path:
    """The real one where no PLAN is given."""
    path = folder / "slow-llama-server"
    path.write_text(
        "#!/bin/sh\n"
        f'[ -n "$PLAN" ] || exec {shlex.quote(str(llama_server))} "$@"\n'
        f'exec {shlex.quote(sys.executable)} -S {shlex.quote(__file__)} "$@"\n'
    )
    path.chmod(0o755)
    return path


# --- the server


@dataclass
class Task:
    """A request in a slot."""

    number: int
    prompt: int = 10
    read: int = 0
    generated: int = 0


@dataclass
class Engine:
    """What would compute."""

    plan: Plan
    chance: random.Random
    hangs: threading.Event = field(default_factory=threading.Event)
    reset_at: float = 0.0
    """Whatever was in a slot then is hung up on."""
    running: dict[int, Task] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.free = threading.Semaphore(self.plan.slots)
        self.numbers = itertools.count(1)

    def draw(self, choices: tuple[float, ...]) -> float:
        return self.chance.choice(choices)

    def seen(self) -> list[dict[str, Any]]:
        working = [
            {"id_task": t.number, "is_processing": True, "n_prompt_tokens": t.prompt,
             "n_prompt_tokens_processed": t.read, "next_token": [{"n_decoded": t.generated}]}
            for t in list(self.running.values())
        ]  # fmt: skip
        return working + [{"is_processing": False}] * (self.plan.slots - len(working))


class Left(Exception):
    """The client has gone."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    engine: Engine
    serves_at = 0.0
    begun = 0.0

    def do_GET(self) -> None:
        plan, engine = self.engine.plan, self.engine
        waits = {"/health": plan.health_s, "/props": plan.props_s, "/slots": plan.slots_s}
        time.sleep(engine.draw(waits.get(self.path, (0.0,))))
        while self.path == "/slots" and engine.hangs.is_set() and not plan.tells_of_hangs:
            time.sleep(TICK_S)
        if time.monotonic() < self.serves_at:
            self._answer(503, {"error": {"message": "Loading model"}})
        elif self.path != "/health" and not self._is_allowed():
            self._answer(401, {})
        elif self.path == "/slots" and not plan.tells_slots:
            self._answer(501, {})
        else:
            self._answer(200, engine.seen() if self.path == "/slots" else {})

    def do_POST(self) -> None:
        self.begun = time.monotonic()
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._is_allowed():
            self._answer(401, {})
            return
        try:
            self._take_slot(body)
        except (Left, OSError):
            self.close_connection = True

    # --- a generation

    def _take_slot(self, body: dict[str, Any]) -> None:
        engine = self.engine
        while self._starts_nothing or not engine.free.acquire(timeout=TICK_S):
            time.sleep(TICK_S if self._starts_nothing else 0.0)
            self._check_client()
        task = Task(next(engine.numbers))
        if engine.plan.counts_tasks:
            count(engine.plan.counts_tasks)
        engine.running[task.number] = task
        try:
            self._generate(task, body)
        finally:
            if not engine.hangs.is_set():  # only the main loop takes a slot back
                del engine.running[task.number]
                engine.free.release()

    @property
    def _starts_nothing(self) -> bool:
        """Nobody gets a slot, and nobody is told so."""
        return self.engine.hangs.is_set() and not self.engine.plan.tells_of_hangs

    def _generate(self, task: Task, body: dict[str, Any]) -> None:
        engine, streams = self.engine, bool(body.get("stream"))
        if streams:
            self._begin_stream()
        self._work(engine.draw(engine.plan.read_s), streams)
        task.read = task.prompt
        for _ in range(int(body.get("max_tokens", 8))):
            self._work(engine.draw(engine.plan.step_s), streams)
            task.generated += 1
            if streams:
                self._event({"choices": [{"delta": {"content": "word "}}], "model": body["model"]})
        if streams:
            self._chunk(b"data: [DONE]\n\n")
            self.wfile.write(b"0\r\n\r\n")
        else:
            choice = {"message": {"role": "assistant", "content": "word " * task.generated}}
            self._answer(200, {"choices": [choice], "model": body["model"]})
        if not engine.plan.is_quiet:
            print(f"slot release: task {task.number}", flush=True)

    def _work(self, seconds: float, streams: bool) -> None:
        """So long; for ever where the main loop hangs. The HTTP thread sends its pings all the same."""
        ends, ping_at = time.monotonic() + seconds, time.monotonic() + PING_S
        while self.engine.hangs.is_set() or time.monotonic() < ends:
            self.engine.hangs.wait(min(TICK_S, max(ends - time.monotonic(), 0.001)))
            if self.engine.hangs.is_set():
                time.sleep(TICK_S)
            self._check_client()
            if streams and time.monotonic() >= ping_at:
                ping_at += PING_S
                self._chunk(b":\n\n")

    def _check_client(self) -> None:
        if self.engine.reset_at > self.begun:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            raise Left
        if select.select([self.connection], [], [], 0)[0] and not self.connection.recv(1, socket.MSG_PEEK):
            raise Left

    # --- HTTP

    def _begin_stream(self) -> None:
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _event(self, body: dict[str, Any]) -> None:
        self._chunk(b"data: %b\n\n" % json.dumps(body).encode())

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _answer(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _is_allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {os.environ['LLAMA_API_KEY']}"

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Its client has gone."""


def read_plan() -> Plan:
    given: dict[str, Any] = json.loads(os.environ["PLAN"])
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
    return Plan(**values)


def count_start(plan: Plan) -> int:
    """How many there have been."""
    return count(plan.counts) if plan.counts else 1


def count(path: str) -> int:
    with Path(path).open("ab") as file:
        file.write(b".")
        return file.tell()


def report(plan: Plan, value: float) -> None:
    if plan.reports:
        state = {"state": "loading", "payload": {"stages": ["text_model"], "value": value}}
        print("cmd_child_to_router:state:" + json.dumps(state), flush=True)


def flood(seconds: float) -> None:
    ends, lines = time.monotonic() + seconds, b"x\n" * 32768
    while time.monotonic() < ends:
        os.write(1, lines)


def obey_signals(engine: Engine) -> None:
    def hang(number: int, _: object) -> None:
        engine.hangs.set()
        if number == signal.SIGUSR2:
            threading.Thread(target=spin, daemon=True).start()

    def reset(*_: object) -> None:
        engine.reset_at = time.monotonic()

    signal.signal(signal.SIGUSR1, hang)
    signal.signal(signal.SIGUSR2, hang)
    signal.signal(signal.SIGHUP, reset)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


def spin() -> None:
    while True:
        pass


def main() -> None:
    plan = read_plan()
    starts = count_start(plan)
    engine = Engine(plan, random.Random(f"{plan.seed} {starts}"))
    obey_signals(engine)
    report(plan, 0.0)
    flood(plan.flood_s)
    time.sleep(plan.bind_s)
    if plan.ends_with is not None and starts == 1:
        sys.exit(plan.ends_with)
    Handler.engine, Handler.serves_at = engine, time.monotonic() + plan.silent_s + plan.load_s
    server = Server(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler)
    time.sleep(plan.silent_s)  # the kernel accepts; nobody answers
    print("listening", flush=True)
    threading.Thread(target=exit_with_stdin, daemon=True).start()
    server.serve_forever()


def exit_with_stdin() -> None:
    while os.read(0, 4096) != b"":
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
