"""The model-routed endpoints: the body's `model` picks the model, everything else passes through."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.access.headers import Headers
from app.access.rules import Client
from app.api import errors, render
from app.api.account import Call
from app.api.documentation import FOR_MODELS, json_body
from app.api.guard import client_of, require_admin
from app.api.relay import Relay
from app.api.services import Services, services_of
from app.domain.errors import (
    BadRequest,
    InvalidPriority,
    MissingModel,
    RequestTooLarge,
    RouterError,
    UnsupportedMediaType,
    WrongModelKind,
)
from app.domain.names import MAX_NAME
from app.domain.priority import Priority
from app.domain.status import ModelKind
from app.models.supervisor import ModelInstance
from app.proxy.body import SMALL_BYTES, fields_of
from app.proxy.headers import as_lines, through_tunnel, to_model

router = APIRouter(responses=FOR_MODELS)

ANY_KIND = frozenset(ModelKind)
CHAT = frozenset({ModelKind.CHAT})


@dataclass(frozen=True)
class Endpoint:
    path: str
    kinds: frozenset[ModelKind]
    summary: str
    example: dict[str, Any]


_MESSAGES = [{"role": "user", "content": "Hello"}]

ENDPOINTS = (
    Endpoint("/v1/chat/completions", CHAT, "Chat", {"model": "qwen", "messages": _MESSAGES}),
    Endpoint("/v1/completions", CHAT, "Text completion", {"model": "qwen", "prompt": "Once"}),
    Endpoint("/v1/responses", CHAT, "OpenAI's Responses API", {"model": "qwen", "input": "Hello"}),
    Endpoint("/v1/messages", CHAT, "Anthropic's Messages API", {"model": "qwen", "messages": _MESSAGES}),
    Endpoint(
        "/v1/messages/count_tokens", CHAT, "Count a prompt's tokens", {"model": "qwen", "messages": _MESSAGES}
    ),
    Endpoint(
        "/infill", CHAT, "Fill in the middle", {"model": "qwen", "input_prefix": "a", "input_suffix": "b"}
    ),
    Endpoint(
        "/v1/embeddings", frozenset({ModelKind.EMBEDDING}), "Embeddings", {"model": "embed", "input": "Hello"}
    ),
    Endpoint(
        "/v1/rerank",
        frozenset({ModelKind.RERANK}),
        "Rerank documents",
        {"model": "rerank", "query": "q", "documents": ["d"]},
    ),
    Endpoint(
        "/rerank",
        frozenset({ModelKind.RERANK}),
        "As /v1/rerank",
        {"model": "rerank", "query": "q", "documents": ["d"]},
    ),
    Endpoint("/tokenize", ANY_KIND, "Tokens of a text", {"model": "qwen", "content": "Hello"}),
    Endpoint("/detokenize", ANY_KIND, "Text of tokens", {"model": "qwen", "tokens": [1, 2]}),
    Endpoint("/apply-template", CHAT, "The prompt of a chat", {"model": "qwen", "messages": _MESSAGES}),
)


def _handler(endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    async def handle(request: Request) -> Response:
        return await relay(services_of(request), request.scope, await request.body(), endpoint)

    return handle


async def relay(services: Services, scope: Scope, body: bytes, endpoint: Endpoint) -> Relay:
    """The answer to a model-routed request. Raises what the client is to be told instead."""
    sender = Sender.of(scope["router.headers"], scope["router.client"])
    fields = await services.bodies.fields(body)
    instance, call = read(services, sender, scope["router.request_id"], fields, endpoint)
    return Relay(services, instance, call, body)


class Sender(NamedTuple):
    """What the headers of a request say: the same ones always say the same."""

    client: Client
    wish: Priority | None
    passed_on: bytes
    """As lines, for llama-server."""

    @classmethod
    def of(cls, headers: Headers, client: Client) -> Sender:
        """Raises what the client is to be told instead."""
        _check_media_type(headers)
        return cls(client, _priority(headers), as_lines(to_model(headers.raw)))


def read(
    services: Services, sender: Sender, request_id: str, fields: dict[str, Any], endpoint: Endpoint
) -> tuple[ModelInstance, Call]:
    """Which model is asked for what. Raises what the client is to be told instead."""
    instance = find_model(services, fields)
    if instance.spec.kind not in endpoint.kinds:
        raise _wrong_kind(instance, endpoint)
    path, stream = endpoint.path, _streams(fields)
    return instance, _call(sender, instance, path, "POST", path, request_id, stream=stream, fresh=stream)


for _endpoint in ENDPOINTS:
    router.add_api_route(
        _endpoint.path,
        _handler(_endpoint),
        methods=["POST"],
        summary=_endpoint.summary,
        tags=["models"],
        name=_endpoint.path,
        response_model=None,
        openapi_extra=json_body(_endpoint.example),
    )


_BY_PATH = {endpoint.path: endpoint for endpoint in ENDPOINTS}


class Shortcut:
    """Takes a model-routed request straight to its relay; everything else goes on to the framework.

    The routes above describe these endpoints and answer other methods. Their way through middleware, tracing
    hooks, routing and dependency solving is some twenty coroutine frames: measured, 13 of 40 KB of a waiting
    request, and a fifth of the router's CPU for a short one.
    """

    def __init__(self, app: ASGIApp, services: Callable[[], Services]) -> None:
        self._app, self._services = app, services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = _BY_PATH.get(scope["path"]) if scope["method"] == "POST" else None
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        answer: Relay | None = scope.get("router.relay")
        try:
            answer = answer or await relay(self._services(), scope, await _body(receive), endpoint)
            await answer(scope, receive, send)
        except RouterError as error:  # raised before the first byte
            await errors.response(error, scope["path"])(scope, receive, send)
        except ClientDisconnect:
            raise
        except Exception as error:
            if answer is not None and answer.started:  # the server closes the connection
                raise
            await errors.bug(error, "POST", scope["path"])(scope, receive, send)


async def _body(receive: Receive) -> bytes:
    """Raises `ClientDisconnect` if it does not come to its end."""
    parts = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return parts[0] if len(parts) == 1 else b"".join(parts)


async def upstream(request: Request, target: str) -> Response:
    """Any other path of a model's llama-server, queued and loaded like every request."""
    require_admin(request)
    services = services_of(request)
    instance, path = _split_target(services, _raw_target(request) or quote(target))
    query = quote(request.scope["query_string"], safe=_KEPT_IN_QUERY)
    body = await request.body()
    where = f"/{path}" + (f"?{query}" if query else "")
    headers = request.headers
    sender = Sender(client_of(request), _priority(headers), as_lines(through_tunnel(headers.raw)))
    request_id = request.scope["router.request_id"]
    call = _call(sender, instance, "/upstream", request.method, where, request_id, stream=False, fresh=True)
    return Relay(services, instance, call, body)


