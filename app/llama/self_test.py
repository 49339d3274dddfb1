"""Can this llama-server compute here? It loads a model, says two tokens, ends when told. Blocking."""

from __future__ import annotations

import http.client
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import psutil

from app.core.config import Config
from app.domain.model_spec import CPU_ONLY, ModelSpec
from app.llama import probe_model
from app.llama.binary import inspect_binary
from app.llama.command_line import CHILD_OF_A_ROUTER, BinaryInfo, build_command
from app.llama.exit_reason import LOOK_BACK, Failure, FailureKind, classify
from app.llama.os_calls import WINDOWS, kill_group, spawn_options

TIMEOUT_S = 60.0
END_TIMEOUT_S = 10.0
ASK_TIMEOUT_S = 5.0
PATIENCE_S = 2.0
POLL_S = 0.01
ATTEMPTS = 3  # another program may take the port in between
TOKENS = 2
_ALIAS = "self-test"
_REQUEST = json.dumps({"prompt": "Hello", "n_predict": TOKENS, "temperature": 0, "ignore_eos": True})
# The C library says it before it aborts, past the thread that logs: in the middle of its line, too.
_HEAP = re.compile(
    r"(?<!\w)((free|malloc|realloc|munmap_chunk|malloc_consolidate)\(\): "
    r"|double free or corruption|corrupted (size|double-linked) ).*"
)
_ORDERLY = (0, -signal.SIGTERM)  # just after it became ready it does not catch the signal yet


class SelfTestFailed(Exception):
    """The binary cannot do its work on this machine. The message is one line and says what to do."""


class _Trouble(Exception):
    """What llama-server did, in words that go on after its name."""


def check_binary(path: Path, timeout_s: float = TIMEOUT_S) -> BinaryInfo:
    """With a tiny model, on the CPU. Raises `BinaryNotFound`, `CommandError` or `SelfTestFailed`."""
    binary = inspect_binary(path)
    with tempfile.TemporaryDirectory(prefix="llama-self-test-") as folder:
        check_model(binary, _tiny(probe_model.write(Path(folder) / "probe.gguf")), {}, timeout_s)
    return binary


def check_model(
    binary: BinaryInfo, spec: ModelSpec, devices: Mapping[str, int], timeout_s: float = TIMEOUT_S
) -> None:
    """Started as the router would start it there (MB by device). Raises `CommandError`, `SelfTestFailed`."""
    failure = _attempt(binary, spec, devices, timeout_s)
    for _ in range(ATTEMPTS - 1):
        if failure is not None and failure.kind is FailureKind.PORT_TAKEN:
            failure = _attempt(binary, spec, devices, timeout_s)
    if failure is not None:
        raise SelfTestFailed(f"{binary.path} cannot be used on this machine. {_told(failure)}")


def _told(failure: Failure) -> str:
    """The C library's word on a broken heap says more than a signal's name. It need not be the last one."""
    heap = next(filter(None, map(_HEAP.search, failure.log_tail)), None)
    if heap is None:
        return failure.message
    return f"llama-server crashed ({heap[0]}): its libraries do not belong together. Install another build."


def _tiny(path: Path) -> ModelSpec:
    system = {"cpu_threads": 2, "prompt_cache_mb": 0}
    model = {"model_path": str(path), "params": {"n_gpu_layers": CPU_ONLY, "n_ctx": 256}}
    return Config.model_validate({"system": system, "models": {_ALIAS: model}}).spec(_ALIAS)


def _attempt(
    binary: BinaryInfo, spec: ModelSpec, devices: Mapping[str, int], timeout_s: float
) -> Failure | None:
    port, key = _free_port(), secrets.token_urlsafe(16)
    command = build_command(binary, spec, devices, port, key, os.environ)
    process = subprocess.Popen(
        command.argv,
        env={name: value for name, value in command.env.items() if name != CHILD_OF_A_ROUTER},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **spawn_options(),
    )
    said: deque[str] = deque(maxlen=LOOK_BACK)
    assert process.stdout is not None
    reader = threading.Thread(target=_collect, args=(process.stdout, said), daemon=True)
    reader.start()
    problem: str | None = None
    code: int | None
    try:
        _use(process, port, key, time.monotonic() + timeout_s)
        code = _end(process, min(timeout_s, END_TIMEOUT_S))
    except _Trouble as trouble:
        problem, code = str(trouble), _death(process)
    finally:
        if process.poll() is None:
            kill_group(psutil.Process(process.pid))
        process.wait()
        reader.join(PATIENCE_S)  # what it started may keep the pipe open
    if problem is None and (code in _ORDERLY or WINDOWS):
        return None
    if code is None:
        return Failure(FailureKind.TIMEOUT, f"llama-server {problem}.", None, tuple(said))
    return classify(code, list(said))


def _use(process: subprocess.Popen[bytes], port: int, key: str, deadline: float) -> None:
    """Returns when it has answered. Raises `_Trouble`."""
    while not _serves(port):
        if process.poll() is not None:
            raise _Trouble("ended")
        if time.monotonic() > deadline:
            raise _Trouble("was not ready in time")
        time.sleep(POLL_S)
    try:
        status, body = _ask(port, "POST", "/completion", key, max(deadline - time.monotonic(), 1.0))
        predicted = json.loads(body).get("tokens_predicted") if status == 200 else None
    except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
        raise _Trouble(f"gave no answer ({error})") from error
    if predicted != TOKENS:
        raise _Trouble(f"answered {status} with {predicted} tokens instead of {TOKENS}: {body[:200]!r}")


def _end(process: subprocess.Popen[bytes], timeout_s: float) -> int:
    """Its exit code. Raises `_Trouble`."""
    process.terminate()
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired as error:
        raise _Trouble(f"did not end within {timeout_s:.0f} s of SIGTERM") from error


def _death(process: subprocess.Popen[bytes]) -> int | None:
    """The exit code of a process that has died, or is about to: its connections break a moment earlier."""
    try:
        return process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        return None


def _serves(port: int) -> bool:
    try:
        return _ask(port, "GET", "/health", "", ASK_TIMEOUT_S)[0] == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False


def _ask(port: int, method: str, path: str, key: str, timeout_s: float) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", "Connection": "close"}
    try:
        connection.request(method, path, _REQUEST if method == "POST" else None, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _collect(output: IO[bytes], said: deque[str]) -> None:
    with output:
        for line in output:
            said.append(line.decode(errors="replace"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
