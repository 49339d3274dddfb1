"""Every way in which a load can fail: who waits gets a definite error, soon, and nobody else is harmed."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.ggufs import make_tiny
from tests.ports import Ports
from tests.router_process import MakeRouter, RouterProcess, chat

ASK = "/v1/chat/completions"

CAUSES: dict[str, str] = {
    "missing": "no file",
    "truncated": "incomplete|file bounds|ends before|truncated|beyond",
    "garbage": "GGUF|magic",
    "unknown": "does not know|unknown",
    "misfit": "output_norm",
    "bad-flag": "--nonsense",
    "bad-value": "--cache-type-k|-ctk|nonsense",
    "no-memory": "memory",
}
FROM_THE_LOG = {"unknown", "misfit", "bad-value", "no-memory"}
"""Only llama-server itself finds these out; the others are known before it is started."""


@pytest.fixture(scope="module")
def router(
    make_shared_router: MakeRouter,
    llama_server: Path,
    models_dir: Path,
    tiny_gguf: Path,
    misfit_gguf: Path,
    truncated_gguf: Path,
    garbage_gguf: Path,
) -> RouterProcess:
    unknown = models_dir / "unknown.gguf"
    whole = tiny_gguf.read_bytes()
    assert whole.count(b"llama") > 1
    unknown.write_bytes(whole.replace(b"llama", b"lhama"))
    large = make_tiny(models_dir / "large.gguf", context=2**22)
    binary = models_dir / "limited-llama-server"
    binary.write_text(f'#!/bin/sh\n[ -z "$LIMIT_KB" ] || ulimit -v $LIMIT_KB\nexec "{llama_server}" "$@"\n')
    binary.chmod(0o755)
    return make_shared_router(
        {
            "good": {"model_path": tiny_gguf},
            "missing": {"model_path": models_dir / "nowhere.gguf"},
            "truncated": {"model_path": truncated_gguf},
            "garbage": {"model_path": garbage_gguf},
            "unknown": {"model_path": unknown},
            "misfit": {"model_path": misfit_gguf},
            "bad-flag": {"model_path": tiny_gguf, "extra_args": ["--nonsense"]},
            "bad-value": {"model_path": tiny_gguf, "extra_args": ["--cache-type-k", "nonsense"]},
            "no-memory": {
                "model_path": large,
                "params": {"n_ctx": 2**22},
                "env": {"LIMIT_KB": str(1_000_000)},
            },
        },
        binary=binary,
        system={"max_concurrent_models": 2, "load_max_retries": 1},
    )


@pytest.mark.parametrize("alias", CAUSES)
async def test_everybody_who_waits_is_told_the_cause_soon(
    router: RouterProcess, http: httpx.AsyncClient, alias: str
) -> None:
    router.load("good")
    good = router.status("good")["pid"]

    answers = await asyncio.gather(*(http.post(ASK, json=chat(alias)) for _ in range(3)))
    late = await http.post(ASK, json=chat(alias))

    for answer in (*answers, late):
        assert answer.status_code == 424, answer.text
        error: dict[str, Any] = answer.json()["error"]
        assert error["code"] in ("load_failed", "model_failed")
        assert any(cause in error["message"] for cause in CAUSES[alias].split("|")), error["message"]
        assert bool(error["log_tail"]) == (alias in FROM_THE_LOG)
    assert late.json()["error"]["code"] == "model_failed"
    assert router.status("good")["pid"] == good
    assert router.metric("router_model_evictions_total", model="good") == 0
    assert alias in {failed["model"] for failed in router.get("/v1/models/failed")["failed_models"]}


async def test_a_stream_that_waited_is_told_too(router: RouterProcess, http: httpx.AsyncClient) -> None:
    router.client.post("/v1/models/misfit/reset")
    answer = await http.post(ASK, json=chat("misfit", stream=True))
    assert (answer.status_code, answer.json()["error"]["code"]) == (424, "load_failed")


async def test_a_binary_that_is_taken_away_is_named_and_its_return_heals(
    make_router: MakeRouter, llama_server: Path, tiny_gguf: Path, tmp_path: Path
) -> None:
    binary = tmp_path / "my-llama-server"
    binary.write_text(f'#!/bin/sh\nexec "{llama_server}" "$@"\n')
    binary.chmod(binary.stat().st_mode | stat.S_IXUSR)
    router = make_router({"m": {"model_path": tiny_gguf}}, binary=binary)
    for is_there in (True, False):
        if is_there:
            binary.chmod(0o600)
        else:
            binary.unlink()
        answer = router.client.post(ASK, json=chat("m"))
        assert answer.status_code == 424
        assert "my-llama-server cannot be executed" in answer.json()["error"]["message"]
        router.client.post("/v1/models/m/reset")
    binary.symlink_to(llama_server)
    assert router.client.post(ASK, json=chat("m")).status_code == 200


def test_a_log_folder_that_cannot_be_written_to_is_named_and_its_return_heals(
    make_router: MakeRouter, tiny_gguf: Path, tmp_path: Path
) -> None:
    """Root may write everywhere, so the folder is a place where there can be none: below a file."""
    file = tmp_path / "file"
    file.touch()
    router = make_router({"m": {"model_path": tiny_gguf}}, system={"log_dir": str(file / "logs")})
    assert "no model can be loaded until that is corrected" in router.log()
    answer = router.client.post(ASK, json=chat("m"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (424, "load_failed")
    assert f"{file}/logs/m.log cannot be written: Not a directory" in answer.json()["error"]["message"]
    assert "system.log_dir" in answer.json()["error"]["message"]
    file.unlink()
    router.client.post("/v1/models/m/reset").raise_for_status()
    assert router.client.post(ASK, json=chat("m")).status_code == 200


def test_a_log_folder_that_is_lost_while_a_model_serves_harms_nobody(
    make_router: MakeRouter, tiny_gguf: Path, tmp_path: Path
) -> None:
    logs = tmp_path / "logs"
    router = make_router({"m": {"model_path": tiny_gguf}}, system={"log_dir": str(logs)})
    router.load("m")
    logs.rename(tmp_path / "away")
    logs.touch()
    for _ in range(3):
        assert router.client.post(ASK, json=chat("m")).status_code == 200
    assert router.client.get("/v1/models/m/logs").text.count("\n") > 5, "the tail is kept in memory"
    assert router.client.get("/health").status_code == 200


def test_what_is_known_before_a_start_costs_nobody_its_place(
    make_router: MakeRouter,
    llama_server: Path,
    tiny_gguf: Path,
    truncated_gguf: Path,
    garbage_gguf: Path,
    tmp_path: Path,
) -> None:
    """Room for one, and it is taken."""
    binary, logs = tmp_path / "my-llama-server", tmp_path / "logs"
    binary.symlink_to(llama_server)
    bad: dict[str, dict[str, Any]] = {
        "missing": {"model_path": tmp_path / "nowhere.gguf"},
        "truncated": {"model_path": truncated_gguf},
        "garbage": {"model_path": garbage_gguf},
        "bad-flag": {"model_path": tiny_gguf, "extra_args": ["--nonsense"]},
        "no-binary": {"model_path": tiny_gguf},
        "no-logs": {"model_path": tiny_gguf},
    }
    system = {"max_concurrent_models": 1, "log_dir": str(logs)}
    router = make_router({"good": {"model_path": tiny_gguf}, **bad}, binary=binary, system=system)
    router.load("good")
    good = router.status("good")["pid"]
    for alias in bad:
        if alias == "no-binary":
            binary.unlink()
        elif alias == "no-logs":
            binary.symlink_to(llama_server)
            (logs / "no-logs.log").mkdir()
        answer = router.client.post(ASK, json=chat(alias))
        assert (answer.status_code, answer.json()["error"]["code"]) == (424, "load_failed"), answer.text
        assert router.status("good")["pid"] == good, alias
    assert router.client.post(ASK, json=chat("good")).status_code == 200


async def test_a_port_that_is_taken_is_passed_over(
    make_router: MakeRouter, tiny_gguf: Path, tmp_path: Path
) -> None:
    reserved = Ports()  # those behind it are free
    port = reserved.first
    stranger = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", port)
    router = make_router({"m": {"model_path": tiny_gguf}}, system={"first_port": port})
    assert router.client.post(ASK, json=chat("m")).status_code == 200
    assert router.status("m")["port"] != port
    stranger.close()
    await stranger.wait_closed()
