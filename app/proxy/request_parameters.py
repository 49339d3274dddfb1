"""Which model is asked for what: read from a request's target, headers and body. Pure.

Every function here raises `RouterError`s that tell the client what is wrong with its request.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from app.access.api_keys import ANYBODY, Client
from app.access.header_lookup import Headers
from app.domain.errors import (
    BadRequest,
    Forbidden,
    InvalidPriority,
    MissingModel,
    UnsupportedMediaType,
    WrongModelKind,
)
from app.domain.model_names import MAX_NAME
from app.domain.priority import Priority
from app.domain.status import ModelKind
from app.models.fleet import Fleet
from app.models.instance import ModelInstance
from app.models.load_errors import model_not_loaded
from app.proxy import model_ttl
from app.proxy.content_encoding import is_gzip
from app.proxy.forwarded_headers import Headers as Raw
from app.proxy.forwarded_headers import as_lines
from app.proxy.request_record import RoutedRequest
from app.proxy.routes import TUNNEL, Endpoint

_READING = frozenset({"GET", "HEAD", "OPTIONS"})


class RequestMeta(NamedTuple):
    """What the headers of a request say: the same ones always say the same."""

    client: Client
    wish: Priority | None
    passed_on: bytes
    """As lines, for llama-server."""
    is_gzip: bool = False
    """Its body is packed."""
    is_navigation: bool = False
    """A person opens a page in a browser."""
    boundary: bytes = b""
    """Of its form, where it is an upload."""
    ttl_s: float | None = None
    """How long its model is to stay loaded when nobody uses it any more; None: as configured."""
    shows_wait: bool = False
    """Its wait is to be told as part of the answer, where its API has a way to."""

    @classmethod
    def of(cls, headers: Headers, client: Client, passed_on: Raw) -> RequestMeta:
        lines = as_lines(passed_on)
        ttl_s = model_ttl.in_header(headers)
        is_navigation = _is_navigation(headers, client)
        return cls(
            client,
            _priority(headers),
            lines,
            is_gzip(headers),
            is_navigation,
            ttl_s=ttl_s,
            shows_wait=_shows_wait(headers),
        )


def read_body(
    fleet: Fleet, meta: RequestMeta, request_id: str, fields: Mapping[str, Any], endpoint: Endpoint
) -> tuple[ModelInstance, RoutedRequest]:
    """For an endpoint whose body names the model."""
    instance = find_model(fleet, fields, endpoint.kinds)
    if instance.spec.kind not in endpoint.kinds:
        raise _wrong_kind(instance, endpoint)
    stream = _streams(fields)
    path = endpoint.path
    ttl_s = meta.ttl_s
    if ttl_s is None and model_ttl.FIELD in fields:
        ttl_s = model_ttl.in_field(fields[model_ttl.FIELD])
    slots = slots_held(fields)
    return instance, _routed(
        meta, instance, path, "POST", path, request_id, stream=stream, ttl_s=ttl_s, slots=slots
    )


def read_tunnel(
    fleet: Fleet, meta: RequestMeta, request_id: str, method: str, raw_target: bytes
) -> tuple[ModelInstance, RoutedRequest]:
    """For a target that begins with `TUNNEL`, as it was sent: decoded, `%0d%0a` would begin a request of its
    own at llama-server."""
    raw_path, _, raw_query = raw_target[len(TUNNEL) :].partition(b"?")
    instance, path = _split_target(fleet, quote(raw_path, safe=_KEPT_IN_PATH))
    only_reads = method in _READING and not meta.is_navigation
    if only_reads and not instance.serves:
        raise model_not_loaded(instance.alias)
    query = quote(raw_query, safe=_KEPT_IN_QUERY)
    where = f"/{path}" + (f"?{query}" if query else "")
    endpoint = TUNNEL.rstrip("/")
    return instance, _routed(
        meta,
        instance,
        endpoint,
        method,
        where,
        request_id,
        keeps_connection=False,
        only_reads=only_reads,
        ttl_s=meta.ttl_s,
    )


def _routed(
    meta: RequestMeta,
    instance: ModelInstance,
    endpoint: str,
    method: str,
    path: str,
    request_id: str,
    *,
    stream: bool = False,
    keeps_connection: bool = True,
    only_reads: bool = False,
    ttl_s: float | None = None,
    slots: int = 1,
) -> RoutedRequest:
    client, wish, passed_on = meta[:3]
    wish = instance.spec.priority if wish is None else wish
    granted = max(wish, client.max_priority)
    ttl_s = None if ttl_s is None else model_ttl.allowed(ttl_s, instance.spec, client)
    return RoutedRequest(  # by position: names cost as much as the object
        endpoint,
        method,
        path,
        passed_on,
        stream,
        keeps_connection and not stream,
        granted,
        granted != wish,
        request_id,
        client.name,
        only_reads,
        ttl_s,
        slots,
    )


# --- the body


def find_model(fleet: Fleet, fields: Mapping[str, Any], kinds: Collection[ModelKind]) -> ModelInstance:
    """Who answers a request that needs one of these kinds."""
    name = fields.get("model")
    if name is not None and not isinstance(name, str):
        raise _no_text()
    return fleet.serving(name or None, kinds)


def named_model(fleet: Fleet, fields: Mapping[str, Any]) -> ModelInstance:
    """Who is to be managed: for that no model stands for another."""
    name = fields.get("model")
    if name is None or name == "":
        raise MissingModel("name a model in the field 'model'; GET /v1/models lists them", param="model")
    if not isinstance(name, str):
        raise _no_text()
    return fleet.find(name)


def _no_text() -> BadRequest:
    return BadRequest("'model' must be a string", param="model")


def _streams(fields: Mapping[str, Any]) -> bool:
    stream = fields.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise BadRequest("'stream' must be true or false", param="stream")
    return bool(stream)


def slots_held(fields: Mapping[str, Any]) -> int:
    """One for each answer that is asked for, and for each text, as far as the router reads them: a list of
    numbers is one text."""
    answers = [n for name in ("n", "n_cmpl") if isinstance(n := fields.get(name), int)]
    given = [fields.get(name) for name in ("prompt", "input", "documents")]
    texts = [sum(not isinstance(t, int) for t in texts) for texts in given if isinstance(texts, list)]
    return max([1, *answers]) * max([1, *texts])


def _wrong_kind(instance: ModelInstance, endpoint: Endpoint) -> WrongModelKind:
    kind, wanted = instance.spec.kind.value, " or ".join(sorted(k.value for k in endpoint.kinds))
    error = WrongModelKind(
        f"{instance.alias} is a model of the kind {kind}; {endpoint.path} needs one of the kind {wanted} "
        "(set params.embedding or params.rerank in its configuration if that is what it is)",
        param="model",
    )
    error.status = endpoint.wrong_kind_status
    return error


# --- the headers


def require_admin(client: Client) -> None:
    """Raises `Forbidden` for a key without the right to manage."""
    if not client.admin:
        raise Forbidden('this API key may not manage models; use one with "admin": true')


def is_json(headers: Headers) -> bool:
    """JSON, or a type that says that it is JSON; without a type JSON is meant."""
    media_type = _media_type(headers)
    return media_type == "application/json" or media_type.endswith("+json")


def check_media_type(headers: Headers, client: Client) -> None:
    """A page of another site can send a form or a text, but no key: with one, the type does not matter.

    Raises `UnsupportedMediaType`.
    """
    if not (client.showed_key or is_json(headers)):
        raise UnsupportedMediaType(
            f"send JSON with 'Content-Type: application/json', not {_media_type(headers)[:80]!r}"
        )


def _media_type(headers: Headers) -> str:
    return headers.get("content-type", "application/json").partition(";")[0].strip().lower()


def _is_navigation(headers: Headers, client: Client) -> bool:
    """Browsers tell the first only where the connection is safe, by TLS or on this machine. The second comes
    with any page's frame, too: it counts where a key or a session shows that no stranger's page asks."""
    mode = headers.get("sec-fetch-mode")
    if mode is not None:
        return mode == "navigate"
    return headers.get("upgrade-insecure-requests") == "1" and client is not ANYBODY


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


def _shows_wait(headers: Headers) -> bool:
    text = headers.get("x-progress")
    if text is not None and text.strip().lower() != "reasoning":
        raise BadRequest(f"X-Progress must be reasoning, not {text[:40]!r}", param="X-Progress")
    return text is not None


# --- the target

_KEPT_IN_PATH = "%/:@!$&'()*+,;=~"
_KEPT_IN_QUERY = _KEPT_IN_PATH + "?[]"


def _split_target(fleet: Fleet, target: str) -> tuple[ModelInstance, str]:
    """The model, and the rest as it was encoded. An alias may contain slashes: the longest one is meant.

    What only resembles a name ends as early as it can, else `qwen/embed` could be a provider's `embed`.
    """
    parts = target.split("/")
    names = list(_beginnings(parts))
    known = [count for count, name in enumerate(names, 1) if name in fleet.names]
    alike = () if known else (count for count, name in enumerate(names, 1) if fleet.like(name) is not None)
    count = known[-1] if known else next(iter(alike), 1)
    instance, path = fleet.find(unquote("/".join(parts[:count]))), "/".join(parts[count:])
    if {".", ".."} & set(re.split(r"[/\\]", unquote(path))):
        raise BadRequest("a path to llama-server must not contain '.' or '..' parts")
    return instance, path


def _beginnings(parts: Iterable[str]) -> Iterator[str]:
    """What the first part, the first two, and so on may name, up to the length of a name."""
    name = None
    for part in parts:
        name = unquote(part) if name is None else f"{name}/{unquote(part)}"
        if len(name) > MAX_NAME:
            return
        yield name
