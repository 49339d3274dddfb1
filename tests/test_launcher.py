"""The launcher with a real llama-server, and with a small fake one for what the real one never does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import httpx
import psutil
import pytest

from app.core.config import Config
from app.domain.model_spec import ModelSpec
from app.domain.status import Status
from app.gguf.header import Pooling
from app.llama.binary import BinaryNotFound, find_binary, inspect_binary
from app.llama.child_process import ChildProcess
from app.llama.command_line import BinaryInfo, build_command
from app.llama.exit_reason import FailureKind
from app.llama.http_get import Answer, http_get
from app.llama.launcher import LlamaLauncher
from app.llama.llama_runner import LOOK_S, LlamaRunner
from app.llama.orphans import reap_orphans
from app.llama.output.writer import LogServer
from app.llama.ports import Ports as LlamaPorts
from app.llama.process_timeouts import ProcessTimes
from app.llama.runner_interface import Exit, LoadError, Runner
from tests import llama_build
from tests.event_loops import on_both_loops
from tests.ggufs import make_tiny
from tests.patience import WAIT_S, exit_code
from tests.ports import Ports
from tests.router_process import until, until_now

__all__ = ["on_both_loops"]  # fixtures

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the tests send signals")

PORTS = Ports()
PROJECTED = "projected to use"
LINES, LINE_S = 30, 0.1
"""Of one that talks while it loads."""

FAKE = """\
#!{python} -S
import http.server, os, signal, subprocess, sys, threading, time
mode, port = os.environ["FAKE_MODE"], int(sys.argv[sys.argv.index("--port") + 1])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        key = self.headers.get("Authorization") == "Bearer " + os.environ["LLAMA_API_KEY"]
        self.send_response(200 if key or self.path == "/health" else 401)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *args): pass
def serve():
    http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
if mode == "silent":
    signal.pause()
if mode == "closes its port":  # when it has been asked once
    asked = []
    Handler.do_GET = lambda self: (self.send_error(503), server.socket.close(), asked.append(self.path))
    server = http.server.HTTPServer(("127.0.0.1", port), Handler)
    while not asked:
        server.handle_request()
    signal.pause()
if mode == "ready without a port":
    print('cmd_child_to_router:state:{{"state":"loading"}}', flush=True)
    print('cmd_child_to_router:state:{{"state":"ready"}}', flush=True)
    signal.pause()
if mode == "loads in one read":
    states = [b'cmd_child_to_router:state:{{"state":"%b"}}' % state for state in (b"loading", b"ready", b"")]
    os.write(1, b"\\n".join(states))
if mode == "binds late":
    print('cmd_child_to_router:state:{{"state":"loading"}}', flush=True)
    while not os.path.exists(os.environ["FAKE_MAY_BIND"]):
        time.sleep(0.01)
if mode == "loads for ever":
    def count(handler):
        with open(os.environ["FAKE_ASKED"], "a") as file:
            file.write(".")
        handler.send_error(503)
    Handler.do_GET = count
if mode == "dies when asked":
    ask = Handler.do_GET
    def die():
        print(os.environ["FAKE_SAYS"], flush=True)
        os._exit(1)
    Handler.do_GET = lambda self: die() if self.path == "/die" else ask(self)
if mode == "ignores SIGTERM":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if mode == "flood":
    for _ in range(200):
        print("x" * 99_999, flush=True)  # a bare os.write() may write a part
if mode == "verbose":
    for n in range({lines}):
        print("still at it", n, flush=True)
        time.sleep({line_s})
if mode == "family":
    child = subprocess.Popen(["sleep", "60"])
    print("child", child.pid, flush=True)
