"""Who may do what: keys, sessions, host names, origins, sizes."""

from __future__ import annotations

import hashlib
import hmac
import socket
from dataclasses import dataclass, replace
from itertools import chain

from app.access.header_lookup import Headers
from app.access.hosts import host_name, is_ours, nobody_can_rebind
from app.access.origins import Origins
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
    """Who asks, and what they may. `known` is False where a key is needed and none was shown.

    `showed_key`: a valid key stands in a header of the request itself. No page of another site can add one
    without asking first, so what is there against such pages need not hold it up.
    """

    name: str = ""
    max_priority: Priority = Priority.HIGH
    admin: bool = True
    known: bool = True
    showed_key: bool = False
    owner: str = ""
    """Stands for the key, also for one without a name: what is kept for a client is found by it."""


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
            (secret, Client(key.name, key.max_priority, key.admin, owner=_fingerprint(secret)))
            for key in api.api_keys
            for secret in (key.key.get_secret_value().encode(),)
        ]
        self._origins = Origins(api.cors_allow_origins)
        self._good_hosts: set[str] = set()
        self._hosts = {host.lower() for host in api.allowed_hosts} | {socket.gethostname().lower()}

    def check(self, method: str, path: str, headers: Headers) -> Client:
        """Who asks. Raises what the client is to be told instead."""
        _check_size(headers)
        client = self._by_key(headers)
        self._check_host(headers, is_trusted=client is not None)
        if method not in _SAFE_METHODS or path.startswith("/upstream/"):
            self._check_origin(headers)  # a GET upstream loads its model, and may stop another
        self.check_body(announced_length(headers))
        return client or self._without_key(method, path, headers)

    def check_body(self, size: int) -> None:
        """Of a request to a model, announced or come; bytes. Raises `RequestTooLarge`."""
        if size > self.max_body_bytes:
            mb = self._api.max_body_mb
            raise RequestTooLarge(f"the body is larger than {mb:g} MB; raise api.max_body_mb")

    def _check_host(self, headers: Headers, *, is_trusted: bool) -> None:
        """Against DNS rebinding: a page's own name must not reach us just because it resolves to us.

        Only old programs send no Host at all; every browser does.
        """
        if [name for name, _ in headers.raw].count(b"host") > 1:
            raise BadRequest("send one Host header")
        given = headers.get("host")
        if is_trusted or given is None or given in self._good_hosts or "*" in self._hosts:
            return
        name = host_name(given)
        if name is None or not (name in self._hosts or nobody_can_rebind(name)):
            or_key = ", or send a valid API key" if self._keys else ""
            raise HostNotAllowed(
                f"the host {given[:100]!r} is not known; add it to api.allowed_hosts{or_key}"
            )
        if len(self._good_hosts) < MAX_HOSTS:
            self._good_hosts.add(given)

    def _check_origin(self, headers: Headers) -> None:
        """A web page of another origin must not change anything, whether it can read our answer or not."""
        if is_ours(headers):
            return
        origin = headers.get("origin")
        if origin is None:
            raise OriginNotAllowed("a page of another site may not do this; see api.cors_allow_origins")
        if not self._origins.allow(origin):
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

    def _by_key(self, headers: Headers) -> Client | None:
        """Whose key stands in the headers; None where there is none that counts."""
        client = self._owner_of(shown_key(headers) or b"") if self._keys else None
        return None if client is None else replace(client, showed_key=True)

    def _without_key(self, method: str, path: str, headers: Headers) -> Client:
        if not self._keys:
            return ANYBODY
        client = self._by_session(headers)
        if client is not None:
            return client
        if self._is_open(path) or method == "OPTIONS":
            return Client(admin=False, known=False)
        wrong = "this is none of the router's API keys" if shown_key(headers) else "an API key is needed"
        raise InvalidApiKey(f"{wrong}; send a valid one as 'Authorization: Bearer KEY'")

    def _by_session(self, headers: Headers) -> Client | None:
        """Whose session on our own page it is.

        The browser adds the cookie to whatever any page of this machine's name asks for, on any port; so from
        other pages it counts for nothing, not even where `cors_allow_origins` lets them in.
        """
        if shown_key(headers) is not None or not is_ours(headers):
            return None
        return self._owner_of(self.sessions.key_of(self.token_of(headers)) or b"")

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


def shown_key(headers: Headers) -> bytes | None:
    """The key in a request's headers, right or wrong; as llama-server, also without `Bearer` before it.

    None where no header is there for one: `Basic ...` belongs to a proxy in front of us.
    """
    given = headers.get("authorization", "").strip()
    scheme, _, token = given.partition(" ")
    if scheme.lower() == "bearer":
        return token.strip().encode()
    if given and not token:
        return given.encode()
    return headers.get("x-api-key", "").strip().encode() if "x-api-key" in headers else None


def _check_size(headers: Headers) -> None:
    size = sum(map(len, chain.from_iterable(headers.raw)))
    if size > MAX_HEADER_BYTES or len(headers.raw) > MAX_HEADERS:
        raise HeadersTooLarge(f"send at most {MAX_HEADERS} headers of {MAX_HEADER_BYTES} bytes together")


def announced_length(headers: Headers) -> int:
    """Of the body. What is no number is left to the server; the body is counted anyway."""
    text = headers.get("content-length", "")
    return int(text[:18]) if text.isascii() and text.isdigit() else 0


def _cookie(header: str, name: str) -> str:
    """The last of that name, as browsers and Starlette see it; empty without one."""
    pairs = (part.partition("=") for part in header.split(";"))
    values = [value.strip() for key, _, value in pairs if key.strip() == name]
    return values[-1] if values else ""


def _fingerprint(secret: bytes) -> str:
    """The secret cannot be had from it."""
    return hashlib.sha256(b"owner of " + secret).hexdigest()
