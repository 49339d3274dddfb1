"""Every endpoint with its fields, every error with its status and code, as the contract writes them."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.patience import WAIT_S
from tests.router_process import MakeRouter, RouterProcess, chat, until
from tests.streams import pieces_of

ERROR_FIELDS = {"message", "type", "param", "code"}
QUEUE_TIMEOUT_S = 2
REQUEST_TIMEOUT_S = 2


@pytest.fixture(scope="module")
def router(
    make_shared_router: MakeRouter, tiny_gguf: Path, misfit_gguf: Path, garbage_gguf: Path
) -> RouterProcess:
    embedding = {"embedding": True, "pooling": "mean"}
    return make_shared_router(
        {
            "chat": {"model_path": tiny_gguf, "aliases": ["other-name"]},
            "org/embed:v1": {"model_path": tiny_gguf, "params": embedding},
            "garbage": {"model_path": garbage_gguf},
            "misfit": {"model_path": misfit_gguf},
            "huge": {"model_path": tiny_gguf, "vram_mb": 10**8},
        }
    )


@pytest.fixture(scope="module")
def secured(make_shared_router: MakeRouter, tiny_gguf: Path) -> RouterProcess:
    """Keys, a small body limit, metrics not public."""
    guest = {"key": "guest-key", "name": "guest", "max_priority": "low", "admin": False}
    return make_shared_router(
        {"chat": {"model_path": tiny_gguf}},
        api={
            "api_keys": ["boss-key", guest],
            "max_body_mb": 0.01,
            "public_metrics": False,
            "cors_allow_origins": ["https://app.example"],
        },
        key="boss-key",
    )


@pytest.fixture(scope="module")
def tight(
    make_shared_router: MakeRouter, gated_llama_server: Path, tiny_gguf: Path, tiny_long_gguf: Path
) -> RouterProcess:
    """One place, a queue of one, short time-outs; `never` is a model whose load never ends."""
    return make_shared_router(
        {
            "slow": {"model_path": tiny_long_gguf, "params": {"n_ctx": 131072}},
            "never": {"model_path": tiny_gguf, "env": {"GATE": "/nonexistent/gate"}},
            "pinned": {"model_path": tiny_gguf, "pinned": True},
        },
        binary=gated_llama_server,
        system={
            "max_concurrent_models": 1,
            "max_queue_size_per_model": 1,
            "queue_timeout_sec": QUEUE_TIMEOUT_S,
            "request_timeout_sec": REQUEST_TIMEOUT_S,
        },
    )


def error_of(answer: httpx.Response, status: int, code: str | None, kind: str) -> dict[str, Any]:
    """The error object, after checking that it has OpenAI's shape."""
    assert answer.status_code == status, answer.text
    body: dict[str, Any] = answer.json()
    assert set(body) == {"error"}, body
    error: dict[str, Any] = body["error"]
    assert error.keys() >= ERROR_FIELDS
    assert (error["code"], error["type"]) == (code, kind)
    assert len(error["message"]) > 10
    assert answer.headers["x-request-id"]
    return error


def fields_of(body: Any, prefix: str = "") -> set[str]:
    """`a`, `a.b` for nested objects."""
    found = set()
    for name, value in body.items():
        found.add(prefix + name)
        if isinstance(value, dict):
            found |= fields_of(value, f"{prefix}{name}.")
    return found


# --- endpoints ---------------------------------------------------------------------------------------

SAY_HELLO = [{"role": "user", "content": "Hello"}]
FEW = {"model": "chat", "max_tokens": 4}
EMBED = "org/embed:v1"

MODEL_ENDPOINTS = {
    "/v1/chat/completions": (FEW | {"messages": SAY_HELLO}, {"choices", "usage", "id", "model"}),
    "/v1/completions": (FEW | {"prompt": "Hello"}, {"choices", "usage"}),
    "/v1/responses": ({"model": "chat", "input": "Hello", "max_output_tokens": 4}, {"output", "status"}),
    "/v1/messages": (FEW | {"messages": SAY_HELLO}, {"content", "role", "usage"}),
    "/v1/messages/count_tokens": ({"model": "chat", "messages": SAY_HELLO}, {"input_tokens"}),
    "/v1/embeddings": ({"model": EMBED, "input": "Hello"}, {"data", "usage", "object"}),
    "/tokenize": ({"model": "chat", "content": "Hello"}, {"tokens"}),
    "/detokenize": ({"model": "chat", "tokens": [40, 41]}, {"content"}),
    "/apply-template": ({"model": "chat", "messages": SAY_HELLO}, {"prompt"}),
}


