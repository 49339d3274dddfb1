"""How often an address may guess a key on the login page."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from app.domain.errors import TooManyLogins

MAX_FAILURES = 10
WINDOW_S = 60.0
MAX_ADDRESSES = 1000


class FailedLogins:
    """Counts them by address; who has failed too often is refused before the key is looked at."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: dict[str, deque[float]] = {}

    def check(self, address: str) -> None:
        """Raises `TooManyLogins`."""
        failures = self._failures.get(address)
        if failures is None or len(failures) < MAX_FAILURES:
            return
        wait_s = failures[0] + WINDOW_S - self._clock()
        if wait_s > 0:
            raise TooManyLogins("too many wrong keys from this address; try later", retry_after_s=wait_s)

    def note(self, address: str) -> None:
        """One more. Of too many addresses the one that was first is forgotten."""
        if address not in self._failures and len(self._failures) >= MAX_ADDRESSES:
            del self._failures[next(iter(self._failures))]
        self._failures.setdefault(address, deque(maxlen=MAX_FAILURES)).append(self._clock())
