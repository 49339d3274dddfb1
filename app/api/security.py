"""The door: host names, origins, keys, body size and request ids, before anything else runs. Pure ASGI."""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import random
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request, cookie_parser
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.access.sessions import Sessions
from app.api import errors
from app.core.config import ApiConfig
from app.domain.errors import (
    BadRequest,
    Forbidden,
    HeadersTooLarge,
    HostNotAllowed,
    InvalidApiKey,
    OriginNotAllowed,
    RequestTooLarge,
    RouterError,
)
from app.domain.status import Priority
from app.proxy.headers import ON_EVERY_ANSWER, OURS

_LOCAL_SUFFIXES = (".localhost", ".local", ".lan", ".home.arpa", ".internal")
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_USABLE_ID = re.compile(r"[A-Za-z0-9._:\-]{1,128}\Z")
_OPEN_PATHS = frozenset({"/", "/health", "/favicon.ico", "/session"})
_HOST = re.compile(r"(?P<name>[\w.\-]+|\[[0-9a-f:.]+\])(:\d{0,5})?\Z", re.I | re.A)
_FROMOURSELVES = (None, "same-origin", "none")
MAX_HEADERS = 100
MAX_HEADER_BYTES = 32768
MAX_HOSTS = 1000


@dataclass(frozen=True)
class Client:
    """Who asks, and what they may. `known` is False where a key is needed and none was shown."""

    name: str = ""
    max_priority: Priority = Priority.HIGH
    admin: bool = True
    known: bool = True


ANYBODY = Client()
"""Everybody, where no keys are set."""


def client_of(request: Request) -> Client:
    client: Client = request.scope["router.client"]
    return client


def rules_of(request: Request) -> Rules:
    found: Rules = request.app.state.rules
    return found


def require_admin(request: Request) -> None:
    """Raises `Forbidden` for a key without the right to manage."""
    if not client_of(request).admin:
        raise Forbidden('this API key may not manage models; use one with "admin": true')


class Head(Headers):
    """Starlette's headers, with one pass over them all instead of one, and often an exception, a question.

    Of several of one name `get` gives the first, as Starlette does; it takes names in lower case only.
    """

    def __init__(self, raw: list[tuple[bytes, bytes]]) -> None:
        super().__init__(raw=raw)
        first = {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(raw)}
        self.get = first.get  # type: ignore[method-assign]


class Rules:
    """Who may do what, from one configuration; a reload puts another one in its place."""

    def __init__(self, api: ApiConfig, sessions: Sessions) -> None:
        self.max_body_bytes = int(api.max_body_mb * 2**20)
        self.sessions = sessions
        self.cookie = f"router_session_{api.port}"  # cookies know no ports: two routers share a machine
        self._api = api
        self._keys = [
            (key.key.get_secret_value().encode(), Client(key.name, key.max_priority, key.admin))
            for key in api.api_keys
        ]
        self._good_hosts: set[str] = set()
        self._hosts = {host.lower() for host in api.allowed_hosts} | {socket.gethostname().lower()}

    def check(self, method: str, path: str, headers: Headers) -> Client:
        """Who asks. Raises what the client is to be told instead."""
        _check_size(headers)
        self._check_host(headers)
        if method not in _SAFE_METHODS or path.startswith("/upstream/"):
            self._check_origin(headers)  # a GET upstream loads its model, and may stop another
        if _content_length(headers) > self.max_body_bytes:
            raise self.too_large()
        return self._client(method, path, headers)

    def too_large(self) -> RequestTooLarge:
        return RequestTooLarge(f"the body is larger than {self._api.max_body_mb:g} MB; raise api.max_body_mb")

    def _check_host(self, headers: Headers) -> None:
        """Against DNS rebinding: a page's own name must not reach us just because it resolves to us.

        Only old programs send no Host at all; every browser does.
        """
        if [name for name, _ in headers.raw].count(b"host") > 1:
            raise BadRequest("send one Host header")
        given = headers.get("host")
        if given is None or given in self._good_hosts or "*" in self._hosts:
            return
        name = host_name(given)
        if name is None or not (name in self._hosts or _nobody_can_rebind(name)):
            raise HostNotAllowed(f"the host {given[:100]!r} is not known; add it to api.allowed_hosts")
        if len(self._good_hosts) < MAX_HOSTS:
            self._good_hosts.add(given)

    def _check_origin(self, headers: Headers) -> None:
        """A web page of another origin must not change anything, whether it can read our answer or not."""
        if _is_ours(headers):
            return
        origin, allowed = headers.get("origin"), self._api.cors_allow_origins
        if origin is None:
            raise OriginNotAllowed("a page of another site may not do this; see api.cors_allow_origins")
        if "*" not in allowed and origin not in allowed:
            raise OriginNotAllowed(f"{origin[:100]} may not do this; add it to api.cors_allow_origins")

    # --- keys

    @property
    def has_keys(self) -> bool:
        return bool(self._keys)

    def log_in(self, given: str) -> tuple[str, Client]:
        """A session for this key, and whose it is. Raises `InvalidApiKey`."""
        client = self._owner_of(given.encode())
        if client is None:
            raise InvalidApiKey("this is none of the router's API keys")
        return self.sessions.open(given.encode()), client

    def token_of(self, headers: Headers) -> str:
        """The session's id out of the cookies; empty without one."""
        return cookie_parser("; ".join(headers.getlist("cookie"))).get(self.cookie, "")

    def _client(self, method: str, path: str, headers: Headers) -> Client:
        if not self._keys:
            return ANYBODY
        client = self._owner_of(self._given_key(headers))
        if client is not None:
            return client
        if self._is_open(path) or method == "OPTIONS":
            return Client(admin=False, known=False)
        raise InvalidApiKey("send a valid API key as 'Authorization: Bearer KEY'")

    def _given_key(self, headers: Headers) -> bytes:
        """The key that is shown, or for which the session of our own page stands.

        The browser adds the cookie to whatever any page of this machine's name asks for, on any port; so from
        other pages it counts for nothing, not even where `cors_allow_origins` lets them in.
        """
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return token.strip().encode()
        if "x-api-key" in headers or not _is_ours(headers):
            return headers.get("x-api-key", "").encode()
        return self.sessions.key_of(self.token_of(headers)) or b""

    def _owner_of(self, given: bytes) -> Client | None:
        found = None
        for key, client in self._keys:  # all are compared, so that time tells nothing
            if hmac.compare_digest(key, given):
                found = client
        return found

    def _is_open(self, path: str) -> bool:
        if path == "/metrics":
            return self._api.public_metrics
        return path in _OPEN_PATHS or path.startswith("/ui/")