@pytest.mark.parametrize("path", MODEL_ENDPOINTS)
def test_a_model_routed_endpoint_answers(router: RouterProcess, path: str) -> None:
    body, fields = MODEL_ENDPOINTS[path]
    answer = router.client.post(path, json=body)

    assert answer.status_code == 200, answer.text
    assert answer.json().keys() >= fields


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank"])
def test_reranking_wants_a_model_of_that_kind(router: RouterProcess, path: str) -> None:
    body = {"model": "chat", "query": "q", "documents": ["d"]}
    error_of(router.client.post(path, json=body), 400, "wrong_model_kind", "invalid_request_error")


def test_a_loaded_models_llama_server_tells_of_itself(router: RouterProcess) -> None:
    router.load("chat")
    for path, word in (("/props", "chat_template"), ("/slots", "n_ctx"), ("/metrics", "llamacpp:")):
        answer = router.client.get(path, params={"model": "chat"})
        assert (answer.status_code, word in answer.text) == (200, True)


def test_what_llama_server_refuses_passes_through_as_it_is(router: RouterProcess) -> None:
    infill = router.client.post("/infill", json={"model": "chat", "input_prefix": "a", "input_suffix": "b"})
    too_long = router.client.post("/v1/chat/completions", json=chat("chat", content="the " * 3000))

    assert infill.status_code == 501
    assert infill.json()["error"].keys() == {"code", "message", "type"}
    assert too_long.status_code == 400
    assert too_long.json()["error"]["type"] == "exceed_context_size_error"
    assert too_long.json()["error"]["n_ctx"] == 512
    assert router.metric("router_requests_total", model="chat", status="error") >= 2


LOAD_FIELDS = {"model", "status", "port", "vram_mb", "queue_depth", "in_flight", "last_used", "load_progress"}
VRAM_FIELDS = {"status", "devices", "models", "loaded_models_count", "can_load_more", "reason"}
QUEUE_SUMMARY = "queued processing processed rejected cancelled timeouts"
QUEUE_FIELDS = {
    "queue_length", "by_priority", "current_processing", "oldest_wait_sec", "requests", "progress",
}  # fmt: skip
PRIORITIES = {"by_priority.high", "by_priority.normal", "by_priority.low"}
TELEMETRY = {
    "total_requests", "success_count", "error_count", "avg_latency_ms", "p50_latency_ms", "p95_latency_ms",
    "p99_latency_ms", "avg_ttft_ms", "tokens_prompt", "tokens_generated", "requests_by_model",
    "errors_by_type",
}  # fmt: skip

