"""What a start prints, and where the router then answers: real processes."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.listen_check import places
from tests.commands import ROOT, environment, run_py
from tests.field.environment import KEYS
from tests.patience import WAIT_S
from tests.ports import Ports, free_port
from tests.router_process import MakeRouter, RouterProcess, until_now


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(
    not has_ipv6() and not os.environ.get("CI"), reason="this machine has no IPv6"
)


def answers(url: str) -> bool:
    with httpx.Client(trust_env=False, timeout=WAIT_S) as client:
        return client.get(f"{url}/health").status_code == 200


def printed_urls(router: RouterProcess) -> list[str]:
    until_now(lambda: "models" in router.log())
    banner, _, _ = router.log().partition("llama-server")
    return re.findall(r"http://[^\s]+", banner)


# --- R11


@needs_ipv6
@pytest.mark.parametrize("host", ["::", "::0", "0.0.0.0,::"])
def test_the_address_that_a_dual_stack_start_prints_is_not_refused(
    make_router: MakeRouter, host: str
) -> None:
    router = make_router({}, api={"host": host, "api_keys": ["k"]})
    printed = printed_urls(router)
    assert printed == [f"http://127.0.0.1:{router.port}"]
    for url in (*printed, f"http://[::1]:{router.port}", f"http://localhost:{router.port}"):
        assert answers(url), url


# --- T4


@needs_ipv6
def test_a_router_listens_on_several_addresses(make_router: MakeRouter) -> None:
    router = make_router({}, api={"host": "127.0.0.1, ::1"})
    printed = printed_urls(router)
    assert printed == [f"http://127.0.0.1:{router.port}", f"http://[::1]:{router.port}"]
    assert all(map(answers, printed))
    with socket.socket() as probe, pytest.raises(OSError):
        probe.connect(("127.0.0.2", router.port))


def test_an_address_that_is_named_twice_is_listened_on_once(make_router: MakeRouter) -> None:
    router = make_router({}, api={"host": "127.0.0.1,localhost,127.0.0.1"})
    assert all(map(answers, printed_urls(router)))
    found = places(["127.0.0.1", "localhost", "127.0.0.1"], free_port())
    assert len(found) == len(set(found)) <= 2


def test_one_of_several_addresses_in_use_is_told_at_the_start(tmp_path: Path, llama_server: Path) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.2", port)):
        tree = {"system": {"llama_server_path": str(llama_server), "log_dir": str(tmp_path)}}
        done = start(tmp_path, {"api": {"host": "127.0.0.1,127.0.0.2", "port": port}, **tree})
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.2:{port}: the port is in use" in done.stderr


# --- a port for programs made for Ollama


def test_a_second_port_serves_the_same(make_router: MakeRouter) -> None:
    reserved = Ports()
    second = reserved.first
    router = make_router({}, api={"ollama_port": second})
    printed = printed_urls(router)
    assert printed == [f"http://127.0.0.1:{port}" for port in (router.port, second)]
    assert all(map(answers, printed))
    assert httpx.get(f"{printed[1]}/api/version", timeout=WAIT_S).json() == router.get("/api/version")
    router.stop()
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{printed[1]}/api/version", timeout=WAIT_S)


def test_a_second_port_in_use_is_told_by_its_own_name(tmp_path: Path, llama_server: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        reserved = Ports()
        api = {"host": "127.0.0.1", "port": reserved.first, "ollama_port": taken.getsockname()[1]}
        tree = {"system": {"llama_server_path": str(llama_server), "log_dir": str(tmp_path)}}
        done = start(tmp_path, {"api": api, **tree})
    assert done.returncode == 1
    assert "ROUTER_API__OLLAMA_PORT" in done.stderr


def start(folder: Path, tree: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    path = folder / "config.json"
    path.write_text(json.dumps(tree))
    return run_py("-c", str(path), timeout_s=60)


# --- F5


def test_a_start_names_the_admins_and_tells_once_what_an_old_file_meant(
    llama_server: Path, tmp_path: Path, started: list[RouterProcess]
) -> None:
    told = []
    for _ in range(2):
        router = RouterProcess(tmp_path, llama_server, {}, api={"api_keys": KEYS}, key="plain")
        started.append(router)
        router.start()
        router.wait_until_it_answers()
        router.stop()
        told.append(router.log())
        router.log_path.unlink()
    for log in told:
        assert re.search(r"^  admins +key 1, boss$", log, re.M), log
    assert '"admin": true now; without it are silent' in told[0]
    assert "without it are" not in told[1]
    for secret in ("plain", "k1", "k2"):
        assert secret not in re.sub(r"\S*/\S*", "", told[0])


@pytest.fixture
def started() -> Iterator[list[RouterProcess]]:
    routers: list[RouterProcess] = []
    yield routers
    for router in routers:
        router.stop()


def test_a_key_that_was_an_admin_by_default_may_use_models_only(
    make_router: MakeRouter, tiny_gguf: Path
) -> None:
    router = make_router({"tiny": {"model_path": tiny_gguf}}, api={"api_keys": KEYS}, key="k1")
    assert router.client.get("/v1/models").status_code == 200
    for path in ("/v1/models/load", "/v1/models/eject", "/models/unload"):
        answer = router.client.post(path, json={"model": "tiny"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")
        assert '"admin": true' in answer.json()["error"]["message"]
    boss = {"Authorization": "Bearer k2"}
    assert router.client.post("/v1/models/eject", json={"model": "tiny"}, headers=boss).status_code == 200


# --- R14


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
@pytest.mark.parametrize("command", ["check -c {}", "check --schema", "--help"])
def test_head_behind_a_command_is_no_traceback(
    tmp_path: Path, llama_server: Path, tiny_gguf: Path, command: str
) -> None:
    """The reader has gone before the first line is written."""
    tree = {
        "api": {"host": "127.0.0.1"},
        "system": {"llama_server_path": str(llama_server)},
        "models": {"m": {"model_path": str(tiny_gguf), "params": {"n_gpu_layers": -1}}},
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(tree))
    arguments = command.format(shlex.quote(str(path)))
    done = subprocess.run(
        ["sh", "-c", f"{shlex.quote(sys.executable)} run.py {arguments} | true"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert done.stderr == ""
