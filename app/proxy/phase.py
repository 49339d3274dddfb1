"""Where a request to a model is."""

from __future__ import annotations

from enum import Enum


class Phase(Enum):
    QUEUED = "its ticket waits"
    CONNECTING = "granted; no connection yet"
    ASKED = "sent; no head has come"
    ANSWERING = "bytes pass"
    TRANSLATING = "what has come is translated; then the client gets it, as it takes it"
    EXITING = "its process failed; what becomes of it is known when that is gone"
    ENDED = "slot and connection are given back"


AT_LLAMA_SERVER = frozenset({Phase.CONNECTING, Phase.ASKED, Phase.ANSWERING})
