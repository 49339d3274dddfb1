"""A llama-server, started as the router starts one, and asked without the router."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from app.core.config import Config
from app.domain.model_spec import ModelSpec
from app.llama.child_process import EXIT_COMMAND
from app.llama.command_line import BinaryInfo, build_command
from app.llama.load_output import LoadLog
from tests.patience import Patience
from tests.ports import free_port

START_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 60.0
END_TIMEOUT_S = 10.0
POLL_S = 0.002
CHILD_OF_A_ROUTER = "LLAMA_SERVER_ROUTER_PORT"
KEY = "the-key"


class NotServing(Exception):
    """It did not become ready. The message is what it said last."""


@dataclass(frozen=True)
class Subject:
    """The binary in question, the models to ask it with, a folder for whatever is needed."""

    binary: BinaryInfo
    folder: Path
    tiny: Path
    long: Path  # the same with a context that lasts for a minute of generation


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        """The object under `error`."""
        return self.json["error"]

    @property
    def events(self) -> list[Any]:
        """The data of a stream's events, without the last word."""
        lines = self.body.decode().splitlines()
        return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


class Server:
    """A process that was started, and what it says."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process, self.port = process, port
        self.log, self.lines = LoadLog(), list[str]()
        self.stages: list[str] = []
        self._reader = threading.Thread(target=self._read, args=[process.stdout], daemon=True)
        self._reader.start()

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = KEY,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        connection = self.connect()
        with contextlib.closing(connection):
            return self.ask_on(connection, method, path, body, key=key, headers=headers)

    def ask_on(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = KEY,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        answer = self.open(connection, method, path, body, key=key, headers=headers)
        named = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, named, answer.read())

    def open(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = KEY,
        headers: Mapping[str, str] | None = None,
    ) -> http.client.HTTPResponse:
        """Its head; the body is the caller's to read."""
        sent = {"Content-Type": "application/json", **(headers or {})}
        if key is not None:
            sent["Authorization"] = f"Bearer {key}"
        raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, raw, sent)
        return connection.getresponse()

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_TIMEOUT_S)

    def health(self) -> int | None:
        """None: the port refuses."""
        try:
            return self.ask("GET", "/health", key=None).status
        except OSError:
            return None

    def wait_until_ready(self) -> list[int | None]:
        """What its port said from the start on. Raises `NotServing`."""
        seen: list[int | None] = []
        patience = Patience(START_TIMEOUT_S)
        while not seen or seen[-1] != 200:
            if self.process.poll() is not None or patience.is_over:
                self.finish()
                raise NotServing(f"exit code {self.process.poll()}; it said: {' '.join(self.lines[-5:])}")
            time.sleep(POLL_S)
            seen.append(self.health())
        return seen

    def busy(self) -> bool:
        return any(slot["is_processing"] for slot in self.ask("GET", "/slots").json)

    def told_to_exit(self) -> None:
        """As the router does it."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(EXIT_COMMAND)
            self.process.stdin.flush()
        self.process.send_signal(signal.SIGTERM)

    def exit_code(self, timeout_s: float = END_TIMEOUT_S) -> int | None:
        """None: it lives on."""
        within(timeout_s, lambda: self.process.poll() is not None)
        return self.process.poll()

    def finish(self) -> None:
        """Afterwards all that it said is in `lines`."""
        self.process.kill()
        self.process.wait()
        self._reader.join(END_TIMEOUT_S)

    def _read(self, output: IO[bytes]) -> None:
        for raw in output:
            line = raw.decode(errors="replace").rstrip("\n")
            self.lines.append(line)
            self.log.feed(line)
            if self.log.stage and self.log.stage not in self.stages:
                self.stages.append(self.log.stage)


def spec_of(model: Path, **params: Any) -> ModelSpec:
    entry = {"model_path": str(model), "params": {"n_gpu_layers": 0, "n_ctx": 512, **params}}
    system = {"cpu_threads": 1, "prompt_cache_mb": 0}
    return Config.model_validate({"system": system, "models": {"m": entry}}).spec("m")


@contextmanager
def started(
    subject: Subject,
    spec: ModelSpec,
    *,
    child: bool = True,
    port: int | None = None,
    slot_folder: Path | None = None,
    words: Sequence[str] = (),
    through: Sequence[str] = (),
) -> Iterator[Server]:
    """As the router does it. `child`: told that it is a router's; `words` follow, `through` stands before."""
    port = port or free_port()
    pooling = spec.params.pooling
    command = build_command(subject.binary, spec, {}, port, KEY, os.environ, pooling, slot_folder)
    env = dict(command.env)
    if not child:
        del env[CHILD_OF_A_ROUTER]
    process = subprocess.Popen(
        [*through, *command.argv, *words],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    server = Server(process, port)
    try:
        yield server
    finally:
        server.finish()


@contextmanager
def ready(subject: Subject, spec: ModelSpec, **options: Any) -> Iterator[Server]:
    """Raises `NotServing`."""
    with started(subject, spec, **options) as server:
        server.wait_until_ready()
        yield server


def within(timeout_s: float, condition: Callable[[], bool]) -> bool:
    """Whether `condition` comes true in this time."""
    patience = Patience(timeout_s)
    while not condition():
        if patience.is_over:
            return False
        time.sleep(POLL_S * 10)
    return True
