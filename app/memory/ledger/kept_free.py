"""What is kept free on each device: `system.min_free_vram_mb`, and a share of the machine's own memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from app.domain.views import HOST
from app.memory.probes.interface import Reading

DEFAULT_MB = 500
HOST_PART = 20  # a twentieth of the machine's memory, within these limits
HOST_LEAST_MB, HOST_MOST_MB = 128, 1024


@dataclass(frozen=True)
class KeptFree:
    """MB by device, as the configuration names it; `mb` on GPUs that it does not name."""

    mb: int = DEFAULT_MB
    by_device: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, configured: int | Mapping[str, int]) -> KeptFree:
        return cls(configured) if isinstance(configured, int) else cls(by_device=configured)

    def of(self, reading: Reading) -> int:
        for name in (reading.id, reading.uuid, *reading.names):
            if name in self.by_device:
                return self.by_device[name]
        of_host_mb = min(max(reading.total_mb // HOST_PART, HOST_LEAST_MB), HOST_MOST_MB)
        if reading.id == HOST:
            return of_host_mb
        return max(self.mb, of_host_mb) if reading.shares_host else self.mb
