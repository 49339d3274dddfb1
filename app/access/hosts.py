"""Names in Host and Origin headers: whose page asks, and whether its name can be rebound."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from urllib.parse import urlsplit

from app.access.header_lookup import Headers

_LOCAL_SUFFIXES = (".localhost", ".local", ".lan", ".home.arpa", ".internal")
_HOST = re.compile(r"(?P<name>[\w.\-]+|\[[0-9a-f:.]+\])(:\d{0,5})?\Z", re.I | re.A)
_FROM_OURSELVES = (None, "same-origin", "none")


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
