"""Who has logged in on the page: a random id in a cookie that no script can read, and its key here."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from app.access.failed_logins import FailedLogins

LIFETIME_S = 7 * 24 * 3600.0
MAX_SESSIONS = 1000
MAX_OF_ONE_KEY = 20
"""Browsers of one person; a key that logs in without end ends its own sessions, and nobody else's."""


@dataclass(frozen=True)
class _Session:
    key: bytes
    expires: float


class Sessions:
    """Kept in memory only: a restart of the router ends them all.

    A session stands for its key, and what a key may do is asked anew each time. So a key that a reload
    removes takes its sessions along.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.failed = FailedLogins(clock)
        self._sessions: dict[bytes, _Session] = {}

    def open(self, key: bytes) -> str:
        """The id of a new one; with too many of this key, or of all, the oldest of them ends."""
        now = self._clock()
        self._sessions = {name: s for name, s in self._sessions.items() if s.expires > now}
        of_key = [name for name, session in self._sessions.items() if session.key == key]
        for name in of_key[: max(len(of_key) + 1 - MAX_OF_ONE_KEY, 0)]:
            del self._sessions[name]
        while len(self._sessions) >= MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        token = secrets.token_urlsafe(32)
        self._sessions[_name(token)] = _Session(key, now + LIFETIME_S)
        return token

    def key_of(self, token: str) -> bytes | None:
        session = self._sessions.get(_name(token))
        return session.key if session is not None and session.expires > self._clock() else None

    def close(self, token: str) -> None:
        self._sessions.pop(_name(token), None)


def _name(token: str) -> bytes:
    """What is looked up is no part of the id, so that the time of the look-up tells nothing of it."""
    return hashlib.sha256(token.encode()).digest()
