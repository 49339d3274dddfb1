"""Where the router listens: looked at before anything is loaded, because the server binds last of all."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Iterable
from contextlib import suppress

from app.domain.addresses_and_origins import is_every_address


class CannotListen(Exception):
    """`is_in_use`: another program, or another router, listens there now."""

    def __init__(self, address: str, port: int, error: OSError, key: str = "port") -> None:
        self.is_in_use = error.errno == errno.EADDRINUSE
        super().__init__(f"cannot listen on {address}:{port}: {_what_to_do(error, key)}")


def places(addresses: Iterable[str], port: int, key: str = "port") -> tuple[str, ...]:
    """The numeric addresses that a server can bind, each once. `key`: in the section `api`.

    Raises `CannotListen`."""
    found = (place for address in addresses for place in _places_of(address, port, key))
    return tuple(dict.fromkeys(found))


def _places_of(address: str, port: int, key: str) -> list[str]:
    """Of a name those that this machine has: `localhost` also stands for ::1 where there is no IPv6."""
    try:
        candidates = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise CannotListen(address, port, error, key) from error
    found: list[str] = []
    lacking: OSError | None = None
    for family, _, _, _, place in candidates:
        try:
            _try(family, place)
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise CannotListen(address, port, error, key) from error
            lacking = error
        else:
            found.append(str(place[0]))
    if lacking is not None and not found:
        raise CannotListen(address, port, lacking, key) from lacking
    return found


def _try(family: int, place: tuple[object, ...]) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        if os.name == "posix":  # forgives TIME_WAIT; on Windows it would take over a port in use
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        probe.bind(place)


def _what_to_do(error: OSError, key: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            "the port is in use, perhaps by another router. Stop that program, or choose another port: "
            f"api.{key} in the configuration, or the environment variable ROUTER_API__{key.upper()}"
        )
    if error.errno == errno.EACCES:
        return f"ports below 1024 need special rights; set api.{key} to a higher one"
    return f"{error.strerror or error}; set api.host to an address of this machine"


def urls(addresses: Iterable[str], port: int) -> list[str]:
    """What can be opened on this machine, a line each."""
    return list(dict.fromkeys(_url(address, port) for address in addresses))


def _url(address: str, port: int) -> str:
    if is_every_address(address):
        return f"http://127.0.0.1:{port} and every other address of this machine"
    with suppress(ValueError):
        if ipaddress.ip_address(address).version == 6:
            address = f"[{address.replace('%', '%25')}]"
    return f"http://{address}:{port}"
