"""Names and addresses as they stand in the configuration: where to listen, who may ask. Pure."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import SplitResult, urlsplit

ANY_ORIGIN = "*"
LOCAL_ORIGINS = "localhost"
"""As an entry of `cors_allow_origins`: pages of this machine, on any port."""

APP_ORIGINS = "apps"
"""As an entry there: desktop apps, whose pages come from no server."""

_APP_SCHEMES = frozenset({"app", "file", "tauri", "vscode-file", "vscode-webview"})
_APP_HOSTS = frozenset({"tauri.localhost"})
"""Where the system's own web view knows no other schemes."""

_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_NAME = re.compile(r"[\w.\-]+\Z", re.A)


# --- where to listen


def checked_listening(text: str) -> str:
    """Raises `ValueError` for what no socket can be bound to."""
    for part in text.split(","):
        _check_address(part.strip())
    return text


def _check_address(part: str) -> None:
    if not part:
        raise ValueError("must be an address, or several with a comma between them")
    if "/" in part:
        raise ValueError(f"must be an address such as 127.0.0.1 or ::1, not {part[:80]!r}")
    if part.startswith("["):
        raise ValueError(f"write the address without brackets and port, not {part[:80]!r}; see api.port")
    if _ip(part) is None and not _NAME.match(part):
        raise ValueError(f"must be an address or a name, without a port: {part[:80]!r} is none; see api.port")


def listening_addresses(text: str) -> tuple[str, ...]:
    """Each once, in the order given. `::` stands for every address of the machine, IPv4 too: some systems
    would say so by themselves, others listen on IPv6 only."""
    found: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        found.append(part)
        if ":" in part and is_every_address(part):
            found.append("0.0.0.0")
    return tuple(dict.fromkeys(found))


def is_every_address(host: str) -> bool:
    ip = _ip(host)
    return ip is not None and ip.is_unspecified


def is_loopback(host: str) -> bool:
    ip = _ip(host)
    return host.lower().rstrip(".") == "localhost" if ip is None else ip.is_loopback


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


# --- whose pages may ask


def checked_origin(text: str) -> str:
    """As browsers write it. Raises `ValueError` for what no browser ever sends."""
    if text in (ANY_ORIGIN, LOCAL_ORIGINS, APP_ORIGINS, "null"):
        return text
    if "*" in text:
        raise ValueError(f"{text[:80]!r} matches nothing: {_WILDCARDS}")
    parts = _split(text)
    if parts is None or not parts.scheme or not parts.hostname:
        raise ValueError(f"{text[:80]!r} matches nothing: {_EXAMPLE}")
    origin = _origin(parts)
    if parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError(f"{text[:80]!r} matches nothing: an origin has no path; write {origin!r}")
    return origin


_EXAMPLE = (
    "write 'http://name:port' as the browser shows it, 'localhost' for every page of this machine, or '*'"
)
_WILDCARDS = (
    "write each origin by itself, 'localhost' for every page of this machine on any port, or '*' alone"
)


def _origin(parts: SplitResult) -> str:
    """In lower case and without the port that goes without saying."""
    name = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    port = "" if parts.port in (None, _DEFAULT_PORTS.get(parts.scheme)) else f":{parts.port}"
    return f"{parts.scheme}://{name}{port}"


def is_local_origin(origin: str) -> bool:
    """A page, or an app, that this machine itself serves."""
    parts = _split(origin)
    name = parts.hostname if parts is not None and parts.scheme else None
    if name is None:
        return False
    return is_loopback(name) or is_every_address(name) or name.endswith(".localhost")


def is_app_origin(origin: str) -> bool:
    parts = _split(origin)
    return parts is not None and (parts.scheme in _APP_SCHEMES or parts.hostname in _APP_HOSTS)


def _split(text: str) -> SplitResult | None:
    try:
        parts = urlsplit(text)
        _ = parts.port  # raises where it is none
    except ValueError:
        return None
    return parts


# --- which names in `Host` are ours


def checked_host_name(text: str) -> str:
    """Raises `ValueError` for what can stand in no `Host` header, or only with more around it."""
    name = text.rstrip(".").lower()
    if text == "*" or _ip(text) is not None or (_NAME.match(name) and not name.startswith(".")):
        return name
    if "*" in text or text.startswith("."):
        raise ValueError(f"{text[:80]!r} matches nothing: write each name by itself, or '*' alone for all")
    parts = _split(text if "//" in text else f"//{text}")
    meant = (parts.hostname or "") if parts is not None else ""
    hint = f"; write {meant!r}" if _ip(meant) is not None or _NAME.match(meant) else ""
    raise ValueError(f"{text[:80]!r} matches nothing: a name without scheme, port and path is needed{hint}")
