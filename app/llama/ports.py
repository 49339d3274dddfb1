"""Free ports for llama-servers."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from app.llama.exit_reason import Failure, FailureKind
from app.llama.os_calls import WINDOWS
from app.llama.runner_interface import LoadError

MAX_PORT = 65535


class Ports:
    """The lowest free ports from `first` up; then, as a last resort, those below it."""

    def __init__(self, first: int) -> None:
        self.first = first
        self._claimed: set[int] = set()

    @contextmanager
    def claim(self) -> Iterator[int]:
        port = self._free()
        self._claimed.add(port)
        try:
            yield port
        finally:
            self._claimed.discard(port)

    def _free(self) -> int:
        for port in itertools.chain(range(self.first, MAX_PORT + 1), range(1024, self.first)):
            if port not in self._claimed and can_bind(port):
                return port
        message = "There is no free port on 127.0.0.1."
        raise LoadError(Failure(FailureKind.PORT_TAKEN, message, None, ()))


def can_bind(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        if not WINDOWS:  # there it would allow to take over a port in use; here it forgives TIME_WAIT
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