class Guard:
    """Lets a request through, with its id and client in the scope, or answers it."""

    def __init__(self, app: ASGIApp, rules: Callable[[], Rules]) -> None:
        self._app, self._rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        error = None if "router.client" in scope else self._look(scope)  # an errand has been let in
        send = _with_own_headers(send, scope["router.request_id"])
        if error is not None:
            await errors.response(error, scope["path"])(scope, receive, send)
            return
        with contextlib.suppress(ClientDisconnect):  # in the middle of its body: nobody to answer
            await self._app(scope, _counted(receive, self._rules()), send)

    def _look(self, scope: Scope) -> RouterError | None:
        """Who asks, and under which id. What the client is to be told instead."""
        headers = Head(scope["headers"])
        scope["router.headers"], scope["router.request_id"] = headers, request_id(headers.get("x-request-id"))
        try:
            scope["router.client"] = self._rules().check(scope["method"], scope["path"], headers)
        except RouterError as error:
            return error
        return None


class Cors(CORSMiddleware):
    """Starlette's, but a preflight that it refuses is told so in the API's shape."""

    def preflight_response(self, request_headers: Headers) -> Response:
        answer = super().preflight_response(request_headers)
        if answer.status_code < 400:
            return answer
        refused = OriginNotAllowed(
            "this origin, method or header may not be used; see api.cors_allow_origins"
        )
        return errors.response(refused, "")


def _counted(receive: Receive, rules: Rules) -> Receive:
    """Counts a body while it comes in: a chunked one tells no length beforehand."""
    received = 0

    async def counted() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > rules.max_body_bytes:
            raise rules.too_large()
        return message

    return counted


def request_id(given: str | None) -> str:
    """The client's own, where it is one that can stand in headers and logs."""
    return given if given and _USABLE_ID.match(given) else f"{random.getrandbits(128):032x}"


def host_name(host: str) -> str | None:
    """The name or address in a Host header, without its port. None where it is neither."""
    found = _HOST.match(host.strip())
    return found["name"].strip("[]").lower().rstrip(".") or None if found else None


def _is_ours(headers: Headers) -> bool:
    """From our own page, or from a program: a page of another origin cannot hide that it is one."""
    origin = headers.get("origin")
    if origin is None:
        return headers.get("sec-fetch-site") in _FROMOURSELVES
    host = headers.get("host", "").lower()
    return bool(host) and _host_of(origin) == host


def _host_of(origin: str) -> str | None:
    """The host and port of an Origin header."""
    with contextlib.suppress(ValueError):  # `http://[`
        return urlsplit(origin).netloc.lower()
    return None


def _check_size(headers: Headers) -> None:
    size = sum(map(len, chain.from_iterable(headers.raw)))
    if size > MAX_HEADER_BYTES or len(headers.raw) > MAX_HEADERS:
        raise HeadersTooLarge(f"send at most {MAX_HEADERS} headers of {MAX_HEADER_BYTES} bytes together")


def _content_length(headers: Headers) -> int:
    """What is no number is left to the server; the body is counted anyway."""
    text = headers.get("content-length", "")
    return int(text[:18]) if text.isascii() and text.isdigit() else 0


def _nobody_can_rebind(name: str) -> bool:
    if "." not in name or name.endswith(_LOCAL_SUFFIXES):  # an IPv6 address has no dot either
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def own_headers(request_id: str) -> list[tuple[bytes, bytes]]:
    """On every answer."""
    return [(b"x-request-id", request_id.encode()), *ON_EVERY_ANSWER]


def _with_own_headers(send: Send, request_id: str) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            others = [header for header in message.get("headers", ()) if header[0] not in OURS]
            message["headers"] = others + own_headers(request_id)
        await send(message)

    return wrapped
