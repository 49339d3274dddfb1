"""The event streams as curl sees them: pictures, ids, the order of a swap, progress, and the end."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.gates import Gate
from tests.patience import exit_code
from tests.router_process import MakeRouter, RouterProcess, chat, until_now
from tests.slow_server import slow

STATUS, METRICS = "/v1/models/status/stream", "/metrics/stream"


@dataclass(frozen=True)
class Told:
    id: int
    name: str
    data: Any


class Curl:
    """What a person types into a terminal; its output is a file that grows."""

    def __init__(self, router: RouterProcess, path: str, output: Path) -> None:
        self._output = output
        with output.open("wb") as file:
            self.process = subprocess.Popen(["curl", "-sN", f"{router.url}{path}"], stdout=file)

    def told(self) -> list[Told]:
        blocks = self._output.read_text().split("\n\n")[:-1]
        fields = [dict(line.split(": ", 1) for line in block.splitlines()) for block in blocks]
        return [Told(int(f["id"]), f["event"], json.loads(f["data"])) for f in fields if "event" in f]

    def of(self, alias: str) -> list[dict[str, Any]]:
        return [t.data for t in self.told() if t.name == "model_update" and t.data["alias"] == alias]


@pytest.fixture(scope="module")
def gate_of_mute_large(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    return Gate(tmp_path_factory.mktemp("gates") / "mute-large")


@pytest.fixture(scope="module")
def router(
    make_shared_router: MakeRouter,
    llama_server: Path,
    tiny_gguf: Path,
    tiny_long_gguf: Path,
    smollm2: Path,
    models_dir: Path,
    gate_of_mute_large: Gate,
) -> RouterProcess:
    """Room for one. `told` reports its progress, `mute` does not, the others are llama-server as it is."""
    return make_shared_router(
        {
            "plain": {"model_path": tiny_gguf},
            "long": {"model_path": tiny_long_gguf, "params": {"n_ctx": 131072}},
            "told": {"model_path": tiny_gguf, "env": {"LOAD_S": "2"}},
            "mute": {"model_path": tiny_gguf, "env": {"MUTE": "1"}},
            "mute-large": {"model_path": smollm2, "env": {"MUTE": "1", **gate_of_mute_large.env}},
        },
        binary=slow(models_dir, llama_server),
        system={"max_concurrent_models": 1},
    )


@contextmanager
def curl(router: RouterProcess, path: str, folder: Path) -> Iterator[Curl]:
    """With its first event."""
    found = Curl(router, path, folder / "curl.txt")
    try:
        until_now(lambda: bool(found.told()))
        yield found
    finally:
        found.process.kill()
        found.process.wait()


def steps(updates: list[dict[str, Any]]) -> list[str]:
    """Its states, each once."""
    states = [update["status"] for update in updates]
    return [state for n, state in enumerate(states) if n == 0 or states[n - 1] != state]


def test_a_swap_is_told_in_its_order_with_the_progress_that_llama_server_told(
    router: RouterProcess, tmp_path: Path
) -> None:
    router.load("plain")
    with curl(router, STATUS, tmp_path) as stream:
        router.load("told")
        until_now(lambda: steps(stream.of("told"))[-1:] == ["ready"])
        told = stream.told()

    assert told[0].name == "full_status"
    assert told[0].data["models"]["plain"]["status"] == "ready"
    ids = [t.id for t in told]
    assert ids == sorted(set(ids))
    assert steps(stream.of("plain"))[-2:] == ["stopping", "off"]
    assert [s for s in steps(stream.of("told")) if s != "off"] == ["starting", "loading", "ready"]
    moves = [(t.data["alias"], t.data["status"]) for t in told if t.name == "model_update"]
    assert moves.index(("plain", "off")) < moves.index(("told", "starting"))
    loading = [u for u in stream.of("told") if u["status"] == "loading"]
    fractions = [u["load_progress"] for u in loading if u["load_progress"] is not None]
    assert fractions == sorted(fractions)
    assert len(set(fractions)) >= 3
    assert {u["load_stage"] for u in loading} <= {"text_model", None}


def test_progress_that_was_not_told_is_not_made_up(router: RouterProcess, tmp_path: Path) -> None:
    router.eject("plain", "told")
    with curl(router, STATUS, tmp_path) as stream:
        router.load("mute")
        until_now(lambda: steps(stream.of("mute"))[-1:] == ["ready"])
        updates = stream.of("mute")
    assert {"starting", "ready"} <= set(steps(updates))
    assert {u["load_progress"] for u in updates} == {None}
    assert {u["load_stage"] for u in updates} <= {None, "weights", "context", "warm-up"}


def test_without_the_protocol_the_part_of_the_file_that_was_read_is_shown(
    router: RouterProcess, tmp_path: Path, gate_of_mute_large: Gate
) -> None:
    """Held in the middle of its load, so that there is time to look."""
    with curl(router, STATUS, tmp_path) as stream:
        with gate_of_mute_large.closed():
            router.client.post("/v1/models/load", json={"model": "mute-large"}).raise_for_status()
            until_now(lambda: ((stream.of("mute-large") or [{}])[-1].get("load_progress") or 0) > 0)
            seen = stream.of("mute-large")[-1]
        until_now(lambda: steps(stream.of("mute-large"))[-1:] == ["ready"])
        last = stream.of("mute-large")[-1]
    assert seen["status"] in ("starting", "loading")
    assert 0 < seen["load_progress"] <= 1
    assert seen["load_stage"] in (None, "weights", "warm-up")  # its log is written a moment later
    assert (last["load_progress"], last["load_stage"]) == (None, None)


def test_the_time_of_the_last_load_is_told_for_the_next(router: RouterProcess) -> None:
    router.load("told")
    first = router.status("told")
    all_s = router.metric("router_model_load_seconds_sum", model="told")
    assert 2 < first["expected_load_sec"] <= all_s + 0.1
    assert first["load_started"] is None
    router.eject("told")
    before = time.time()
    router.client.post("/v1/models/load", json={"model": "told"}).raise_for_status()
    until_now(lambda: router.state("told") in ("starting", "loading"))
    again = router.status("told")
    assert again["expected_load_sec"] == first["expected_load_sec"]
    assert before - 1 < again["load_started"] < time.time() + 1
    until_now(lambda: router.state("told") == "ready")  # ejected before, it would be loaded once more


def test_progress_is_shown_only_while_it_loads(router: RouterProcess, tmp_path: Path) -> None:
    """The real one on a CPU: its weights are mapped, not read, so that there is hardly anything to tell."""
    router.eject("told", "mute")
    with curl(router, STATUS, tmp_path) as stream:
        router.load("plain")
        until_now(lambda: steps(stream.of("plain"))[-1:] == ["ready"])
        updates = stream.of("plain")
    assert all(u["load_progress"] is None for u in updates if u["status"] not in ("starting", "loading"))
    assert {u["load_progress"] for u in updates} <= {None, 0.0, 1.0}
    assert router.status("plain")["load_progress"] is None


def test_a_request_that_runs_after_a_load_is_shown_as_running(router: RouterProcess, tmp_path: Path) -> None:
    """Nothing was told when the requests that had waited for a load were granted."""
    router.eject("long")
    with curl(router, STATUS, tmp_path) as stream:
        body = chat("long", max_tokens=100_000, stream=True)
        with router.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            pieces = answer.iter_bytes()  # without a reader the answer would be closed
            next(pieces)
            until_now(lambda: (stream.of("long") or [{}])[-1].get("in_flight") == 1)
            assert stream.of("long")[-1]["queue_depth"] == 0
        until_now(lambda: stream.of("long")[-1]["in_flight"] == 0)


def test_figures_come_at_once_and_every_two_seconds(router: RouterProcess, tmp_path: Path) -> None:
    """By the router's own times. One of them may be late, with the machine; none is early but the second,
    which is that of whoever looked before.
    """
    with curl(router, METRICS, tmp_path) as stream:
        until_now(lambda: len(stream.told()) >= 4)
        told = stream.told()[:4]
    times = [t.data["timestamp"] for t in told[1:]]
    assert 1.9 < min(later - earlier for earlier, later in pairwise(times)) < 4
    assert [t.name for t in told] == ["metrics"] * 4
    assert [t.id for t in told] == sorted({t.id for t in told})
    assert told[0].data["host"]["total_mb"] == router.get("/vram")["host"]["total_mb"]
    assert told[0].data["reason"] == router.get("/vram")["reason"]
    assert set(told[0].data["models"]) == {"plain", "long", "told", "mute", "mute-large"}


def test_both_streams_end_when_the_router_stops(router: RouterProcess, tmp_path: Path) -> None:
    (tmp_path / "metrics").mkdir()
    with (
        curl(router, STATUS, tmp_path) as status,
        curl(router, METRICS, tmp_path / "metrics") as metrics,
    ):
        router.signal(signal.SIGTERM)
        assert [exit_code(stream.process) for stream in (status, metrics)] == [0, 0]
        assert router.wait() == 0
        told = status.told()
    assert [t.data["status"] for t in told if t.name == "server_update"][-1] == "stopping"
    router.start()  # for the tests that come after this one
    router.wait_until_it_answers()