GET_ENDPOINTS: dict[str, set[str]] = {
    "/v1/models": {"object", "data"},
    "/models": {"object", "data"},
    "/v1/models/chat": {
        "id", "object", "created", "owned_by", "n_ctx", "aliases", "state", "status", "status.value",
    },
    "/v1/models/chat/status": LOAD_FIELDS | {"error", "requests", "progress"},
    "/v1/models/failed": {"failed_models"},
    "/v1/models/chat/plan": {"fits", "devices", "evicts", "estimate_mb", "measured_mb", "reason"},
    "/v1/models/status": {
        "server.status", "server.uptime_seconds", "models.chat.status", "models.chat.port",
        "models.chat.vram_mb", "summary.ready",
    },
    "/health": {"status", "checks.gpu", "checks.manager", "checks.http_client"},
    "/vram": VRAM_FIELDS,
    "/v1/queue/stats": {f"summary.total_{name}" for name in QUEUE_SUMMARY.split()}
    | {f"per_model.chat.{name}" for name in QUEUE_FIELDS | PRIORITIES},
    "/v1/telemetry/summary": TELEMETRY,
    "/v1/health/models": {
        f"chat.{name}"
        for name in (
            "status", "uptime_percentage", "consecutive_failures", "avg_response_time_ms", "last_check",
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("path", GET_ENDPOINTS)
def test_a_management_or_monitoring_endpoint_has_its_documented_fields(
    router: RouterProcess, path: str
) -> None:
    router.load("chat")

    answer = router.client.get(path)

    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert fields_of(answer.json()) >= GET_ENDPOINTS[path]


def test_a_loaded_model_on_the_cpu_uses_no_vram(router: RouterProcess) -> None:
    router.load("chat")
    vram = router.get("/vram")
    loaded = {model["model_alias"]: model for model in vram["models"]}

    assert loaded["chat"].keys() >= {"status", "port", "vram_used_mb", "estimated_mb", "devices"}
    assert loaded["chat"]["vram_used_mb"] == router.status("chat")["vram_mb"] == 0
    assert vram["loaded_models_count"] == len(loaded)


def test_port_and_memory_are_shown_only_while_there_is_a_process(router: RouterProcess) -> None:
    router.eject("chat")
    assert not {"port", "vram_mb"} & router.get("/v1/models/status")["models"]["chat"].keys()
    router.load("chat")
    assert {"port", "vram_mb"} <= router.get("/v1/models/status")["models"]["chat"].keys()


def test_the_model_list_shows_both_kinds_of_status(router: RouterProcess) -> None:
    router.load("chat")
    router.client.post("/v1/chat/completions", json=chat("misfit"))
    listed = {model["id"]: model for model in router.get("/v1/models")["data"]}

    assert list(listed) == ["chat", "other-name", "org/embed:v1", "garbage", "misfit", "huge"]
    assert (listed["chat"]["state"], listed["chat"]["status"]) == ("ready", {"value": "loaded"})
    assert listed["chat"]["aliases"] == ["other-name"]
    assert listed["misfit"]["state"] == "failed"
    assert listed["misfit"]["status"] == {"value": "unloaded", "failed": True, "exit_code": 1}


def test_metrics_name_what_the_contract_promises(router: RouterProcess) -> None:
    router.client.post("/v1/chat/completions", json=chat("chat"))
    answer = router.client.get("/metrics")

    assert answer.headers["content-type"].startswith("text/plain")
    names = set(re.findall(r"^# TYPE (\S+)", answer.text, re.M))
    assert names >= {
        "router_requests_total", "router_tokens_total", "router_model_loads_total",
        "router_model_evictions_total", "router_model_restarts_total", "router_request_replays_total",
        "router_model_vram_bytes", "router_queue_depth", "router_queue_depth_by_priority",
        "router_requests_in_flight", "router_model_status", "router_models_loaded",
        "router_model_memory_estimate_bytes", "router_request_duration_seconds",
        "router_queue_wait_seconds", "router_time_to_first_token_seconds", "router_model_load_seconds",
        "router_generation_tokens_per_second",
    }  # fmt: skip
    for text in ("Total requests processed", "VRAM usage per model", "Current queue depth per model"):
        assert text in answer.text
    assert router.metric("router_tokens_total", model="chat", kind="generated") >= 8


def test_unknown_models_leave_nothing_in_the_metrics(router: RouterProcess) -> None:
    router.client.post("/v1/chat/completions", json=chat("made-up-by-a-client"))

    assert "made-up-by-a-client" not in router.client.get("/metrics").text


def test_the_dashboard_and_the_documentation_are_pages(router: RouterProcess) -> None:
    for path in ("/", "/docs"):
        answer = router.client.get(path, headers={"Accept": "text/html,*/*;q=0.8"})  # as browsers ask
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/html")


def test_the_metrics_stream_begins_with_a_picture(router: RouterProcess) -> None:
    router.load("chat")
    with router.client.stream("GET", "/metrics/stream") as answer:
        assert_event_stream(answer)
        name, body = next(events(answer))[1:]

    assert name == "metrics"
    assert body.keys() >= {"timestamp", "devices", "models"}
    assert body["models"]["chat"].keys() >= {
        "requests_total", "errors_total", "queue_depth", "in_flight", "tokens_per_second", "vram_mb",
    }  # fmt: skip


def test_the_status_stream_begins_with_everything_and_goes_on_with_changes(router: RouterProcess) -> None:
    router.load("chat")
    with router.client.stream("GET", "/v1/models/status/stream") as answer:
        assert_event_stream(answer)
        stream = events(answer)
        first_id, first_name, full = next(stream)
        with httpx.Client(base_url=router.url, timeout=WAIT_S, trust_env=False) as other:
            other.post("/v1/models/eject?mode=now", json={"model": "chat"})
        seen = []
        for number, name, body in stream:
            seen.append((number, name, body))
            if body.get("status") == "off":
                break

    assert first_name == "full_status"
    assert full.keys() >= {"server", "models", "summary"}
    assert {name for _, name, _ in seen} == {"model_update"}
    assert [body["status"] for _, _, body in seen][-2:] == ["stopping", "off"]
    for _, _, body in seen:
        assert body["alias"] == "chat"
        assert body.keys() >= {"status", "load_progress", "queue_depth"}
    numbers = [int(first_id), *(int(number) for number, _, _ in seen)]
    assert numbers == sorted(set(numbers))


def assert_event_stream(answer: httpx.Response) -> None:
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"


def events(answer: httpx.Response) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(id, event, data) of a stream of events with JSON."""
    fields: dict[str, str] = {}
    for line in answer.iter_lines():
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            yield fields.get("id", ""), fields.get("event", ""), json.loads(fields["data"])
            fields = {}


# --- management --------------------------------------------------------------------------------------


def test_load_and_eject_answer_as_documented(router: RouterProcess) -> None:
    router.eject("chat")

    accepted = router.client.post("/v1/models/load", json={"model": "chat"})
    loaded = router.client.post("/v1/models/load?wait=true", json={"model": "chat"})
    ejected = router.client.post("/v1/models/eject", json={"model": "other-name"})
    again = router.client.post("/v1/models/eject", json={"model": "chat"})

    assert accepted.status_code == 202
    assert accepted.json().keys() >= LOAD_FIELDS
    assert (loaded.status_code, loaded.json()["status"]) == (200, "ready")
    assert (ejected.status_code, ejected.json()["status"], ejected.json()["model_ejected"]) == (
        200,
        "success",
        "chat",
    )
    assert again.status_code == 200
    assert (again.json()["status"], again.json()["model_ejected"]) == ("not_found", None)
    assert again.json()["message"]


@pytest.mark.parametrize("action", ["load", "eject"])
def test_managing_an_unknown_model_is_404(router: RouterProcess, action: str) -> None:
    answer = router.client.post(f"/v1/models/{action}", json={"model": "nobody"})
    error_of(answer, 404, "model_not_found", "invalid_request_error")


def test_a_failed_model_is_listed_until_it_is_reset(router: RouterProcess) -> None:
    router.client.post("/v1/models/misfit/reset")
    router.client.post("/v1/chat/completions", json=chat("misfit"))

    failed = {model["model"]: model for model in router.get("/v1/models/failed")["failed_models"]}
    assert failed["misfit"].keys() >= {"model", "attempts", "error", "log_tail"}
    assert failed["misfit"]["attempts"] >= 1
    assert "output_norm.weight" in failed["misfit"]["error"]
    assert failed["misfit"]["log_tail"]  # its very last lines: llama-server's log comes out of order

    cleared = router.client.post("/v1/models/misfit/reset").json()
    assert (cleared["status"], cleared["model"]) == ("success", "misfit")
    assert cleared["previous_error"] == failed["misfit"]["error"]
    assert router.state("misfit") == "off"
    again = router.client.post("/v1/models/misfit/reset")
    assert (again.status_code, again.json()["status"]) == (200, "not_found")


def test_the_management_paths_of_router_mode_answer_too(router: RouterProcess) -> None:
    router.eject("chat")

    assert router.client.post("/models/load", json={"model": "chat"}).json() == {"success": True}
    router.load("chat")
    listed = {model["id"]: model["status"]["value"] for model in router.get("/models")["data"]}
    assert listed["chat"] == "loaded"
    assert router.client.post("/models/unload", json={"model": "chat"}).json() == {"success": True}
    assert router.state("chat") == "off"


@pytest.mark.parametrize("alias", ["org/embed:v1", "org%2Fembed:v1", "org%2Fembed%3Av1"])
def test_an_alias_with_a_slash_works_plain_and_encoded(router: RouterProcess, alias: str) -> None:
    router.load(EMBED)

    assert router.get(f"/v1/models/{alias}")["id"] == EMBED
    assert router.get(f"/v1/models/{alias}/status")["model"] == EMBED
    assert "fits" in router.get(f"/v1/models/{alias}/plan")
    assert "load_tensors" in router.client.get(f"/v1/models/{alias}/logs").text
    assert router.client.post(f"/v1/models/{alias}/reset").json()["model"] == EMBED
    assert router.get(f"/upstream/{alias}/props")["model_path"].endswith("tiny.gguf")


def test_upstream_passes_any_path_and_method_through(router: RouterProcess) -> None:
    router.load("chat")
    assert router.get("/upstream/chat/props")["model_path"].endswith("tiny.gguf")
    assert router.get("/upstream/chat/v1/models")["data"][0]["id"] == "chat"
    posted = router.client.post("/upstream/chat/tokenize", json={"content": "Hello"})
    assert posted.json()["tokens"]
    missing = router.client.get("/upstream/chat/there-is-no-such-path")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, 404)
    body = {"prompt": "a", "stream": True, "n_predict": 2}
    with router.client.stream("POST", "/upstream/chat/completion", json=body) as answer:
        assert_event_stream(answer)


# --- errors ------------------------------------------------------------------------------------------

ASK = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}

BROKEN_JSON = {
    "empty": b"",
    "not JSON": b"hello",
    "cut short": b'{"model": "chat", "messages": [',
    "something after it": b'{"model": "chat"} x',
    "single quotes": b"{'model': 'chat'}",
    "NaN": b'{"model": "chat", "temperature": NaN}',
    "Infinity": b'{"model": "chat", "temperature": Infinity}',
    "a number that is none of double's": b'{"model": "chat", "temperature": 1e999}',
    "an integer of 400 digits": b'{"model": "chat", "seed": ' + b"9" * 400 + b"}",
    "a lone high surrogate": rb'{"model": "chat", "messages": [{"role": "user", "content": "\ud800"}]}',
    "a lone low surrogate": rb'{"model": "chat", "messages": [{"role": "user", "content": "\udc00 x"}]}',
    "invalid UTF-8": b'{"model": "chat", "messages": [{"role": "user", "content": "\xff\xfe"}]}',
    "overlong UTF-8": b'{"model": "chat", "messages": [{"role": "user", "content": "\xc0\xaf"}]}',
    "a control character in a string": b'{"model": "chat", "prompt": "a\nb"}',
    "Latin-1": '{"model": "chät"}'.encode("latin-1"),
    "UTF-16": '{"model": "chat"}'.encode("utf-16"),
}


@pytest.mark.parametrize("name", BROKEN_JSON)
def test_json_that_llama_server_would_answer_with_500_is_our_400(router: RouterProcess, name: str) -> None:
    answer = router.client.post(ASK, content=BROKEN_JSON[name], headers=JSON)
    error_of(answer, 400, "invalid_json", "invalid_request_error")


@pytest.mark.parametrize("depth", [100, 1000, 100_000])
def test_deeply_nested_json_harms_nobody(router: RouterProcess, depth: int) -> None:
    body = b'{"model": "chat", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "deep": '
    answer = router.client.post(ASK, content=body + b"[" * depth + b"]" * depth + b"}", headers=JSON)

    assert answer.status_code in (200, 400), answer.text
    assert router.get("/health")["status"] == "ok"


def test_duplicate_keys_mean_the_same_to_the_router_and_to_llama_server(router: RouterProcess) -> None:
    body = b'{"model": "org/embed:v1", "stream": true, "messages": [{"role": "user", "content": "a"}], '
    last_wins = b'"model": "chat", "stream": false, "max_tokens": 1, "max_tokens": 3}'
    answer = router.client.post(ASK, content=body + last_wins, headers=JSON)

    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.json()["usage"]["completion_tokens"] == 3


BAD_REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "an array": ({"content": b"[1, 2]"}, "invalid_request"),
    "null": ({"content": b"null"}, "invalid_request"),
    "a string": ({"content": b'"chat"'}, "invalid_request"),
    "model a number": ({"json": {"model": 5}}, "invalid_request"),
    "stream a string": ({"json": chat("chat", stream="yes")}, "invalid_request"),
    "no model": ({"json": {"messages": SAY_HELLO}}, "missing_model"),
    "model null": ({"json": {"model": None}}, "missing_model"),
    "model empty": ({"json": {"model": ""}}, "missing_model"),
    "priority": ({"json": chat("chat"), "headers": {"X-Request-Priority": "urgent"}}, "invalid_priority"),
    "priority 0": ({"json": chat("chat"), "headers": {"X-Request-Priority": "0"}}, "invalid_priority"),
    "chat on embedding": ({"json": chat(EMBED)}, "wrong_model_kind"),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_bad_request_says_what_is_wrong(router: RouterProcess, name: str) -> None:
    request, code = BAD_REQUESTS[name]
    request = {**request, "headers": JSON | request.get("headers", {})}
    error_of(router.client.post(ASK, **request), 400, code, "invalid_request_error")


def test_embeddings_of_a_chat_model_are_refused(router: RouterProcess) -> None:
    answer = router.client.post("/v1/embeddings", json={"model": "chat", "input": "a"})
    error_of(answer, 400, "wrong_model_kind", "invalid_request_error")


def test_a_wrong_query_parameter_has_openais_shape_too(router: RouterProcess) -> None:
    answer = router.client.post("/v1/models/eject?mode=gently", json={"model": "chat"})
    assert error_of(answer, 400, "invalid_request", "invalid_request_error")["param"] == "mode"


@pytest.mark.parametrize("priority", ["high", "Normal", "LOW", "1", "2", "3"])
def test_every_spelling_of_a_priority_is_taken(router: RouterProcess, priority: str) -> None:
    answer = router.client.post(ASK, json=chat("chat"), headers={"X-Request-Priority": priority})
    assert answer.status_code == 200
    assert "x-priority-effective" not in answer.headers


def test_an_unknown_model_is_404_with_the_nearest_first(router: RouterProcess) -> None:
    error = error_of(
        router.client.post(ASK, json=chat("org/embed:v2")), 404, "model_not_found", "invalid_request_error"
    )

    assert error["param"] == "model"
    known = error["message"].partition("known models:")[2]
    assert known.split(",")[0].strip() == "org/embed:v1"
    assert "other-name" in known
    for path in ("/v1/models/nobody", "/v1/models/nobody/status", "/v1/models/nobody/plan",
                 "/v1/models/nobody/logs", "/upstream/nobody/props"):  # fmt: skip
        error_of(router.client.get(path), 404, "model_not_found", "invalid_request_error")


def test_an_unknown_path_is_404_and_a_wrong_method_405(router: RouterProcess) -> None:
    error_of(router.client.get("/v1/nothing"), 404, "not_found", "invalid_request_error")
    for method, path in (("GET", ASK), ("POST", "/health"), ("DELETE", "/v1/models"), ("PUT", "/tokenize")):
        answer = router.client.request(method, path)
        error_of(answer, 405, "method_not_allowed", "invalid_request_error")
        assert answer.headers["allow"]


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded"])
def test_another_media_type_is_415(router: RouterProcess, media_type: str) -> None:
    """Also what keeps a web page's plain form from making requests."""
    answer = router.client.post(ASK, content=b'{"model": "chat"}', headers={"Content-Type": media_type})
    error_of(answer, 415, "unsupported_media_type", "invalid_request_error")


@pytest.mark.parametrize("host", ["evil.example", "rebind.attacker.com:8000"])
def test_a_foreign_host_name_is_refused(router: RouterProcess, host: str) -> None:
    for path in ("/v1/models", "/", "/health", "/metrics"):
        answer = router.client.get(path, headers={"Host": host})
        error_of(answer, 403, "host_not_allowed", "permission_error")


@pytest.mark.parametrize("host", ["localhost:8000", "[::1]:8000", "10.1.2.3", "box", "box.lan",
                                  "host.docker.internal"])  # fmt: skip
def test_a_host_name_that_nobody_can_rebind_is_accepted(router: RouterProcess, host: str) -> None:
    assert router.client.get("/v1/models", headers={"Host": host}).status_code == 200


def test_a_web_page_of_another_origin_may_change_nothing(router: RouterProcess) -> None:
    for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}):
        answer = router.client.post(ASK, json=chat("chat"), headers=headers)
        error_of(answer, 403, "origin_not_allowed", "permission_error")
    own = router.client.post(ASK, json=chat("chat"), headers={"Origin": router.url})
    assert own.status_code == 200


def test_a_header_of_the_admission_is_on_every_answer(router: RouterProcess) -> None:
    router.eject("chat")
    first = router.client.post(ASK, json=chat("chat"), headers={"X-Request-ID": "mine-42"})
    second = router.client.post(ASK, json=chat("chat"))
    error = router.client.get("/v1/nothing", headers={"X-Request-ID": "mine-43"})

    assert first.headers["x-request-id"] == "mine-42"
    assert error.headers["x-request-id"] == "mine-43"
    unusable = router.client.get("/v1/models", headers={"X-Request-ID": "two words"})
    assert second.headers["x-request-id"] not in ("", "mine-42")
    assert re.fullmatch(r"[\w-]+", unusable.headers["x-request-id"])
    wait_ms, load_ms = int(first.headers["x-queue-wait-ms"]), int(first.headers["x-model-load-ms"])
    assert wait_ms >= load_ms > 0
    assert second.headers["x-model-load-ms"] == "0"
    assert int(second.headers["x-queue-wait-ms"]) < wait_ms


def test_a_streamed_answer_has_the_headers_of_a_stream(router: RouterProcess) -> None:
    with router.client.stream("POST", ASK, json=chat("chat", stream=True)) as answer:
        assert_event_stream(answer)
        assert answer.headers["x-request-id"]
        assert int(answer.headers["x-queue-wait-ms"]) >= 0
        assert answer.headers["x-model-load-ms"].isdigit()
        assert answer.read().endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("model", ["garbage", "misfit"])
def test_a_model_that_cannot_be_loaded_fails_those_who_wait_and_those_who_come_later(
    router: RouterProcess, model: str
) -> None:
    router.client.post(f"/v1/models/{model}/reset")
    waiting = router.client.post(ASK, json=chat(model))
    later = router.client.post(ASK, json=chat(model))

    for answer, code in ((waiting, "load_failed"), (later, "model_failed")):
        error = error_of(answer, 424, code, "api_error")
        assert error["last_error"]
        assert error["last_error"] in error["message"]
        assert answer.headers["x-should-retry"] == "false"
        assert "retry-after" not in answer.headers
    assert "/reset" in later.json()["error"]["message"]
    assert router.get("/health")["status"] == "ok"


def test_a_model_that_can_never_fit_is_refused_with_the_numbers(router: RouterProcess) -> None:
    router.load("chat")
    answer = router.client.post(ASK, json=chat("huge"))

    error = error_of(answer, 424, "vram_exhausted", "api_error")
    assert error["required_mb"] == 10**8
    assert 0 < error["available_mb"] < 10**8
    assert "chat" in error["loaded_models"]
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers
    assert router.state("chat") == "ready"
    plan = router.get("/v1/models/huge/plan")
    assert not plan["fits"]
    assert plan["evicts"] == []


def test_messages_have_anthropics_errors(router: RouterProcess) -> None:
    cases = {
        "nobody": (404, "not_found_error"),
        EMBED: (400, "invalid_request_error"),
        "garbage": (424, "api_error"),
    }
    for model, (status, kind) in cases.items():
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            answer = router.client.post(path, json={"model": model, "messages": SAY_HELLO, "max_tokens": 4})
            assert answer.status_code == status
            assert answer.json()["type"] == "error"
            assert answer.json()["error"]["type"] == kind
            assert answer.json()["error"]["message"]
    foreign = router.client.post("/v1/messages", json={}, headers={"Host": "evil.example"})
    assert (foreign.status_code, foreign.json()["type"]) == (403, "error")


# --- keys and sizes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic guest"},
                                     {"X-Api-Key": "wrong"}])  # fmt: skip
