"""Who may do what: keys, sessions, host names, origins, sizes."""

from __future__ import annotations

import hmac
import socket
from dataclasses import dataclass
from itertools import chain

from app.access.headers import Headers
from app.access.hosts import host_name, is_ours, nobody_can_rebind
from app.access.sessions import Sessions
from app.core.config import ApiConfig
from app.domain.errors import (
    BadRequest,
    HeadersTooLarge,
    HostNotAllowed,
    InvalidApiKey,
    OriginNotAllowed,
    RequestTooLarge,
)
from app.domain.priority import Priority
from app.domain.units import MIB

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_OPEN_PATHS = frozenset({"/", "/health", "/favicon.ico", "/session"})
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


class Rules:
    """Who may do what, from one configuration; a reload puts another one in its place."""

    TAKES = (
        "api.allowed_hosts",
        "api.api_keys",
        "api.cors_allow_origins",
        "api.max_body_mb",
        "api.public_metrics",
    )

    def __init__(self, api: ApiConfig, sessions: Sessions) -> None:
        self.max_body_bytes = int(api.max_body_mb * MIB)
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
        if name is None or not (name in self._hosts or nobody_can_rebind(name)):
            raise HostNotAllowed(f"the host {given[:100]!r} is not known; add it to api.allowed_hosts")
        if len(self._good_hosts) < MAX_HOSTS:
            self._good_hosts.add(given)

    def _check_origin(self, headers: Headers) -> None:
        """A web page of another origin must not change anything, whether it can read our answer or not."""
        if is_ours(headers):
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

    def log_in(self, given: str, address: str) -> tuple[str, Client]:
        """A session for this key, and whose it is. Raises `InvalidApiKey` and `TooManyLogins`."""
        self.sessions.failed.check(address)
        client = self._owner_of(given.encode())
        if client is None:
            self.sessions.failed.note(address)
            raise InvalidApiKey("this is none of the router's API keys")
        return self.sessions.open(given.encode()), client

    def token_of(self, headers: Headers) -> str:
        """The session's id out of the cookies; empty without one."""
        return _cookie("; ".join(headers.getlist("cookie")), self.cookie)

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
        if "x-api-key" in headers or not is_ours(headers):
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


def _check_size(headers: Headers) -> None:
    size = sum(map(len, chain.from_iterable(headers.raw)))
    if size > MAX_HEADER_BYTES or len(headers.raw) > MAX_HEADERS:
        raise HeadersTooLarge(f"send at most {MAX_HEADERS} headers of {MAX_HEADER_BYTES} bytes together")


def _content_length(headers: Headers) -> int:
    """What is no number is left to the server; the body is counted anyway."""
    text = headers.get("content-length", "")
    return int(text[:18]) if text.isascii() and text.isdigit() else 0


def _cookie(header: str, name: str) -> str:
    """The last of that name, as browsers and Starlette see it; empty without one."""
    pairs = (part.partition("=") for part in header.split(";"))
    values = [value.strip() for key, _, value in pairs if key.strip() == name]
    return values[-1] if values else ""