for _method in ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"):
    router.add_api_route(
        "/upstream/{target:path}", upstream, methods=[_method], tags=["tunnel"], response_model=None
    )


@router.get("/v1/models", tags=["models"])
@router.get("/models", tags=["models"])
async def list_models(request: Request) -> dict[str, Any]:
    services = services_of(request)
    return {
        "object": "list",
        "data": [render.openai_model(i, services) for i in services.manager.instances.values()],
    }


# --- reading a request


MANAGEMENT_BYTES = SMALL_BYTES


async def json_object(request: Request, most_bytes: int = MANAGEMENT_BYTES) -> dict[str, Any]:
    """The body of a request that is not for a model; a larger one is refused before it has come."""
    _check_media_type(request.headers)
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > most_bytes:
            raise RequestTooLarge(f"the body of this request may have at most {most_bytes} bytes")
    return fields_of(body)


def _check_media_type(headers: Headers) -> None:
    media_type = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise UnsupportedMediaType(
            f"send JSON with 'Content-Type: application/json', not {media_type[:80]!r}"
        )


def find_model(services: Services, fields: dict[str, Any]) -> ModelInstance:
    name = fields.get("model")
    if name is None or name == "":
        raise MissingModel("name a model in the field 'model'; GET /v1/models lists them", param="model")
    if not isinstance(name, str):
        raise BadRequest("'model' must be a string", param="model")
    return services.manager.find(name)


def _streams(fields: dict[str, Any]) -> bool:
    stream = fields.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise BadRequest("'stream' must be true or false", param="stream")
    return bool(stream)


def _call(
    sender: Sender,
    instance: ModelInstance,
    endpoint: str,
    method: str,
    path: str,
    request_id: str,
    *,
    stream: bool,
    fresh: bool,
) -> Call:
    client, wish, passed_on = sender
    wish = instance.spec.priority if wish is None else wish
    granted = max(wish, client.max_priority)
    return Call(
        endpoint, method, path, passed_on, stream, fresh, granted, granted != wish, request_id, client.name
    )


def _priority(headers: Headers) -> Priority | None:
    text = headers.get("x-request-priority")
    if text is None:
        return None
    priority = Priority.parse(text)
    if priority is None:
        raise InvalidPriority(
            f"X-Request-Priority must be high, normal or low (or 1, 2, 3), not {text[:40]!r}",
            param="X-Request-Priority",
        )
    return priority


def _wrong_kind(instance: ModelInstance, endpoint: Endpoint) -> WrongModelKind:
    kind, wanted = instance.spec.kind.value, " or ".join(sorted(k.value for k in endpoint.kinds))
    return WrongModelKind(
        f"{instance.alias} is a model of the kind {kind}; {endpoint.path} needs one of the kind {wanted} "
        "(set params.embedding or params.rerank in its configuration if that is what it is)",
        param="model",
    )


_KEPT_IN_PATH = "%/:@!$&'()*+,;=~"
_KEPT_IN_QUERY = _KEPT_IN_PATH + "?[]"


def _raw_target(request: Request) -> str:
    """What follows `/upstream/`, still encoded: decoded, `%0d%0a` would begin a request of its own there."""
    raw = request.scope.get("raw_path") or b""
    return quote(raw.partition(b"/upstream/")[2], safe=_KEPT_IN_PATH)


def _split_target(services: Services, target: str) -> tuple[ModelInstance, str]:
    """The model, and the rest as it was encoded. An alias may contain slashes: the longest one is meant."""
    parts = target.split("/")
    known = [count for count, name in enumerate(_beginnings(parts), 1) if name in services.manager.names]
    count = known[-1] if known else 1
    name, path = unquote("/".join(parts[:count])), "/".join(parts[count:])
    if known and {".", ".."} & set(re.split(r"[/\\]", unquote(path))):
        raise BadRequest("a path to llama-server must not contain '.' or '..' parts")
    return services.manager.find(name), path


def _beginnings(parts: Iterable[str]) -> Iterator[str]:
    """What the first part, the first two, and so on may name, up to the length of a name."""
    name = ""
    for part in parts:
        name += f"/{unquote(part)}" if name else unquote(part)
        if len(name) > MAX_NAME:
            return
        yield name
