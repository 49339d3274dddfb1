"""Host headers: by which names the router may be asked, and whether a page of its own asks."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from app.access.header_lookup import Headers
from app.domain.errors import BadRequest, HostNotAllowed

_LOCAL_SUFFIXES = (".localhost", ".local", ".lan", ".home.arpa", ".internal")
_HOST = re.compile(r"(?P<name>[\w.\-]+|\[[0-9a-f:.]+\])(:\d{0,5})?\Z", re.I | re.A)
_FROM_OURSELVES = (None, "same-origin", "none")
MAX_HOSTS = 1000


class Hosts:
    """By which names it may be asked: `api.allowed_hosts`, the machine's own, and what nobody can rebind."""

    def __init__(self, allowed: Iterable[str]) -> None:
        self._hosts = {host.lower() for host in allowed} | {socket.gethostname().lower()}
        self._known_good: set[str] = set()

    def check(self, headers: Headers, *, is_trusted: bool, has_keys: bool) -> None:
        """Against DNS rebinding: a page's own name must not reach us just because it resolves to us.

        Only old programs send no Host at all; every browser does. Raises `BadRequest` and `HostNotAllowed`.
        """
        if [name for name, _ in headers.raw].count(b"host") > 1:
            raise BadRequest("send one Host header")
        given = headers.get("host")
        if is_trusted or given is None or given in self._known_good or "*" in self._hosts:
            return
        name = host_name(given)
        if name is None or not (name in self._hosts or nobody_can_rebind(name)):
            or_key = ", or send a valid API key" if has_keys else ""
            raise HostNotAllowed(
                f"the host {given[:100]!r} is not known; add it to api.allowed_hosts{or_key}"
            )
        if len(self._known_good) < MAX_HOSTS:
            self._known_good.add(given)


def host_name(host: str) -> str | None:
    """The name or address in a Host header, without its port. None where it is neither."""
    found = _HOST.match(host.strip())
    return found["name"].strip("[]").lower().rstrip(".") or None if found else None


def is_ours(headers: Headers) -> bool:
    """From our own page, or from a program: a page of another origin cannot hide that it is one."""
    origin = headers.get("origin")
    if origin is None:
        return headers.get("sec-fetch-site") in _FROM_OURSELVES
    host = headers.get("host", "").lower()
    return bool(host) and _host_of(origin) == host


def _host_of(origin: str) -> str | None:
    """The host and port of an Origin header."""
    with contextlib.suppress(ValueError):  # `http://[`
        return urlsplit(origin).netloc.lower()
    return None


def nobody_can_rebind(name: str) -> bool:
    if "." not in name or name.endswith(_LOCAL_SUFFIXES):  # an IPv6 address has no dot either
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
