"""Between clients and a router: passes bytes on, and keeps them to be counted."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections import Counter

from tests.patience import WAIT_S

_MODEL = re.compile(rb'"model"\s*:\s*"([^"]*?)(?::latest)?"')


class ListeningProxy:
    """Connections are kept apart: what two of them carry at the same time is never mixed."""

    def __init__(self, port: int) -> None:
        """`port`: the router's, on this machine."""
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._asked: list[bytearray] = []
        self._answered: list[bytearray] = []
        self._connections: list[threading.Thread] = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def close(self) -> None:
        """Before its socket is closed, its thread has ended: else that may take the connections of a later
        proxy, of which the socket has the same number."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()

    def wait_until_closed(self) -> None:
        """By its clients, each of its connections. Before, a client may know the answer of a request of which
        the last part is still to be read here: the router refuses some by their heads."""
        for connection in self._connections:
            connection.join(WAIT_S)
            assert not connection.is_alive(), "a client has left its connection open"

    @property
    def asked_for(self) -> Counter[str]:
        """Requests by the model that their bodies name."""
        return Counter(name.decode() for said in self._asked for name in _MODEL.findall(bytes(said)))

    @property
    def answered(self) -> bytes:
        return b"\n".join(map(bytes, self._answered))

    # --- inside

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # shut down
                return
            connection = threading.Thread(target=self._connect, args=(client,), daemon=True)
            self._connections.append(connection)
            connection.start()

    def _connect(self, client: socket.socket) -> None:
        asked, answered = bytearray(), bytearray()
        self._asked.append(asked)
        self._answered.append(answered)
        with client, socket.create_connection(("127.0.0.1", self._port)) as router:
            back = threading.Thread(target=_pass, args=(router, client, answered), daemon=True)
            back.start()
            _pass(client, router, asked)
            back.join()


def _pass(source: socket.socket, target: socket.socket, kept: bytearray) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            kept += data
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
