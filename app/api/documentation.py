"""What `/openapi.json` says beyond what the routes say themselves: keys, headers, error answers, examples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict

from app.domain import errors
from app.domain.errors import RouterError

Answers = dict[int | str, dict[str, Any]]


class ErrorDetail(BaseModel):
    """`code` is a number where the error is llama-server's own. More fields may stand beside these."""

    model_config = ConfigDict(extra="allow")

    message: str
    type: str
    param: str | None = None
    code: str | int | None = None


class Error(BaseModel):
    """Every error of every endpoint. On `/v1/messages` there is a `"type": "error"` beside it."""

    model_config = ConfigDict(extra="allow")

    error: ErrorDetail


def json_body(example: dict[str, Any], *required: str) -> dict[str, Any]:
    """For a route's `openapi_extra=`: an object with these text fields. The routes read it themselves."""
    schema: dict[str, Any] = {"type": "object"}
    if required:
        schema |= {"required": list(required), "properties": {name: {"type": "string"} for name in required}}
    content = {"application/json": {"schema": schema, "example": example}}
    return {"requestBody": {"required": True, "content": content}}


def form_body(example: dict[str, Any]) -> dict[str, Any]:
    """As `json_body`, for an upload."""
    properties = {"model": {"type": "string"}, "file": {"type": "string", "format": "binary"}}
    schema = {"type": "object", "required": ["model", "file"], "properties": properties}
    return {
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": schema, "example": example}},
        }
    }


MODEL_IN_QUERY: dict[str, Any] = {
    "parameters": [{"name": "model", "in": "query", "schema": {"type": "string"}, "example": "qwen"}]
}
"""For a route's `openapi_extra=`."""


def answers(*kinds: type[RouterError]) -> Answers:
    """Error answers by status, for a router's `responses=`."""
    found: Answers = {"default": {"model": Error, "description": "Any other error"}}
    for kind in kinds:
        place = found.setdefault(
            kind.status, {"model": Error, "content": {"application/json": {"examples": {}}}}
        )
        place["content"]["application/json"]["examples"][kind.code] = {
            "value": kind("what to do next").body()
        }
    for status, place in found.items():
        if status != "default":
            codes = place["content"]["application/json"]["examples"]
            place["description"] = ", ".join(f"`{code}`" for code in codes)
    return found


ACCESS_ERRORS = (
    errors.BadRequest,
    errors.InvalidApiKey,
    errors.HostNotAllowed,
    errors.TargetTooLong,
    errors.HeadersTooLarge,
    errors.InternalError,
)
WITH_BODY = (
    errors.InvalidJson,
    errors.MissingModel,
    errors.ModelNotFound,
    errors.OriginNotAllowed,
    errors.RequestTooLarge,
    errors.UnsupportedMediaType,
)
OF_A_LOAD = (
    errors.NeverFits,
    errors.VramExhausted,
    errors.NoCapacity,
    errors.LoadFailed,
    errors.ModelFailed,
    errors.ShuttingDown,
    errors.QueueTimeout,
)
OF_A_REQUEST = (
    errors.InvalidPriority,
    errors.WrongModelKind,
    errors.ModelCrashed,
    errors.RequestCrashesModel,
    errors.QueueFull,
    errors.UpstreamTimeout,
)

FOR_MODELS = answers(*ACCESS_ERRORS, *WITH_BODY, *OF_A_REQUEST, *OF_A_LOAD)
FOR_MANAGEMENT = answers(*ACCESS_ERRORS, *WITH_BODY, errors.Forbidden, *OF_A_LOAD)
FOR_MONITORING = answers(*ACCESS_ERRORS)
FOR_RESPONSES = answers(*ACCESS_ERRORS, errors.NotFound, errors.OriginNotAllowed)
FOR_LOGIN = answers(
    *ACCESS_ERRORS,
    errors.InvalidJson,
    errors.OriginNotAllowed,
    errors.RequestTooLarge,
    errors.TooManyLogins,
    errors.UnsupportedMediaType,
)