def test_without_a_valid_key_there_is_only_health_and_the_page(
    secured: RouterProcess, headers: dict[str, str]
) -> None:
    with httpx.Client(base_url=secured.url, headers=headers, timeout=WAIT_S, trust_env=False) as stranger:
        for path in ("/v1/models", "/metrics", "/vram", "/v1/models/status/stream", "/docs", "/openapi.json"):
            error_of(stranger.get(path), 401, "invalid_api_key", "authentication_error")
        error_of(stranger.post(ASK, json=chat("chat")), 401, "invalid_api_key", "authentication_error")
        assert stranger.get("/health").status_code == 200
        assert stranger.get("/").status_code == 200


def test_anthropics_key_header_is_taken_too(secured: RouterProcess) -> None:
    answer = httpx.get(
        f"{secured.url}/v1/models", headers={"X-Api-Key": "guest-key"}, timeout=WAIT_S, trust_env=False
    )
    assert answer.status_code == 200


def test_a_key_without_admin_may_not_manage(secured: RouterProcess) -> None:
    guest = {"Authorization": "Bearer guest-key"}
    for path in ("/v1/models/load", "/v1/models/eject", "/models/load", "/models/unload",
                 "/v1/models/chat/reset", "/upstream/chat/tokenize"):  # fmt: skip
        answer = secured.client.post(path, json={"model": "chat"}, headers=guest)
        error_of(answer, 403, "forbidden", "permission_error")
    for path in ("/upstream/chat/props", "/v1/models/chat/logs"):
        error_of(secured.client.get(path, headers=guest), 403, "forbidden", "permission_error")
    assert secured.client.get("/v1/models/chat/status", headers=guest).status_code == 200


