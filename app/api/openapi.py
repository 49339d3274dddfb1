"""What `/openapi.json` says beyond what the routes say themselves: keys, headers, error answers, examples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict
from pydantic_core import to_json

from app.api.openapi_examples import EXAMPLES
from app.domain import errors
from app.domain.errors import RouterError
from app.proxy.dialects.dialect import OPENAI, Dialect
from app.proxy.dialects.ollama.ollama_errors import OLLAMA

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


class OllamaError(BaseModel):
    """Every error under `/api`."""

    error: str


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


def answers(*kinds: type[RouterError], dialect: Dialect = OPENAI) -> Answers:
    """Error answers by status, for a router's `responses=`."""
    model = OllamaError if dialect is OLLAMA else Error
    found: Answers = {"default": {"model": model, "description": "Any other error"}}
    for kind in kinds:
        error = kind("what to do next")
        place = found.setdefault(
            dialect.status(error), {"model": model, "content": {"application/json": {"examples": {}}}}
        )
        place["content"]["application/json"]["examples"][kind.code] = {"value": dialect.body(error)}
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
    errors.AnswerTooLarge,
    errors.QueueFull,
    errors.UpstreamTimeout,
)

FOR_MODELS = answers(*ACCESS_ERRORS, *WITH_BODY, *OF_A_REQUEST, *OF_A_LOAD)
FOR_MANAGEMENT = answers(*ACCESS_ERRORS, *WITH_BODY, errors.Forbidden, *OF_A_LOAD)
FOR_MONITORING = answers(*ACCESS_ERRORS)
FOR_RESPONSES = answers(*ACCESS_ERRORS, errors.NotFound, errors.OriginNotAllowed)
FOR_OLLAMA_MODELS = answers(*ACCESS_ERRORS, *WITH_BODY, *OF_A_REQUEST, *OF_A_LOAD, dialect=OLLAMA)
FOR_OLLAMA = answers(*ACCESS_ERRORS, dialect=OLLAMA)
FOR_SHOW = answers(
    *ACCESS_ERRORS,
    errors.InvalidJson,
    errors.ModelNotFound,
    errors.OriginNotAllowed,
    errors.RequestTooLarge,
    dialect=OLLAMA,
)
FOR_STORE = answers(*ACCESS_ERRORS, errors.OriginNotAllowed, errors.NotSupported, dialect=OLLAMA)
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


def openapi_json(app: FastAPI) -> bytes:
    """The document, encoded once."""
    if not app.state.openapi_json:
        app.state.openapi_json = to_json(openapi(app))
    encoded: bytes = app.state.openapi_json
    return encoded


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


_IN_PATHS = {"alias": "qwen", "target": "qwen/props", "response_id": "resp_1", "digest": "sha256:0"}
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
    {
        "name": "X-Progress",
        "in": "header",
        "schema": {"type": "string", "enum": ["reasoning"]},
        "example": "reasoning",
    },
]