def openapi(app: FastAPI) -> dict[str, Any]:
    """The document, made once."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=_ABOUT, routes=app.routes)
        document["servers"] = [{"url": "."}]  # beside this document, wherever a proxy shows it
        document["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            "session": {"type": "apiKey", "in": "cookie", "name": app.state.rules.cookie},
        }
        # none where no keys are configured
        document["security"] = [{}, {"bearer": []}, {"x-api-key": []}, {"session": []}]
        for path, operation in _operations(document):
            _complete(path, operation)
        app.openapi_schema = document
    return app.openapi_schema


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, operations in document["paths"].items():
        for operation in operations.values():
            yield path, operation


def _complete(path: str, operation: dict[str, Any]) -> None:
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "path":
            parameter["example"] = _IN_PATHS[parameter["name"]]
    if "models" in operation["tags"] and operation.get("requestBody"):
        operation.setdefault("parameters", []).extend(_HEADERS)
    media_type, example = EXAMPLES.get(path, ("application/json", {}))
    for status in ("200", "202"):
        if status in operation["responses"]:
            operation["responses"][status]["content"] = {media_type: {"schema": {}, "example": example}}


_IN_PATHS = {"alias": "qwen", "target": "qwen/props", "response_id": "resp_1"}
_ABOUT = (
    "One OpenAI-compatible address in front of many llama-server processes. Bodies and answers of the "
    "endpoints for models are llama-server's own and pass through unchanged."
)
_HEADERS = [
    {
        "name": "X-Request-Priority",
        "in": "header",
        "schema": {"type": "string", "enum": ["high", "normal", "low", "1", "2", "3"]},
        "example": "high",
    },
    {
        "name": "X-Request-ID",
        "in": "header",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
        "example": "my-request-1",
    },
]

_MODEL = {
    "id": "qwen",
    "object": "model",
    "owned_by": "user",
    "context_length": 8192,
    "capabilities": ["completion", "tools"],
    "aliases": [],
    "state": "ready",
}
_MODELS = {"object": "list", "data": [_MODEL]}
_STATUS = {
    "model": "qwen",
    "status": "ready",
    "port": 8085,
    "vram_mb": 5120,
    "queue_depth": 0,
    "in_flight": 1,
}
_ALL = {
    "server": {"status": "ready", "uptime_seconds": 12.5},
    "models": {"qwen": _STATUS},
    "summary": {"ready": 1},
}
_CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "qwen",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello!"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
}
_RERANK = {"model": "rerank", "results": [{"index": 0, "relevance_score": 0.9}]}
_LOADED = {"success": True}
_RESPONSE = {"object": "response", "status": "completed", "model": "qwen", "output": []}
_JSON = "application/json"
_EVENTS = "text/event-stream"

EXAMPLES: dict[str, tuple[str, Any]] = {
    "/v1/chat/completions": (_JSON, _CHAT),
    "/v1/chat/completions/input_tokens": (_JSON, {"input_tokens": 9}),
    "/v1/responses/input_tokens": (_JSON, {"input_tokens": 9}),
    "/v1/audio/transcriptions": (_JSON, {"text": "Hello!"}),
    "/completion": (_JSON, {"content": "Hello!", "stop": True}),
    "/embedding": (_JSON, [{"index": 0, "embedding": [[0.1, -0.2]]}]),
    "/reranking": (_JSON, _RERANK),
    "/v1/reranking": (_JSON, _RERANK),
    "/v1/completions": (
        _JSON,
        {"object": "text_completion", "model": "qwen", "choices": [{"text": " upon"}]},
    ),
    "/v1/responses": (_JSON, _RESPONSE),
    "/v1/responses/{response_id}": (_JSON, _RESPONSE),
    "/v1/responses/{response_id}/input_items": (_JSON, {"object": "list", "data": [], "has_more": False}),
    "/v1/messages": (
        _JSON,
        {"type": "message", "role": "assistant", "content": [{"type": "text", "text": "Hello!"}]},
    ),
    "/v1/messages/count_tokens": (_JSON, {"input_tokens": 9}),
    "/v1/embeddings": (_JSON, {"object": "list", "data": [{"index": 0, "embedding": [0.1, -0.2]}]}),
    "/v1/rerank": (_JSON, _RERANK),
    "/rerank": (_JSON, _RERANK),
    "/infill": (_JSON, {"content": "c"}),
    "/tokenize": (_JSON, {"tokens": [1, 2]}),
    "/detokenize": (_JSON, {"content": "Hello"}),
    "/apply-template": (_JSON, {"prompt": "<|user|>Hello"}),
    "/upstream/{target}": (_JSON, {"whatever": "llama-server answers"}),
    "/v1/models": (_JSON, _MODELS),
    "/props": (_JSON, {"model_alias": "qwen", "total_slots": 1}),
    "/slots": (_JSON, [{"id": 0, "is_processing": False}]),
    "/lora-adapters": (_JSON, [{"id": 0, "path": "style.gguf", "scale": 1.0}]),
    "/models/sse": (
        _EVENTS,
        'data: {"model": "qwen", "event": "model_status", "data": {"status": "loaded"}}\n\n',
    ),
    "/v1/models/{alias}": (_JSON, _MODEL),
    "/v1/models/load": (_JSON, _STATUS),
    "/v1/models/eject": (
        _JSON,
        {"status": "success", "model_ejected": "qwen", "message": "qwen has been stopped"},
    ),
    "/models/load": (_JSON, _LOADED),
    "/models/unload": (_JSON, _LOADED),
    "/v1/models/failed": (
        _JSON,
        {"failed_models": [{"model": "qwen", "attempts": 3, "error": "why", "log_tail": []}]},
    ),
    "/v1/models/status": (_JSON, _ALL),
    "/v1/models/status/stream": (_EVENTS, 'event: full_status\ndata: {"summary": {"ready": 1}}\n\n'),
    "/v1/models/{alias}/reset": (_JSON, {"status": "success", "model": "qwen", "previous_error": "why"}),
    "/v1/models/{alias}/status": (_JSON, _STATUS),
    "/v1/models/{alias}/plan": (
        _JSON,
        {"fits": True, "devices": [{"index": 0, "need_mb": 5120, "free_mb": 9000}], "evicts": []},
    ),
    "/v1/models/{alias}/logs": ("text/plain", "main: server is listening\n"),
    "/health": (
        _JSON,
        {
            "status": "ok",
            "checks": {
                "gpu": {"status": "ok"},
                "manager": {"status": "ok"},
                "http_client": {"status": "ok"},
            },
        },
    ),
    "/metrics": ("text/plain", 'router_requests_total{model="qwen",status="success"} 1.0\n'),
    "/metrics/stream": (_EVENTS, 'event: metrics\ndata: {"timestamp": 1.0, "devices": [], "models": {}}\n\n'),
    "/vram": (_JSON, {"status": "healthy", "devices": [], "models": [], "can_load_more": True}),
    "/v1/queue/stats": (_JSON, {"summary": {"total_queued": 0, "total_processing": 1}, "per_model": {}}),
    "/v1/telemetry/summary": (_JSON, {"total_requests": 1, "success_count": 1, "error_count": 0}),
    "/v1/health/models": (_JSON, {"qwen": {"status": "healthy", "uptime_percentage": 100.0}}),
    "/session": (_JSON, {"key_needed": True, "logged_in": True, "name": "alice", "admin": True}),
    "/": ("text/html", "<!doctype html>"),
}
