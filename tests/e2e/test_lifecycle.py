"""Models that come, go, crash and are ejected, and a router that is stopped in every way."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.patience import WAIT_S
from tests.router_process import MakeRouter, RouterProcess, chat, frozen, until, until_now
from tests.streams import pieces_of

ASK = "/v1/chat/completions"
ENDLESS = 100_000
LONG: dict[str, Any] = {"n_ctx": 131072}


@pytest.fixture(scope="module")
def router(make_shared_router: MakeRouter, tiny_gguf: Path, tiny_long_gguf: Path) -> RouterProcess:
    """Room for two."""
    return make_shared_router(
        {
            "one": {"model_path": tiny_gguf},
            "two": {"model_path": tiny_gguf},
            "three": {"model_path": tiny_gguf},
            "long": {"model_path": tiny_long_gguf, "params": LONG},
            "pair": {"model_path": tiny_gguf, "parallel_requests": 2},
            "brief": {"model_path": tiny_long_gguf, "params": LONG, "idle_timeout_sec": 1},
            "brief-too": {"model_path": tiny_gguf, "idle_timeout_sec": 1},
        },
        system={"max_concurrent_models": 2, "max_restarts": 100},
    )


class Stream:
    """A streamed chat, read in the background."""

    def __init__(self, http: httpx.AsyncClient, body: dict[str, Any]) -> None:
        self.text = ""
        self.task = asyncio.create_task(self._read(http, {**body, "stream": True}))

    async def _read(self, http: httpx.AsyncClient, body: dict[str, Any]) -> None:
        async with http.stream("POST", ASK, json=body) as answer:
            assert answer.status_code == 200, await answer.aread()
            async for piece in pieces_of(answer):
                self.text += piece

    async def begun(self) -> Stream:
        await until(lambda: "data: " in self.text)
        return self

    @property
    def last(self) -> str:
        assert self.text.endswith("\n\n"), self.text[-200:]
        return self.text[:-2].split("\n\n")[-1]

    @property
    def error(self) -> dict[str, Any]:
        assert self.last.startswith('data: {"error"'), self.last
        found: dict[str, Any] = json.loads(self.last[6:])["error"]
        return found


def ask(http: httpx.AsyncClient, body: dict[str, Any]) -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(http.post(ASK, json=body))


# --- which models are there --------------------------------------------------------------------------


def test_of_three_models_with_room_for_two_the_least_recently_used_goes(router: RouterProcess) -> None:
    router.eject("one", "two", "three", "long", "pair", "brief", "brief-too")
    for alias in ("one", "two", "one"):
        assert router.client.post(ASK, json=chat(alias)).status_code == 200
    kept = router.status("one")["pid"]
    evictions = router.metric("router_model_evictions_total", model="two", reason="count")
    plan = router.get("/v1/models/three/plan")

    assert router.client.post(ASK, json=chat("three")).status_code == 200

    assert (plan["fits"], plan["evicts"]) == (True, ["two"])
    assert {alias: router.state(alias) for alias in ("one", "two", "three")} == {
        "one": "ready",
        "two": "off",
        "three": "ready",
    }
    assert router.status("one")["pid"] == kept
    assert router.metric("router_model_evictions_total", model="two", reason="count") == evictions + 1
    assert len(router.children()) == 2


async def test_ten_requests_at_once_for_a_model_that_is_off_load_it_once(
    router: RouterProcess, http: httpx.AsyncClient
) -> None:
    router.eject("one")
    loads = router.loads("one")

    answers = await asyncio.gather(*(http.post(ASK, json=chat("one")) for _ in range(10)))

    assert [answer.status_code for answer in answers] == [200] * 10
    assert router.loads("one") == loads + 1


async def test_an_unused_model_is_unloaded_but_never_one_that_is_answering(
    router: RouterProcess, http: httpx.AsyncClient
) -> None:
    answer = await Stream(http, chat("brief", max_tokens=ENDLESS)).begun()
    await http.post("/v1/models/load?wait=true", json={"model": "brief-too"})
    await until(lambda: router.state("brief-too") == "off")  # so long has it been
    assert router.state("brief") == "ready"
    assert not answer.task.done()
    answer.task.cancel()

    await until(lambda: router.state("brief") == "off")
    assert router.metric("router_model_evictions_total", model="brief", reason="idle") == 1
    assert "idle" in router.status("brief")["reason"]


def test_preloading_loads_what_fits_while_the_api_answers(
    make_router: MakeRouter, gated_llama_server: Path, tiny_gguf: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    router = make_router(
        {
            "first": {"model_path": tiny_gguf, "env": {"GATE": str(gate)}},
            "second": {"model_path": tiny_gguf},
            "third": {"model_path": tiny_gguf},
        },
        binary=gated_llama_server,
        system={"preload_models": ["*"], "max_concurrent_models": 2},
    )

    until_now(lambda: router.state("second") == "ready")
    assert router.state("first") == "starting"
    assert router.get("/v1/models/status")["server"]["status"] == "starting"
    assert router.client.post(ASK, json=chat("second")).status_code == 200
    with router.client.stream("GET", "/v1/models/status/stream") as changes:
        lines = changes.iter_lines()
        assert "event: full_status" in lines
        gate.touch()
        assert "event: server_update" in lines
        assert '"status": "ready"' in next(lines)
    assert router.get("/v1/models/status")["summary"] == {"ready": 2, "off": 1}
    assert router.state("third") == "off"


# --- crashes -----------------------------------------------------------------------------------------


async def test_a_model_that_dies_while_idle_is_started_again(router: RouterProcess) -> None:
    router.load("one")
    victim = router.child("one")
    restarts = router.metric("router_model_restarts_total", model="one")

    with router.client.stream("GET", "/v1/models/status/stream") as changes:
        states = states_of("one", changes)
        assert next(states) == "ready"
        victim.kill()
        seen = [next(states)]
        while seen[-1] != "ready":
            seen.append(next(states))

    assert "crashed" in seen
    assert router.status("one")["pid"] != victim.pid
    assert router.metric("router_model_restarts_total", model="one") == restarts + 1
    assert router.client.post(ASK, json=chat("one")).status_code == 200


def states_of(alias: str, changes: httpx.Response) -> Iterator[str]:
    """Now, and whenever it moves: none is left out, however seldom somebody looks."""
    for line in changes.iter_lines():
        told = json.loads(line[6:]) if line.startswith("data: ") else {}
        if "models" in told:
            yield told["models"][alias]["status"]
        elif told.get("alias") == alias:
            yield told["status"]


async def test_a_crash_ends_a_begun_stream_with_an_error_and_harms_nobody_who_waits(
    router: RouterProcess, http: httpx.AsyncClient
) -> None:
    router.load("long")
    stream = await Stream(http, chat("long", max_tokens=ENDLESS)).begun()
    waiting = [ask(http, chat("long", content=f"{number}")) for number in range(3)]
    waiting_stream = Stream(http, chat("long"))
    await until(lambda: router.status("long")["queue_depth"] == 4)

    router.child("long").kill()

    await stream.task
    assert stream.error["code"] == "model_crashed"
    assert stream.error.keys() >= {"message", "type", "param", "code"}
    assert "[DONE]" not in stream.text
    assert [(await answer).status_code for answer in waiting] == [200] * 3
    await waiting_stream.task
    assert waiting_stream.last == "data: [DONE]"
    assert router.is_quiet("long")


async def test_a_crash_before_the_answer_began_is_not_noticed_by_the_client(
    router: RouterProcess, http: httpx.AsyncClient
) -> None:
    router.load("one")
    replays = router.metric("router_request_replays_total", model="one")
    with router.frozen("one") as process:
        answer = ask(http, chat("one"))
        await until(lambda: router.status("one")["in_flight"] == 1)
        process.kill()

    assert (await answer).status_code == 200
    assert router.metric("router_request_replays_total", model="one") == replays + 1


async def test_a_second_crash_of_the_same_request_is_told_to_the_client(
    router: RouterProcess, http: httpx.AsyncClient
) -> None:
    router.load("long")
    answer = ask(http, chat("long", max_tokens=ENDLESS, content="crashes twice"))
    first = await until(lambda: pid_that_answers(router, "long", None))
    psutil.Process(first).kill()
    second = await until(lambda: pid_that_answers(router, "long", first))
    psutil.Process(second).kill()

    crashed = await answer
    assert crashed.status_code == 502
    assert crashed.json()["error"]["code"] == "model_crashed"
    await until(lambda: router.is_quiet("long"))


def pid_that_answers(router: RouterProcess, alias: str, not_this: int | None) -> int | None:
    status = router.status(alias)
    pid: int | None = status.get("pid")
    return pid if status["in_flight"] == 1 and pid != not_this else None


# --- eject -------------------------------------------------------------------------------------------


async def test_eject_lets_a_running_request_finish_and_waiting_ones_load_it_again(
    router: RouterProcess, http: httpx.AsyncClient
) -> None:
    router.load("one")
    loads, replays = router.loads("one"), router.metric("router_request_replays_total", model="one")
    with router.frozen("one"):
        running = ask(http, chat("one"))
        await until(lambda: router.status("one")["in_flight"] == 1)
        before = ask(http, chat("one", content="before"))
        await until(lambda: router.status("one")["queue_depth"] == 1)
        ejecting = asyncio.create_task(http.post("/v1/models/eject", json={"model": "one"}))
        await until(lambda: router.state("one") == "stopping")
        after = ask(http, chat("one", content="after"))
        await until(lambda: router.status("one")["queue_depth"] == 2)
        assert not running.done() and not ejecting.done()

    answers = await asyncio.gather(running, before, after)
    assert [answer.status_code for answer in answers] == [200] * 3
    assert (await ejecting).json()["status"] == "success"
    assert router.loads("one") == loads + 1
    assert router.metric("router_request_replays_total", model="one") == replays


async def test_a_draining_model_takes_nobody_into_its_free_slot(
    router: RouterProcess, http: httpx.AsyncClient
) -> None:
    router.load("pair")
    with router.frozen("pair"):
        running = ask(http, chat("pair"))
        await until(lambda: router.status("pair")["in_flight"] == 1)
        ejecting = asyncio.create_task(http.post("/v1/models/eject", json={"model": "pair"}))
        await until(lambda: router.state("pair") == "stopping")
        late = ask(http, chat("pair", content="late"))
        status = await until(lambda: (s := router.status("pair"))["queue_depth"] + s["in_flight"] == 2 and s)
        assert (status["in_flight"], status["queue_depth"]) == (1, 1)

    assert [(await task).status_code for task in (running, ejecting, late)] == [200] * 3


async def test_eject_now_cuts_what_runs_and_waiting_requests_survive(
    router: RouterProcess, http: httpx.AsyncClient
) -> None:
    router.load("long")
    stream = await Stream(http, chat("long", max_tokens=ENDLESS)).begun()
    waiting = ask(http, chat("long"))
    await until(lambda: router.status("long")["queue_depth"] == 1)

    ejected = await http.post("/v1/models/eject?mode=now", json={"model": "long"})

    assert ejected.json()["model_ejected"] == "long"
    await stream.task
    assert stream.error["code"] == "model_crashed"
    assert (await waiting).status_code == 200
    assert router.metric("router_model_evictions_total", model="long", reason="manual") >= 1


# --- logs --------------------------------------------------------------------------------------------


def test_the_log_shows_its_tail_and_can_be_followed(router: RouterProcess) -> None:
    router.load("one")
    tail = router.client.get("/v1/models/one/logs?lines=5")

    assert tail.headers["content-type"].startswith("text/plain")
    assert len(tail.text.splitlines()) == 5
    with router.client.stream("GET", "/v1/models/one/logs?lines=5&follow=true") as following:
        assert following.headers["content-type"].startswith("text/event-stream")
        lines = (line[6:] for line in following.iter_lines() if line.startswith("data: "))
        shown = "\n".join(next(lines) for _ in range(5))
        until_now(lambda: shown in router.client.get("/v1/models/one/logs?lines=10000").text)
        httpx.post(f"{router.url}{ASK}", json=chat("one"), timeout=WAIT_S, trust_env=False).raise_for_status()
        assert any("print_timing" in line or "slot" in line for line in lines)


# --- another configuration --------------------------------------------------------------------------


def test_sighup_restarts_only_what_changed_and_a_broken_file_changes_nothing(
    make_router: MakeRouter, tiny_gguf: Path
) -> None:
    router = make_router({"same": {"model_path": tiny_gguf}, "changed": {"model_path": tiny_gguf}})
    router.load("same", "changed")
    before = {alias: router.status(alias)["pid"] for alias in ("same", "changed")}
    tree = json.loads(router.config_path.read_text())

    tree["models"]["changed"]["params"]["n_ctx"] = 1024
    tree["models"]["new"] = tree["models"]["same"]
    router.config_path.write_text(json.dumps(tree))
    router.signal(signal.SIGHUP)

    until_now(lambda: "new" in router.get("/v1/models/status")["models"])
    assert router.client.post(ASK, json=chat("new")).status_code == 200
    assert router.client.post(ASK, json=chat("changed")).status_code == 200
    assert router.get("/v1/models/changed")["n_ctx"] == 1024
    assert router.status("changed")["pid"] != before["changed"]
    assert router.status("same")["pid"] == before["same"]

    log = router.log()
    router.config_path.write_text(json.dumps({**tree, "modles": {}}))
    router.signal(signal.SIGHUP)
    until_now(lambda: "modles" in router.log()[len(log) :])
    assert list(router.get("/v1/models/status")["models"]) == ["same", "changed", "new"]
    assert router.status("same")["pid"] == before["same"]


# --- the end -----------------------------------------------------------------------------------------


def one_that_streams_one_idle_one_that_never_loads(tiny: Path, tiny_long: Path) -> dict[str, dict[str, Any]]:
    return {
        "long": {"model_path": tiny_long, "params": LONG},
        "idle": {"model_path": tiny},
        "never": {"model_path": tiny, "env": {"GATE": "/nonexistent/gate"}},
    }


async def test_sigterm_lets_a_stream_finish_and_refuses_everybody_else(
    make_router: MakeRouter,
    gated_llama_server: Path,
    tiny_gguf: Path,
    tiny_long_gguf: Path,
) -> None:
    router = make_router(
        one_that_streams_one_idle_one_that_never_loads(tiny_gguf, tiny_long_gguf),
        binary=gated_llama_server,
        system={"drain_timeout_sec": 600},  # the stream ends before, however slow the machine is
    )
    router.load("long", "idle")
    async with router.open_client() as http:
        status_stream = asyncio.create_task(http.get("/v1/models/status/stream"))
        metrics_stream = asyncio.create_task(http.get("/metrics/stream"))
        log_stream = asyncio.create_task(http.get("/v1/models/idle/logs?follow=true"))
        loading = ask(http, chat("never"))
        await until(lambda: router.state("never") == "starting")
        process = router.child("long")
        stream = await Stream(http, chat("long", max_tokens=2000)).begun()
        with frozen(process):
            waiting = ask(http, chat("long"))
            await until(lambda: router.status("long")["queue_depth"] == 1)
            children = router.children()

            router.signal(signal.SIGTERM)

            refused = [await waiting, await loading, await ask(http, chat("idle"))]
            server_sent = [await status_stream, await metrics_stream, await log_stream]
            assert not stream.task.done()
        await stream.task
        assert await router.ended() == 0

    for answer in refused:
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "shutting_down"
        assert int(answer.headers["retry-after"]) >= 1
    assert [answer.status_code for answer in server_sent] == [200] * 3
    assert "event: server_update" in server_sent[0].text
    assert '"stopping"' in server_sent[0].text
    assert stream.last == "data: [DONE]"
    assert stream.text.count('"delta":{"content"') > 1000
    assert len(children) >= 3
    await until(lambda: not any(child.is_running() for child in children))  # init reaps what they started


async def test_whoever_outlasts_the_drain_after_ctrl_c_is_told_that_the_router_stops(
    make_router: MakeRouter, tiny_long_gguf: Path
) -> None:
    """Streams in the shape of their API."""
    entry = {"model_path": tiny_long_gguf, "parallel_requests": 3, "params": LONG}
    router = make_router({"long": entry}, system={"drain_timeout_sec": 1})
    router.load("long")
    async with router.open_client() as http:
        stream = await Stream(http, chat("long", max_tokens=ENDLESS)).begun()
        with router.frozen("long"):
            endless = chat("long", max_tokens=ENDLESS, stream=True)
            messages = asyncio.create_task(http.post("/v1/messages", json=endless))
            plain = ask(http, chat("long", max_tokens=ENDLESS))
            await until(lambda: router.status("long")["in_flight"] == 3)
            waiting = [ask(http, chat("long", stream=is_stream)) for is_stream in (False, True)]
            await until(lambda: router.status("long")["queue_depth"] == 2)

            router.signal(signal.SIGINT)

            refused = [await answer for answer in (*waiting, plain, messages)]
            await stream.task
            assert await router.ended() == 0
    assert stream.error["code"] == "shutting_down"
    assert [answer.status_code for answer in refused] == [503] * 4
    assert all("shutting_down" in answer.text for answer in refused)
    assert refused[-1].json()["type"] == "error"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_everything_at_once(
    make_router: MakeRouter, tiny_long_gguf: Path, number: signal.Signals
) -> None:
    router = make_router({"long": {"model_path": tiny_long_gguf, "params": LONG}})
    router.load("long")
    async with router.open_client() as http:
        with router.frozen("long"):
            running = ask(http, chat("long"))
            await until(lambda: router.status("long")["in_flight"] == 1)
            children = router.children()
            router.signal(number)
            await until(lambda: router.get("/v1/models/status")["server"]["status"] == "stopping")

            router.signal(number)

            await router.ended()
            await until(lambda: not any(child.is_running() for child in children))
        with pytest.raises(httpx.TransportError):
            await running


async def test_a_router_that_is_killed_takes_its_llama_servers_along(
    make_router: MakeRouter, gated_llama_server: Path, tiny_gguf: Path, tiny_long_gguf: Path
) -> None:
    models = one_that_streams_one_idle_one_that_never_loads(tiny_gguf, tiny_long_gguf)
    router = make_router(models, binary=gated_llama_server)
    router.load("long", "idle")
    async with router.open_client() as http:
        loading = ask(http, chat("never"))
        stream = await Stream(http, chat("long", max_tokens=ENDLESS)).begun()
        await until(lambda: len(router.children()) >= 3)
        children = router.children()
        assert router.state("never") == "starting"

        router.signal(signal.SIGKILL)

        await until(lambda: not any(child.is_running() for child in children))
        await asyncio.gather(loading, stream.task, return_exceptions=True)


def test_fifty_cycles_of_load_and_eject_leave_nothing_behind(
    make_router: MakeRouter, tiny_gguf: Path
) -> None:
    router = make_router({"tiny": {"model_path": tiny_gguf}})
    process = psutil.Process(router.pid)

    def cycle(number: int) -> None:
        assert router.client.post(ASK, json=chat("tiny", max_tokens=1)).status_code == 200
        mode = "now" if number % 2 else "drain"
        ejected = router.client.post(f"/v1/models/eject?mode={mode}", json={"model": "tiny"})
        assert ejected.json()["status"] == "success"

    for number in range(4):
        cycle(number)
    open_files, threads = process.num_fds(), process.num_threads()
    for number in range(50):
        cycle(number)

    assert router.children() == []
    # Kept connections of the last cycles end by themselves.
    until_now(lambda: process.num_fds() <= open_files)
    assert process.num_threads() <= threads + 2
    assert router.loads("tiny") == 54
    assert router.state("tiny") == "off"
