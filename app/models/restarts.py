"""When a process that died may be started again."""

from __future__ import annotations


def backoff_s(crashes: int) -> float:
    """Wait before the n-th restart in a row: 0.5 s, doubled each time, at most 30 s."""
    return float(min(0.5 * 2 ** max(crashes - 1, 0), 30.0))
