"""Where a request to a model is, and how long it may stay there."""

from __future__ import annotations

from enum import Enum

HEARTBEAT_S = 5.0
"""A stream that waits gets its head after this time, and a comment each time it passes again."""

CLIENT_STALLS_S = 120.0
"""How long a client may leave its answer unread where no time-out is configured."""

HEAD_WAITS_S = 0.01
"""llama-server sends a stream's head when it begins with the prompt. A short prompt's first event follows at
once, and reaches a client later that is woken for the head before."""


class Phase(Enum):
    QUEUED = "its ticket waits"
    CONNECTING = "granted; no connection yet"
    ASKED = "sent; no head has come"
    ANSWERING = "bytes pass"
    EXITING = "its process failed; what becomes of it is known when that is gone"
    ENDED = "slot and connection are given back"


AT_LLAMA_SERVER = frozenset({Phase.CONNECTING, Phase.ASKED, Phase.ANSWERING})
