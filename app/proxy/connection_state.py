"""Where a client's connection stands."""

from __future__ import annotations

from enum import Enum


class ConnectionState(Enum):
    IDLE = "no request, one that waits for its turn, or the rest of one that has been answered"
    """Also where nothing comes after it: a client whose connection is reset while it still sends may lose the
    answer, and nginx makes a 502 of it."""
    RECEIVING = "a request was let in; its body comes"
    ANSWERING = "an exchange is under way"
    HANDED_OVER = "uvicorn answers"
    CLOSING = "nothing more is read"
