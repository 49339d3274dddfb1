"""What a process takes on a device beside the buffers that it logs: its context, and pools that grow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

GROWTH_MB = 128
"""Workspaces of matrix products, made at the first large batch: 10 to 116 MiB over 12 models (H100)."""

UNLISTED_MB = 16
"""A process takes up to 9 MiB more of a device than NVML lists for it (H100, driver 580)."""

_CONTEXT_MB: Mapping[str, int] = {
    "CUDA": 600,  # 107 to 600 MiB seen, the most on an H100 80GB with driver 580
    "Metal": 128,  # buffers only: there is no context of its own, and its use cannot be read from outside
    "MTL": 128,
}
_UNMEASURED_CONTEXT_MB = 1024 - GROWTH_MB
"""Nobody has measured these: with the growth, the margin that llama.cpp's own `--fit` leaves by default."""


@dataclass(frozen=True)
class FixedCost:
    """MiB of one process on one device. `is_known`: measured on such a device, else a safe constant."""

    context_mb: int
    growth_mb: int = GROWTH_MB
    is_known: bool = False

    @property
    def total_mb(self) -> int:
        return self.context_mb + self.growth_mb


@dataclass(frozen=True)
class SeenCost:
    """The least and the most that processes were seen to take beside their buffers on one kind of device."""

    least_mb: int
    most_mb: int

    def with_(self, mb: int) -> SeenCost:
        return SeenCost(min(self.least_mb, mb), max(self.most_mb, mb))

    def cost(self, growth_mb: int) -> FixedCost:
        """The least is a process whose pools have not grown: all others are that and their growth."""
        return FixedCost(self.least_mb, max(self.most_mb - self.least_mb, growth_mb), is_known=True)


def default_cost(backend: str) -> FixedCost:
    """Before anything was measured on such a device; `backend` as llama.cpp names it."""
    return FixedCost(_CONTEXT_MB.get(backend, _UNMEASURED_CONTEXT_MB))


CUDA_COST = default_cost("CUDA")
