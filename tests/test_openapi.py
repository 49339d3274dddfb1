"""The published document: every endpoint, with examples and error answers."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.openapi.utils import get_openapi
from jsonschema import Draft202012Validator

from app.api import health, management
from app.api.openapi_examples import EXAMPLES
from app.core.config import Config
from app.domain.errors import QueueFull
from app.main import create_app
from app.proxy.routes import ENDPOINTS
from tests.event_loops import on_both_loops
from tests.proxy_environment import Router, make_router, router

__all__ = ["make_router", "on_both_loops", "router"]

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT: dict[str, Any] = create_app(Config()).openapi()
CONTRACT = {
    *(("post", endpoint.path) for endpoint in ENDPOINTS),
    *(
        ("post", path)
        for path in (
            "/v1/models/load",
            "/v1/models/eject",
            "/v1/models/{alias}/reset",
            "/models/load",
            "/models/unload",
            "/upstream/{target}",
        )
    ),
    *(
        ("get", path)
        for path in (
            "/v1/models",
            "/models/sse",
            "/props",
            "/slots",
            "/lora-adapters",
            "/v1/models/{alias}",
            "/v1/models/{alias}/status",
            "/v1/models/failed",
            "/v1/models/{alias}/plan",
            "/v1/models/{alias}/logs",
            "/health",
            "/metrics",
            "/metrics/stream",
            "/vram",
            "/v1/queue/stats",
            "/v1/telemetry/summary",
            "/v1/health/models",
            "/v1/models/status",
            "/v1/models/status/stream",
            "/",
            "/session",
            "/upstream/{target}",
        )
    ),
    ("post", "/session"),
    ("delete", "/session"),
}


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "components": DOCUMENT["components"]}


def test_routes_are_complete_before_the_first_request() -> None:
    """Routers that are included are made once more by the first request: 160 ms of the event loop."""
    routes = create_app(Config()).routes
    assert all(route in routes for router in (health, management) for route in router.router.routes)


def test_every_endpoint_of_the_contract_is_in_it() -> None:
    there = {(method, path) for method, path, _ in operations()}
    assert there >= CONTRACT
    assert {path for _, path in there} == set(EXAMPLES)


@pytest.mark.parametrize(
    ("method", "path", "operation"), list(operations()), ids=lambda v: v if isinstance(v, str) else ""
)
def test_an_endpoint_has_examples_and_error_answers_of_one_shape(
    method: str, path: str, operation: dict[str, Any]
) -> None:
    answers = operation["responses"]
    assert {"401", "403", "500", "default"} < set(answers)
    assert "422" not in answers
    for status, answer in answers.items():
        assert answer["description"]
        for media_type, content in answer["content"].items():
            if status.startswith("2"):
                assert content["example"], path
                continue
            error = "OllamaError" if path.startswith("/api/") else "Error"
            assert (media_type, content["schema"]["$ref"]) == (
                "application/json",
                f"#/components/schemas/{error}",
            )
            for example in content.get("examples", {}).values():
                Draft202012Validator(resolved(content["schema"])).validate(example["value"])
    body = operation.get("requestBody")
    if body is not None:
        (content,) = body["content"].values()
        Draft202012Validator(content["schema"]).validate(content["example"])


def test_ids_are_unique_and_paths_are_those_of_the_routes() -> None:
    ids = [operation["operationId"] for _, _, operation in operations()]
    assert len(ids) == len(set(ids))
    for _, path, operation in operations():
        named = {p["name"] for p in operation.get("parameters", ()) if p["in"] == "path"}
        assert named == set(re.findall(r"\{(\w+)\}", path))


def test_every_way_to_show_a_key_is_described() -> None:
    assert set(DOCUMENT["components"]["securitySchemes"]) == {"bearer", "x-api-key", "session"}


def test_the_error_schema_takes_what_the_router_sends() -> None:
    validator = Draft202012Validator(resolved({"$ref": "#/components/schemas/Error"}))
    validator.validate(QueueFull("full", details={"queue_length": 5}).body())
    assert not validator.is_valid({"detail": "Not Found"})


async def test_the_document_is_made_beside_the_event_loop(
    router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes a fifth of a second."""
    made_in = []

    def noted(**given: Any) -> dict[str, Any]:
        made_in.append(threading.get_ident())
        return get_openapi(**given)

    monkeypatch.setattr("app.api.openapi.get_openapi", noted)
    client = await router.client()
    for _ in range(2):
        reply = await client.ask(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n", method="GET")
        assert (reply.status, json.loads(reply.body)) == (200, DOCUMENT)
    assert len(made_in) == 1
    assert made_in != [threading.get_ident()]
