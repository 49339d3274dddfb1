"""A line in the log for each request that is refused, but never more lines than somebody can read."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass

from app.domain.errors import Refused

logger = logging.getLogger(__name__)

WINDOW_S = 10.0
MAX_LINES = 20
"""Of one kind of refusal in a window: a flood of one does not hide the others. There are a dozen kinds."""

_LOUD = frozenset({401, 403})
"""Somebody may be trying keys."""


@dataclass(frozen=True)
class Refusal:
    """A request that was refused, and why. Its query and headers may hold secrets, and are not here."""

    method: str
    path: str
    address: str
    client: str
    request_id: str
    error: Refused

    def __str__(self) -> str:
        error, who = self.error, f"{self.address} ({self.client})" if self.client else self.address
        return (
            f"refused {self.method[:20]} {self.path[:200]} of {who}: {error.status} {error.code}: "
            f"{error.message[:300]} [{self.request_id}]"
        )


class RefusalLog:
    """Counts what it leaves out, and tells the sums at the end of the window."""

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self._window_s = window_s
        self._counts: Counter[str] = Counter()

    def tell(self, refusal: Refusal) -> None:
        """On the event loop."""
        if not self._counts:
            asyncio.get_running_loop().call_later(self._window_s, self.close_window)
        error = refusal.error
        self._counts[error.code] += 1
        if self._counts[error.code] <= MAX_LINES:
            logger.log(logging.WARNING if error.status in _LOUD else logging.INFO, "%s", refusal)

    def close_window(self) -> None:
        """What comes from now on has lines again."""
        left_out = {code: n - MAX_LINES for code, n in self._counts.items() if n > MAX_LINES}
        self._counts.clear()
        if left_out:
            sums = ", ".join(f"{code} {n}" for code, n in left_out.items())
            logger.warning("refused in the last %g s without a line of their own: %s", self._window_s, sums)