serve()
"""


# --- the world


@pytest.fixture(scope="module")
def binary() -> BinaryInfo:
    return inspect_binary(llama_build.of())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    make_tiny(path)
    return path


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False, timeout=WAIT_S) as client:
        yield client


@pytest.fixture
def launcher(binary: BinaryInfo, logs: LogServer, http: httpx.AsyncClient) -> LlamaLauncher:
    return LlamaLauncher(binary, logs, PORTS.first, load_timeout_s=30)


@pytest.fixture
def fake(
    binary: BinaryInfo, logs: LogServer, http: httpx.AsyncClient, tmp_path: Path
) -> Callable[..., LlamaLauncher]:
    def make(load_timeout_s: float = 30, **options: Any) -> LlamaLauncher:
        path = fake_binary(tmp_path)
        return LlamaLauncher(replace(binary, path=path), logs, PORTS.first, load_timeout_s, **options)

    return make


def fake_binary(folder: Path) -> Path:
    path = folder / "fake-llama-server"
    path.write_text(FAKE.format(python=sys.executable, lines=LINES, line_s=LINE_S))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def cut(path: Path, size: int, folder: Path) -> Path:
    broken = folder / "broken.gguf"
    broken.write_bytes(path.read_bytes()[:size])
    return broken


def spec(path: Path | str = "/none.gguf", **model: Any) -> ModelSpec:
    params = {"n_ctx": 512, "n_gpu_layers": -1}
    entry = {"model_path": str(path), "params": params, **model}
    return Config.model_validate({"system": {"cpu_threads": 1}, "models": {"m": entry}}).spec("m")


def acting(mode: str, **env: str) -> ModelSpec:
    return spec(env={"FAKE_MODE": mode, **env})


def nobody(_: Runner) -> None:
    """For launches whose news do not matter."""


def gone(pid: int) -> bool:
    """Reaped too: a zombie still has its pid."""
    return not psutil.pid_exists(pid)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# --- a load that succeeds


async def test_a_model_serves_inside_the_block_and_is_gone_after_it(
    launcher: LlamaLauncher, tiny: Path, http: httpx.AsyncClient
) -> None:
    async with launcher.launch(spec(tiny), {}, nobody) as runner:
        await runner.ready()
        assert runner.phase is Status.READY
        await runner.look(at_slots=False)
        assert runner.evidence.answered_at is not None
        answer = await http.post(
            f"http://127.0.0.1:{runner.port}/completion",
            json={"prompt": "the", "n_predict": 2},
            headers={"Authorization": f"Bearer {runner.api_key}"},
        )
        assert answer.status_code == 200
    assert gone(runner.pid)
    assert (await runner.exited()).code == 0
    assert runner.evidence.exited_at is not None


async def test_the_load_is_reported_as_it_goes(launcher: LlamaLauncher, tiny: Path) -> None:
    seen: list[tuple[Status, float | None]] = []

    def look(runner: Runner) -> None:
        seen.append((runner.phase, runner.load_log.progress))

    async with launcher.launch(spec(tiny), {}, look) as runner:
        assert runner.phase is Status.STARTING
        await runner.ready()
        said = runner.log.tail(10_000)  # its log is written by a thread of its own, which may be late
        await until(lambda: PROJECTED in "\n".join(runner.log.tail(10_000)))
    phases = [phase for phase, _ in seen]
    assert Status.LOADING in phases
    assert seen[-1] == (Status.READY, 1.0)
    assert runner.load_log.projected_mb.keys() == ({"host"} if PROJECTED in "\n".join(said) else set())
    assert len(runner.load_log.buffers) == sum("buffer size =" in line for line in said)


async def test_a_load_that_is_told_in_one_read_was_loading_too(fake: Callable[..., LlamaLauncher]) -> None:
    phases: list[Status] = []
    launcher = fake()
    async with launcher.launch(acting("loads in one read"), {}, lambda r: phases.append(r.phase)) as runner:
        await runner.ready()
    assert Status.LOADING in phases


async def test_the_key_is_not_written_to_the_log(launcher: LlamaLauncher, tiny: Path) -> None:
    async with launcher.launch(spec(tiny), {}, nobody) as runner:
        await runner.ready()
    assert runner.log.tail(10)
    assert runner.api_key not in "\n".join(runner.log.tail(10_000))


async def test_an_embedding_model_is_pooled_as_its_file_says(launcher: LlamaLauncher, tmp_path: Path) -> None:
    """With `--pooling mean` on the line, llama-server would not do what the file says, and say nothing."""
    says_last = make_tiny(tmp_path / "last.gguf", pooling_type=Pooling.LAST.value)
    says_nothing = make_tiny(tmp_path / "silent.gguf")
    params = {"n_ctx": 512, "n_gpu_layers": -1, "embedding": True}
    for path, expected in ((says_last, []), (says_nothing, ["mean"])):
        async with launcher.launch(spec(path, params=params), {}, nobody) as runner:
            line = psutil.Process(runner.pid).cmdline()
        assert [value for name, value in pairwise(line) if name == "--pooling"] == expected


async def test_models_get_ports_of_their_own(launcher: LlamaLauncher, tiny: Path) -> None:
    async with launcher.launch(spec(tiny), {}, nobody) as one, launcher.launch(spec(tiny), {}, nobody) as two:
        await asyncio.gather(one.ready(), two.ready())
        assert one.port != two.port
        assert one.api_key != two.api_key


async def test_twenty_starts_leave_nothing_behind(launcher: LlamaLauncher, tiny: Path) -> None:
    async def cycle() -> int:
        async with launcher.launch(spec(tiny), {}, nobody) as runner:
            await runner.ready()
        return runner.pid

    await cycle()
    before = open_files()
    pids = [await cycle() for _ in range(20)]
    assert all(gone(pid) for pid in pids)
    assert psutil.Process().children(recursive=True) == []
    await until(lambda: open_files() <= before)


# --- a load that fails


async def failure_of(launcher: LlamaLauncher, model: ModelSpec) -> LoadError:
    """Tries again, as the router does, when llama-server lost the end of its log."""
    for _ in range(20):
        with pytest.raises(LoadError) as caught:
            async with launcher.launch(model, {}, nobody) as runner:
                await runner.ready()
        assert psutil.Process().children(recursive=True) == []
        if caught.value.failure.kind is not FailureKind.CUT_SHORT:
            break
    return caught.value


async def test_a_missing_file_is_named(launcher: LlamaLauncher) -> None:
    error = await failure_of(launcher, spec("/nowhere/x.gguf"))
    assert error.failure.kind is FailureKind.MISSING_FILE
    assert "/nowhere/x.gguf" in str(error)
    assert error.failure.exit_code == 1
    assert any("/nowhere/x.gguf" in line for line in error.failure.log_tail)


@pytest.mark.parametrize("size", [0, 100, 200_000])
async def test_a_truncated_file_is_a_bad_model(
    launcher: LlamaLauncher, tiny: Path, tmp_path: Path, size: int
) -> None:
    error = await failure_of(launcher, spec(cut(tiny, size, tmp_path)))
    assert error.failure.kind is FailureKind.BAD_MODEL


async def test_an_unknown_flag_is_named(launcher: LlamaLauncher, tiny: Path) -> None:
    error = await failure_of(launcher, spec(tiny, extra_args=["--nonsense"]))
    assert error.failure.kind is FailureKind.BAD_FLAG
    assert "--nonsense" in str(error)


async def test_what_can_be_known_before_a_start_is_checked_without_one(
    launcher: LlamaLauncher, tiny: Path, tmp_path: Path
) -> None:
    async def found(kind: FailureKind, what: str, model: ModelSpec) -> bool:
        with pytest.raises(LoadError, match=what) as caught:
            await launcher.check(model)
        return caught.value.failure.kind is kind

    await launcher.check(spec(tiny, extra_args=["--swa-full", "--temp", "-1", "-r", "-User:"]))
    assert await found(FailureKind.BAD_FLAG, "--nonsense", spec(tiny, extra_args=["--mlock", "--nonsense"]))
    whole = launcher.binary
    launcher.binary = replace(whole, flags=frozenset({"--api-key"}))
    assert await found(FailureKind.BAD_BINARY, "does not know --host", spec(tiny))
    for path, why in ((tiny, "permissions"), (tmp_path / "none", "not there"), (tmp_path, "permissions")):
        launcher.binary = replace(whole, path=path)
        assert await found(FailureKind.BAD_BINARY, f"{path} cannot be executed: .*{why}", spec(tiny))
    launcher.binary = whole
    logs = tmp_path / "logs"
    logs.rename(tmp_path / "away")
    await launcher.check(spec(tiny))
    assert logs.is_dir(), "a folder that was removed is made again"
    shutil.rmtree(logs)
    logs.touch()
    assert await found(FailureKind.LOG_FOLDER, f"{logs}/.* cannot be written: .*system.log_dir", spec(tiny))


async def test_a_disk_that_hangs_does_not_hold_up_the_check(
    binary: BinaryInfo, logs: LogServer, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = threading.Event()
    launcher = LlamaLauncher(binary, logs, PORTS.first, 30, times=ProcessTimes(check_timeout_s=0.1))
    monkeypatch.setattr(logs, "check", lambda alias: hangs.wait(60) and "late")
    try:
        with anyio.fail_after(WAIT_S / 2):
            await launcher.check(spec(tiny))
    finally:
        hangs.set()


async def test_the_cause_is_not_looked_for_in_an_earlier_run(
    launcher: LlamaLauncher, fake: Callable[..., LlamaLauncher]
) -> None:
    await failure_of(launcher, spec("/nowhere/x.gguf"))
    async with fake().launch(acting("silent"), {}, nobody) as runner:
        os.kill(runner.pid, signal.SIGSEGV)
        failure = (await runner.exited()).failure
    assert failure.kind is FailureKind.UNKNOWN
    assert not any("/nowhere" in line for line in failure.log_tail)


@pytest.mark.parametrize(
    "said",
    [
        "tensor 'x' data is not within the file bounds",
        "failed to allocate CPU buffer of size 99999999999",
        "error: invalid argument: --model",
        "exiting due to HTTP server error",
    ],
)
async def test_once_it_has_served_nothing_that_it_says_is_a_cause(
    fake: Callable[..., LlamaLauncher], http: httpx.AsyncClient, said: str
) -> None:
    """A client can make it say anything, by a grammar or a name that it repeats."""
    async with fake().launch(acting("dies when asked", FAKE_SAYS=said), {}, nobody) as runner:
        await runner.ready()
        with contextlib.suppress(httpx.RequestError):
            await http.get(f"http://127.0.0.1:{runner.port}/die")
        failure = (await runner.exited()).failure
    assert (failure.kind, failure.exit_code, failure.served) == (FailureKind.UNKNOWN, 1, True)
    assert said not in failure.message
    assert said in failure.log_tail, "for admins"
    assert runner.load_log.refused is None


async def test_a_binary_that_cannot_be_executed_is_a_load_error(launcher: LlamaLauncher, tiny: Path) -> None:
    launcher.binary = replace(launcher.binary, path=tiny)
    assert (await failure_of(launcher, spec(tiny))).failure.kind is FailureKind.BAD_BINARY


async def test_a_binary_that_lacks_a_flag_is_a_load_error(launcher: LlamaLauncher, tiny: Path) -> None:
    launcher.binary = replace(launcher.binary, flags=frozenset({"--api-key"}))
    assert (await failure_of(launcher, spec(tiny))).failure.kind is FailureKind.BAD_BINARY


async def test_a_load_without_progress_times_out(fake: Callable[..., LlamaLauncher]) -> None:
    error = await failure_of(fake(load_timeout_s=0.4), acting("silent"))
    assert error.failure.kind is FailureKind.TIMEOUT


@pytest.mark.parametrize("mode", ["closes its port", "ready without a port"])
async def test_a_load_that_closed_its_port_is_not_waited_for(
    fake: Callable[..., LlamaLauncher], mode: str
) -> None:
    with anyio.fail_after(WAIT_S):
        error = await failure_of(
            fake(load_timeout_s=3600, times=ProcessTimes(port_closed_s=0.2)), acting(mode)
        )
    assert error.failure.kind is FailureKind.TIMEOUT
    assert "closed its port" in str(error)


async def test_a_port_that_has_not_been_open_yet_is_not_called_closed(
    fake: Callable[..., LlamaLauncher], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Big builds on a cold disk say that they load, and are refused, long before they bind."""
    may_bind, refusals = tmp_path / "may bind", 0

    async def counted(*args: Any) -> Answer:
        nonlocal refusals
        try:
            return await http_get(*args)
        except ConnectionRefusedError:
            refusals += 1
            if refusals == 3:
                may_bind.touch()
            raise

    monkeypatch.setattr("app.llama.port_probe.http_get", counted)
    launcher = fake(times=ProcessTimes(port_closed_s=0.0))
    async with launcher.launch(acting("binds late", FAKE_MAY_BIND=str(may_bind)), {}, nobody) as runner:
        with anyio.fail_after(WAIT_S):
            await runner.ready()
    assert refusals >= 3