def test_a_keys_ceiling_lowers_the_priority_and_says_so(secured: RouterProcess) -> None:
    guest = {"Authorization": "Bearer guest-key"}
    lowered = secured.client.post(ASK, json=chat("chat"), headers=guest | {"X-Request-Priority": "high"})
    as_wished = secured.client.post(ASK, json=chat("chat"), headers=guest | {"X-Request-Priority": "low"})
    boss = secured.client.post(ASK, json=chat("chat"), headers={"X-Request-Priority": "high"})

    assert lowered.headers["x-priority-effective"] == "low"
    assert "x-priority-effective" not in as_wished.headers
    assert "x-priority-effective" not in boss.headers
    assert secured.metric("router_queue_wait_seconds_count", model="chat", priority="low") == 2


def test_a_page_of_an_allowed_origin_may_call_the_api_and_read_its_errors(secured: RouterProcess) -> None:
    origin = {"Origin": "https://app.example"}
    wish = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    with httpx.Client(base_url=secured.url, timeout=WAIT_S, trust_env=False) as page:
        preflight = page.options(ASK, headers=origin | wish)
        refused = page.post(ASK, json=chat("chat"), headers=origin)
    answered = secured.client.post(ASK, json=chat("chat"), headers=origin)
    foreign = secured.client.post(ASK, json=chat("chat"), headers={"Origin": "https://evil.example"})

    assert preflight.status_code == 200
    assert (refused.status_code, answered.status_code) == (401, 200)
    for answer in (preflight, refused, answered):
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert "x-queue-wait-ms" in answered.headers["access-control-expose-headers"].lower()
    error_of(foreign, 403, "origin_not_allowed", "permission_error")
    assert "access-control-allow-origin" not in foreign.headers


