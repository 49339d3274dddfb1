"""A real router in a process of its own, with real llama-servers, for the end-to-end tests."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, overload

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from tests.patience import POLL_S, Patience, exit_code
from tests.ports import Ports

ROOT = Path(__file__).parents[1]
START_TIMEOUT_S = 100.0
"""Twenty programs on two processors: two routers were seen to need more than a minute."""

STOP_TIMEOUT_S = 30.0
KEPT = httpx.Limits(keepalive_expiry=60)
"""A router without files accepts no other connection, however long the machine stands still meanwhile."""

T = TypeVar("T")

LIVE: list[RouterProcess] = []
"""Those whose log is shown when a test fails."""


@overload
async def until(condition: Callable[[], Awaitable[T | None]], timeout_s: float = 30.0) -> T: ...
@overload
async def until(condition: Callable[[], T | None], timeout_s: float = 30.0) -> T: ...
async def until(condition: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    """The first true value of `condition`. Fails with the last one when there is none in time."""
    patience = Patience(timeout_s)
    while True:
        found = condition()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        assert not patience.is_over, f"still {found!r} after {timeout_s} s: {_source(condition)}"
        await asyncio.sleep(POLL_S)


def until_now(condition: Callable[[], T], timeout_s: float = 30.0) -> T:
    """`until` for tests without an event loop."""
    patience = Patience(timeout_s)
    while not (found := condition()):
        assert not patience.is_over, f"still {found!r} after {timeout_s} s: {_source(condition)}"
        time.sleep(POLL_S)
    return found


def chat(model: str, *, max_tokens: int = 8, content: str = "Hello", **more: Any) -> dict[str, Any]:
    """A chat request that always generates `max_tokens` tokens."""
    messages = [{"role": "user", "content": content}]
    return {
        "model": model,
        "messages": messages,
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "temperature": 0,
        **more,
    }


class RouterProcess:
    """`python run.py -c CONFIG` from start to stop."""

    program: Sequence[str] = ("run.py",)

    def __init__(
        self,
        folder: Path,
        llama_server: Path,
        models: Mapping[str, Mapping[str, Any]],
        *,
        api: Mapping[str, Any] | None = None,
        system: Mapping[str, Any] | None = None,
        key: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self._env = folder, dict(env or {})
        self._ports = Ports()
        self.port = self._ports.first
        self.url = f"http://127.0.0.1:{self.port}"
        self.config_path = folder / "config.json"
        self.log_path = folder / "router.log"
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.client = self._client(httpx.Client, limits=KEPT)
        self._process: subprocess.Popen[bytes] | None = None
        self._spawned: set[psutil.Process] = set()
        self._write_config(llama_server, models, dict(api or {}), dict(system or {}))

    # --- life

    def start(self) -> None:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("ROUTER_", "CONFIG_PATH", "LLAMA_"))}
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *self.program, "-c", str(self.config_path)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**env, "PYTHONUNBUFFERED": "1", **self._env},
            )
        if self not in LIVE:  # a second start
            LIVE.append(self)

    def wait_until_it_answers(self) -> RouterProcess:
        until_now(self._answers, START_TIMEOUT_S)
        return self

    def stop(self) -> int:
        """End it politely; the exit code. Afterwards nothing of it is left."""
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self.children()  # remembers them
            self._process.terminate()
        try:
            return exit_code(self._process, STOP_TIMEOUT_S)
        finally:
            self.clean_up()

    def clean_up(self) -> None:
        """Kill whatever is left of it, by pid, and close what this object holds."""
        assert self._process is not None
        if self._process.poll() is None:
            self.children()
            self._process.kill()
            self._process.wait()
        for child in self._spawned:
            with suppress(psutil.NoSuchProcess):  # start times are compared: never another of that pid
                child.kill()
        self.client.close()
        if self in LIVE:
            LIVE.remove(self)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """The exit code."""
        assert self._process is not None
        return exit_code(self._process, timeout_s)

    async def ended(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """The exit code; the event loop goes on meanwhile."""
        assert self._process is not None
        process = self._process
        await until(lambda: process.poll() is not None, timeout_s)
        return process.wait()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    # --- what it shows

    def children(self) -> list[psutil.Process]:
        """Its processes that live, those of its children included; zombies count."""
        try:
            found = psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            found = []
        self._spawned.update(found)
        return found

    def child(self, alias: str) -> psutil.Process:
        """The llama-server of a loaded model."""
        pid = self.status(alias)["pid"]
        assert pid, f"{alias} has no process"  # without a pid psutil takes our own, which signals would hit
        return psutil.Process(pid)

    def past_the_router(self, alias: str) -> tuple[str, str]:
        """Where the llama-server of a loaded model answers, and its key: only its environment holds that."""
        key = self.child(alias).environ()["LLAMA_API_KEY"]
        return f"http://127.0.0.1:{self.status(alias)['port']}", key

    def get(self, path: str) -> Any:
        return self.client.get(path).raise_for_status().json()

    def status(self, alias: str) -> dict[str, Any]:
        found: dict[str, Any] = self.get(f"/v1/models/{alias}/status")
        return found

    def state(self, alias: str) -> str:
        found: str = self.status(alias)["status"]
        return found

    def is_quiet(self, alias: str) -> bool:
        """Nobody waits and nobody is served."""
        status = self.status(alias)
        return bool(status["queue_depth"] == 0 and status["in_flight"] == 0)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples with these labels."""
        text = self.client.get("/metrics").raise_for_status().text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def loads(self, alias: str) -> int:
        return int(self.metric("router_model_loads_total", model=alias, result="success"))

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    # --- what one can do to it

    def open_client(self) -> httpx.AsyncClient:
        """For the test's own event loop: `async with`."""
        client: httpx.AsyncClient = self._client(httpx.AsyncClient, limits=httpx.Limits(max_connections=None))
        return client

    def load(self, *aliases: str) -> None:
        """Load, one after the other, and wait for it."""
        for alias in aliases:
            answer = self.client.post("/v1/models/load?wait=true", json={"model": alias})
            assert answer.status_code == 200, answer.text

    def eject(self, *aliases: str) -> None:
        for alias in aliases:
            self.client.post("/v1/models/eject?mode=now", json={"model": alias}).raise_for_status()

    @contextmanager
    def frozen(self, alias: str) -> Iterator[psutil.Process]:
        """Its llama-server stands still: what runs there lasts until the end of the block."""
        with frozen(self.child(alias)) as process:
            yield process

    # --- inside

    def _client(self, kind: Callable[..., Any], **more: Any) -> Any:
        return kind(base_url=self.url, headers=self.headers, timeout=60, trust_env=False, **more)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"the router ended at once:\n{self.log()}"
        try:
            return bool(self.client.get("/health").status_code == 200)
        except httpx.TransportError:
            return False

    def _write_config(
        self, llama_server: Path, models: Mapping[str, Any], api: dict[str, Any], system: dict[str, Any]
    ) -> None:
        defaults = {
            "llama_server_path": str(llama_server),
            "first_port": self.port + 1,
            "cpu_threads": 1,  # two wait for each other at every step: for ever, where others want the cores
            "prompt_cache_mb": 0,
            "min_free_vram_mb": 0,
            "health_check_interval_sec": 600,  # a llama-server that a test freezes must not be taken for dead
            "log_dir": str(self.folder / "logs"),
            "log_level": "debug",
        }
        tree = {
            "api": {"host": "127.0.0.1", "port": self.port, **api},
            "system": {**defaults, **system},
            "models": {alias: _model(entry) for alias, entry in models.items()},
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config_path.write_text(json.dumps(tree, indent=2))


@contextmanager
def frozen(process: psutil.Process) -> Iterator[psutil.Process]:
    """`RouterProcess.frozen`, at once: without asking first which process it is."""
    process.suspend()
    try:
        yield process
    finally:
        # Killed in the block, the router may reap it at any moment.
        with suppress(psutil.NoSuchProcess):
            process.resume()


MakeRouter = Callable[..., RouterProcess]
"""`make(models, *, binary=..., api=..., system=..., key=..., env=...)`; see the fixtures of that name."""


def gated(folder: Path, llama_server: Path) -> Path:
    """A llama-server that waits, before it starts, for the file that its environment names in GATE."""
    path = folder / "gated-llama-server"
    path.write_text(
        "#!/bin/sh\n"
        'if [ -n "$GATE" ]; then while [ ! -e "$GATE" ]; do sleep 0.02; done; fi\n'
        f'exec {shlex.quote(str(llama_server))} "$@"\n'
    )
    path.chmod(0o755)
    return path


def _model(entry: Mapping[str, Any]) -> dict[str, Any]:
    params = {"n_gpu_layers": -1, "n_ctx": 512, **entry.get("params", {})}
    return {**entry, "model_path": str(entry["model_path"]), "params": params}


def _source(condition: Callable[..., Any]) -> str:
    try:
        return inspect.getsource(condition).strip()
    except OSError:
        return repr(condition)