async def test_a_process_that_does_not_die_is_told_and_reaped_when_it_does(
    fake: Callable[..., LlamaLauncher], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the kernel holds cannot be made here: the signals do not reach it."""
    told = asyncio.Event()
    launcher = fake(times=ProcessTimes(kill_wait_s=0.1))

    async def live() -> None:
        def hear(runner: Runner) -> None:
            if runner.unkillable:
                told.set()

        async with launcher.launch(acting("silent"), {}, hear) as runner:
            pids.append(runner.pid)
            monkeypatch.setattr(ChildProcess, "_signal_group", lambda child, number: None)
            await runner.stop(grace_s=0.1)
            assert not gone(runner.pid), "it returns all the same"

    pids: list[int] = []
    life = asyncio.create_task(live())
    with anyio.fail_after(WAIT_S):
        await told.wait()
    for _ in range(10):
        await asyncio.sleep(0)
    assert not life.done()
    os.kill(pids[0], signal.SIGKILL)
    with anyio.fail_after(WAIT_S):
        await life
    assert gone(pids[0]), "no zombie"


async def test_a_slow_load_that_talks_is_waited_for(fake: Callable[..., LlamaLauncher]) -> None:
    launcher = fake(load_timeout_s=0.8 * LINES * LINE_S)  # a busy machine takes its time to start it
    async with launcher.launch(acting("verbose"), {}, nobody) as runner:
        await runner.ready()
        assert runner.log.tail(1) == [f"still at it {LINES - 1}"]


# --- ports


async def test_a_port_in_use_is_passed_over(launcher: LlamaLauncher, tiny: Path) -> None:
    port = PORTS.first
    stranger = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", port)
    assert not _can_claim(port)
    stranger.close()
    await stranger.wait_closed()
    assert _can_claim(port)


def _can_claim(port: int) -> bool:
    with LlamaPorts(port).claim() as claimed:
        return claimed == port


def test_claimed_ports_are_not_given_twice_and_never_exceed_the_last() -> None:
    ports = LlamaPorts(65534)
    with contextlib.ExitStack() as held:
        claimed = [held.enter_context(ports.claim()) for _ in range(4)]
    assert len(set(claimed)) == 4
    assert all(1024 <= port <= 65535 for port in claimed)


async def test_a_stranger_on_the_port_is_not_taken_for_ours(fake: Callable[..., LlamaLauncher]) -> None:
    async def answer_everything(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    async with fake().launch(acting("silent"), {}, nobody) as runner:
        stranger = await asyncio.start_server(answer_everything, "127.0.0.1", runner.port)
        try:
            with pytest.raises(LoadError) as caught:
                await runner.ready()
        finally:
            stranger.close()
            await stranger.wait_closed()
    assert caught.value.failure.kind is FailureKind.PORT_TAKEN


async def test_a_port_that_was_taken_meanwhile_is_reported(
    binary: BinaryInfo, logs: LogServer, http: httpx.AsyncClient, tiny: Path
) -> None:
    stranger = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    port = stranger.sockets[0].getsockname()[1]
    runner = LlamaRunner("m", port, "key", logs.open("m"), 30, nobody)
    await runner.spawn(build_command(binary, spec(tiny), {}, port, "key", os.environ))
    try:
        with pytest.raises(LoadError) as caught:
            await runner.ready()
    finally:
        await runner.stop()
        stranger.close()
        await stranger.wait_closed()
    assert caught.value.failure.kind is FailureKind.PORT_TAKEN


# --- the end of a process


async def test_a_death_from_outside_is_noticed_at_once(launcher: LlamaLauncher, tiny: Path) -> None:
    async with launcher.launch(spec(tiny), {}, nobody) as runner:
        await runner.ready()
        os.kill(runner.pid, signal.SIGKILL)
        with anyio.fail_after(WAIT_S):
            ended = await runner.exited()
    assert (ended.code, ended.failure.kind) == (-9, FailureKind.KILLED)


async def test_a_model_that_told_when_it_was_ready_is_asked_seldom_the_next_time(
    fake: Callable[..., LlamaLauncher], tmp_path: Path
) -> None:
    launcher, asked = fake(), tmp_path / "asked"
    async with launcher.launch(acting("loads in one read"), {}, nobody) as runner:
        await runner.ready()
    begun = time.monotonic()
    async with launcher.launch(acting("loads for ever", FAKE_ASKED=str(asked)), {}, nobody) as runner:
        loading = asyncio.create_task(runner.ready())
        await until(lambda: asked.exists() and asked.stat().st_size >= 4)
        took_s = time.monotonic() - begun
        loading.cancel()
        await asyncio.wait({loading})
    assert took_s > 2.5 * LOOK_S, "asked four times, so it waited three times"


async def test_any_number_may_wait_for_the_exit_and_leave(fake: Callable[..., LlamaLauncher]) -> None:
    async with fake().launch(acting("silent"), {}, nobody) as runner:
        waiters = [asyncio.ensure_future(runner.exited()) for _ in range(3)]
        await asyncio.sleep(0)
        waiters[0].cancel()
        await runner.stop()
        results = await asyncio.gather(*waiters, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert isinstance(results[1], Exit) and results[1] == results[2]


async def test_a_child_that_ignores_sigterm_is_killed(fake: Callable[..., LlamaLauncher]) -> None:
    async with fake().launch(acting("ignores SIGTERM"), {}, nobody) as runner:
        await runner.ready()
        await runner.stop(grace_s=0.2)
        assert (await runner.exited()).code == -9
        assert gone(runner.pid)


async def test_a_request_in_flight_does_not_hold_up_the_stop(
    launcher: LlamaLauncher, tiny: Path, http: httpx.AsyncClient
) -> None:
    async def ask() -> None:
        await http.post(
            f"http://127.0.0.1:{runner.port}/completion",
            json={"prompt": "the", "n_predict": 500, "ignore_eos": True},
            headers={"Authorization": f"Bearer {runner.api_key}"},
        )

    async with launcher.launch(spec(tiny), {}, nobody) as runner:
        await runner.ready()
        request = asyncio.ensure_future(ask())
        await until(lambda: any("processing task" in line for line in runner.log.tail(30)))
        psutil.Process(runner.pid).suspend()  # it hears of SIGTERM when its request is answered: never
        with anyio.fail_after(WAIT_S):
            await runner.stop(grace_s=0.2)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
    assert gone(runner.pid)


async def test_stopping_twice_at_the_same_time_is_safe(launcher: LlamaLauncher, tiny: Path) -> None:
    async with launcher.launch(spec(tiny), {}, nobody) as runner:
        await runner.ready()
        await asyncio.gather(runner.stop(), runner.stop())
        await runner.stop()
    assert gone(runner.pid)


async def test_what_the_child_started_goes_with_it(fake: Callable[..., LlamaLauncher]) -> None:
    async with fake().launch(acting("family"), {}, nobody) as runner:
        await runner.ready()
        grandchild = int(runner.log.tail(1)[0].split()[1])
        os.kill(runner.pid, signal.SIGKILL)
        with anyio.fail_after(WAIT_S):
            await runner.exited()
    await until(lambda: _dead(grandchild))


def _dead(pid: int) -> bool:
    """Nobody's child of ours: whoever inherited it may take its time to reap it."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


# --- cancelling


@pytest.mark.parametrize("times", [1, 2])
async def test_a_cancelled_load_leaves_no_process(fake: Callable[..., LlamaLauncher], times: int) -> None:
    started: asyncio.Future[Runner] = asyncio.get_running_loop().create_future()

    async def load() -> None:
        async with fake().launch(acting("silent"), {}, nobody) as runner:
            started.set_result(runner)
            await runner.ready()

    task = asyncio.ensure_future(load())
    runner = await started
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    with anyio.fail_after(WAIT_S):
        await asyncio.gather(task, return_exceptions=True)
        await runner.exited()
    assert task.cancelled()
    assert gone(runner.pid)


async def test_a_scope_that_is_cancelled_waits_for_the_reaping(launcher: LlamaLauncher, tiny: Path) -> None:
    with anyio.CancelScope() as scope:
        async with launcher.launch(spec(tiny), {}, nobody) as runner:
            await runner.ready()
            scope.cancel()
            await runner.exited()
    assert scope.cancelled_caught
    assert gone(runner.pid)


async def test_a_cancelled_spawn_leaves_no_process(fake: Callable[..., LlamaLauncher]) -> None:
    async def load() -> None:
        async with fake().launch(acting("silent"), {}, nobody) as runner:
            await runner.ready()

    for steps in range(6):
        task = asyncio.ensure_future(load())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await until(lambda: psutil.Process().children(recursive=True) == [])


async def test_kill_all_needs_no_loop(launcher: LlamaLauncher, tiny: Path) -> None:
    async with launcher.launch(spec(tiny), {}, nobody) as runner:
        await runner.ready()
        launcher.kill_all()
        with anyio.fail_after(WAIT_S):
            assert (await runner.exited()).code == -9


# --- output and orphans


async def test_the_log_of_a_serving_model_is_read_now_and_then_and_at_its_end(
    binary: BinaryInfo, logs: LogServer, tiny: Path, http: httpx.AsyncClient
) -> None:
    """And not at each line; but its last words and its end wait for nobody."""
    times = ProcessTimes(read_pause_s=3600, last_output_s=3600)
    launcher = LlamaLauncher(binary, logs, PORTS.first, 30, times=times)

    async def ask() -> None:
        key = {"Authorization": f"Bearer {runner.api_key}"}
        body = {"prompt": "the", "n_predict": 2}
        await http.post(f"http://127.0.0.1:{runner.port}/completion", json=body, headers=key)

    with anyio.fail_after(WAIT_S):
        async with launcher.launch(spec(tiny), {}, nobody) as runner:
            await runner.ready()
            loaded = runner.log.position
            await ask()
            await until(lambda: runner.log.position > loaded)
            read = runner.log.position
            for _ in range(40):  # some 300 lines, which would have filled uvloop's own pipe
                await ask()
            assert runner.log.position == read
            os.kill(runner.pid, signal.SIGKILL)
            await runner.exited()
            assert runner.log.position > read
        assert gone(runner.pid)


async def test_a_flood_of_output_does_not_block_the_child(fake: Callable[..., LlamaLauncher]) -> None:
    async with fake().launch(acting("flood"), {}, nobody) as runner:
        with anyio.fail_after(WAIT_S):
            await runner.ready()
        await until(lambda: runner.log.position >= 200 * 100_000)  # the pipe may hold the end


PARENT = """\
import asyncio, sys
from pathlib import Path
import httpx
from app.llama import os_calls
from app.llama.binary import inspect_binary
from app.llama.launcher import LlamaLauncher
from app.llama.output.writer import LogServer
from app.llama.orphans import PidFile
from tests import llama_build
from tests.test_launcher import acting, nobody, replace
{before}
async def main():
    async with httpx.AsyncClient(trust_env=False) as http:
        info = replace(inspect_binary(llama_build.of()), path=Path(sys.argv[1]))
        pids = PidFile(Path(sys.argv[2]))
        launcher = LlamaLauncher(info, LogServer(sys.argv[2]), {port}, 30, pid_file=pids)
        async with launcher.launch(acting("ignores SIGTERM"), {{}}, nobody) as runner:
            await runner.ready()
            while not list(Path(sys.argv[2]).glob("children-*.json")):
                await asyncio.sleep(0.01)
            print(runner.pid, flush=True)
            await runner.exited()
asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
@pytest.mark.parametrize("loop", ["", "import uvloop; uvloop.install()"])
def test_a_killed_router_leaves_no_orphan(tmp_path: Path, loop: str) -> None:
    pid = kill_a_router(tmp_path, loop)
    until_now(lambda: _dead(pid))


def test_without_a_parent_death_signal_the_next_start_ends_the_orphan(tmp_path: Path) -> None:
    pid = kill_a_router(tmp_path, "os_calls._LIBC = None")  # as on macOS
    assert not _dead(pid)
    assert reap_orphans(tmp_path / "logs") == 1
    until_now(lambda: _dead(pid))
    assert list((tmp_path / "logs").iterdir()) == []


def kill_a_router(folder: Path, before: str) -> int:
    """The pid of the child that it had."""
    (folder / "logs").mkdir()
    script = textwrap.dedent(PARENT.format(before=before, port=PORTS.first))
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(fake_binary(folder)), str(folder / "logs")],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
    )
    assert parent.stdout is not None
    with parent.stdout:
        pid = int(parent.stdout.readline())
        assert psutil.Process(pid).ppid() == parent.pid
        parent.kill()
        exit_code(parent)
    return pid


# --- the binary


def test_the_binary_is_understood(binary: BinaryInfo) -> None:
    assert binary.path.name == "llama-server"
    assert "commit" in binary.version
    assert {"-ngl", "--api-key", "-np"} <= binary.flags
    assert binary.version in binary.identity
    assert inspect_binary(binary.path) is inspect_binary(binary.path)


def test_a_binary_in_path_comes_first(tmp_path: Path) -> None:
    found = tmp_path / "llama-server"
    found.write_text("#!/bin/sh\n")
    found.chmod(0o755)
    assert find_binary(None, path=str(tmp_path)) == found


def test_a_configured_binary_must_be_there() -> None:
    with pytest.raises(BinaryNotFound, match="llama_server_path: /nowhere/llama-server"):
        find_binary("/nowhere/llama-server")


def test_what_is_no_llama_server_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "llama-server"
    with pytest.raises(BinaryNotFound, match="No such file"):
        inspect_binary(script)
    script.write_text("#!/bin/sh\necho hello\n")
    script.chmod(0o755)
    with pytest.raises(BinaryNotFound, match="hello"):
        inspect_binary(script)
    script.write_text("#!/bin/sh\necho it broke >&2\nexit 3\n")
    with pytest.raises(BinaryNotFound, match="exit code 3"):
        inspect_binary(script)
    script.chmod(0o644)
    with pytest.raises(BinaryNotFound, match="cannot be executed"):
        inspect_binary(script)
