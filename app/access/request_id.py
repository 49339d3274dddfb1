"""The id of a request, and the headers that every answer carries."""

from __future__ import annotations

import random
import re

USABLE_ID = r"[A-Za-z0-9._:\-]{1,128}"
_USABLE_ID = re.compile(USABLE_ID + r"\Z")
ON_EVERY_ANSWER = [(b"x-content-type-options", b"nosniff"), (b"x-frame-options", b"DENY")]
OURS = frozenset({b"x-request-id", *(name for name, _ in ON_EVERY_ANSWER)})


def request_id(given: str | None) -> str:
    """The client's own, where it is one that can stand in headers and logs."""
    return given if given and _USABLE_ID.match(given) else f"{random.getrandbits(128):032x}"


def own_headers(request_id: str) -> list[tuple[bytes, bytes]]:
    """On every answer."""
    return [(b"x-request-id", request_id.encode()), *ON_EVERY_ANSWER]