def test_a_body_that_is_too_large_is_413_plain_and_chunked(secured: RouterProcess) -> None:
    body = json.dumps(chat("chat", content="a" * 20_000)).encode()

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(body), 1000):
            yield body[start : start + 1000]

    for content in (body, pieces()):
        answer = secured.client.post(ASK, content=content, headers=JSON)
        error_of(answer, 413, "request_too_large", "invalid_request_error")
    small = secured.client.post(ASK, content=iter([json.dumps(chat("chat")).encode()]), headers=JSON)
    assert small.status_code == 200


# --- no room, no time --------------------------------------------------------------------------------


@contextmanager
def ejected_afterwards(router: RouterProcess, alias: str) -> Iterator[None]:
    try:
        yield
    finally:
        router.eject(alias)


async def test_a_full_queue_refuses_and_says_when_to_come_back(tight: RouterProcess) -> None:
    async with tight.open_client() as http:
        with ejected_afterwards(tight, "never"):  # two at once: one waits until its time is over
            both = await asyncio.gather(*(http.post(ASK, json=chat("never")) for _ in range(2)))

    answer, late = sorted(both, key=lambda answer: answer.status_code)
    error_of(answer, 503, "queue_full", "overloaded_error")
    assert int(answer.headers["retry-after"]) >= 1
    assert "x-should-retry" not in answer.headers
    error = error_of(late, 504, "queue_timeout", "timeout_error")
    assert "queue_timeout_sec" in error["message"]
    assert tight.is_quiet("never")
    assert tight.metric("router_requests_total", model="never", status="rejected") == 1
    assert tight.metric("router_requests_total", model="never", status="timeout") == 1


