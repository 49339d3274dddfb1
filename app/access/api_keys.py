"""Who may do what: keys, sessions, host names, origins, sizes."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, replace

from app.access.header_lookup import Headers
from app.access.hosts import Hosts, is_ours
from app.access.origins import Origins
from app.access.sessions import Sessions
from app.access.size_limits import BodyLimit, announced_length, check_headers
from app.core.config import ApiConfig
from app.domain.errors import InvalidApiKey
from app.domain.priority import Priority

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_OPEN_PATHS = frozenset({"/", "/health", "/favicon.ico", "/session"})


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
        self.body_limit = BodyLimit(api.max_body_mb)
        self.sessions = sessions
        self.cookie = f"router_session_{api.port}"  # cookies know no ports: two routers share a machine
        self._api = api
        self._keys = [
            (secret, Client(key.name, key.max_priority, key.admin, owner=_fingerprint(secret)))
            for key in api.api_keys
            for secret in (key.key.get_secret_value().encode(),)
        ]
        self._origins = Origins(api.cors_allow_origins)
        self._hosts = Hosts(api.allowed_hosts)

    def check(self, method: str, path: str, headers: Headers) -> Client:
        """Who asks. Raises the `RouterError` that refuses the request."""
        check_headers(headers)
        client = self._by_key(headers)
        self._hosts.check(headers, is_trusted=client is not None, has_keys=self.has_keys)
        if method not in _SAFE_METHODS or path.startswith("/upstream/"):
            self._origins.check(headers)  # a GET upstream loads its model, and may stop another
        self.body_limit.check(announced_length(headers))
        return client or self._without_key(method, path, headers)

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


def _cookie(header: str, name: str) -> str:
    """The last of that name, as browsers and Starlette see it; empty without one."""
    pairs = (part.partition("=") for part in header.split(";"))
    values = [value.strip() for key, _, value in pairs if key.strip() == name]
    return values[-1] if values else ""


def _fingerprint(secret: bytes) -> str:
    """The secret cannot be had from it."""
    return hashlib.sha256(b"owner of " + secret).hexdigest()