def test_pinned_models_that_fill_all_places_leave_no_capacity(tight: RouterProcess) -> None:
    tight.load("pinned")
    with ejected_afterwards(tight, "pinned"):
        answer = tight.client.post(ASK, json=chat("slow"))

        error_of(answer, 503, "no_capacity", "overloaded_error")
        assert int(answer.headers["retry-after"]) >= 1
        assert tight.state("pinned") == "ready"
        plan = tight.get("/v1/models/slow/plan")
        assert (plan["fits"], plan["evicts"]) == (False, [])


async def test_a_llama_server_that_falls_silent_ends_in_upstream_timeout(tight: RouterProcess) -> None:
    """Before the first byte a 504, afterwards an event that ends the stream, each in its API's shape."""
    tight.load("slow")
    async with tight.open_client() as http:
        with tight.frozen("slow"):
            answer = await http.post(ASK, json=chat("slow"))
        error_of(answer, 504, "upstream_timeout", "timeout_error")

        for path in (ASK, "/v1/messages"):
            body = chat("slow", max_tokens=100_000, stream=True)
            async with http.stream("POST", path, json=body) as stream:
                text = ""
                pieces = pieces_of(stream)
                while "data:" not in text:
                    text += await anext_of(pieces)
                with tight.frozen("slow"):
                    async for piece in pieces:
                        text += piece
            last = text.rstrip("\n").split("\n\n")[-1]
            if path == ASK:
                name, _, data = last.partition("data: ")
                assert name == ""
                assert set(json.loads(data)) == {"error"}
            else:
                name, _, data = last.partition("\ndata: ")
                assert name == "event: error"
                assert json.loads(data)["type"] == "error"
            assert json.loads(data)["error"]["code"] == "upstream_timeout"
            assert text.endswith("\n\n")
            assert "[DONE]" not in text
        await until(lambda: tight.is_quiet("slow"))


async def anext_of(pieces: Any) -> Any:
    return await pieces.__anext__()


def test_what_a_model_that_is_off_tells_is_what_llama_server_says_when_it_is_loaded(
    router: RouterProcess,
) -> None:
    router.eject("chat")
    told = router.get("/v1/models/chat")
    router.load("chat")
    said = router.get("/upstream/chat/v1/models")["data"][0]["meta"]
    del said["ftype"]  # guessed: the tiny file does not say
    assert {key: told["meta"][key] for key in said} == said
    assert {"n_ctx_train", "n_embd", "n_params", "n_vocab", "size"} <= said.keys()
