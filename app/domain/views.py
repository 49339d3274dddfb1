"""Frozen snapshots of models and devices: policies decide on them, the API shows them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from app.domain.priority import Priority
from app.domain.status import Health, ModelKind, Status, StopReason

HOST = "host"
"""Among the ids of devices: the machine's own memory."""

Placement = Mapping[str, int]
"""MB by device: what a model holds, or would hold, there."""


@dataclass(frozen=True, eq=False)
class Layout(Mapping[str, int]):
    """A placement with what the process has to be told of it. Equal to any mapping with the same amounts.

    `layers` are how many of a split model's layers go to each device, in the order of `mb`; `cache_mb` is the
    part of the host's share that is meant for its prompt cache.
    """

    mb: Mapping[str, int]
    layers: tuple[int, ...] = ()
    cache_mb: int | None = None

    def __getitem__(self, device: str) -> int:
        return self.mb[device]

    def __iter__(self) -> Iterator[str]:
        return iter(self.mb)

    def __len__(self) -> int:
        return len(self.mb)


NEVER_USED = float("-inf")


@dataclass(frozen=True)
class MemoryNeed:
    """What a load takes: `mb` on one device, and `host_mb` of the machine's memory beside it.

    Split over several devices, `layers` (bytes of each layer, the output last) are distributed, and each
    device takes `overhead_mb`, `scratch_mb` and `copies_mb` beside them. `cache_mb` of host memory would be
    of use, but less will do. `estimate_mb` is what the header alone says, where more is known. `beside_mb` is
    the part that llama-server does not announce. A `declared` need is the user's word, against which nothing
    else counts.
    """

    mb: int
    devices: tuple[str, ...]
    overhead_mb: int = 0
    scratch_mb: int = 0
    copies_mb: int = 0
    host_mb: int = 0
    cache_mb: int = 0
    layers: tuple[int, ...] = ()
    exact: bool = True
    note: str = ""
    estimate_mb: int | None = None
    beside_mb: int = 0
    declared: bool = False


@dataclass(frozen=True)
class DeviceView:
    """A device's memory. `free_mb` is what a new reservation may take, before `min_free_mb` is kept back.

    `others_mb` is what programs other than our models use: it stays taken whatever we stop. `reclaiming_mb`
    has been given back but the driver does not show it as free yet. `asked_at` is when it was last tried to
    read the device, in loop seconds; `source` is who tells. One that `shares_host` has no memory of its own:
    what is placed there is taken from the machine's.
    """

    id: str
    name: str
    total_mb: int
    used_mb: int
    free_mb: int
    reserved_mb: int
    min_free_mb: int = 0
    others_mb: int = 0
    reclaiming_mb: int = 0
    asked_at: float = float("inf")
    utilization: float | None = None
    is_gpu: bool = True
    error: str | None = None
    source: str = ""
    shares_host: bool = False

    @property
    def index(self) -> int | str:
        return int(self.id) if self.id.isdigit() else self.id


@dataclass(frozen=True)
class QueueHead:
    """The waiting request that is served next. `order` breaks ties between equal keys by arrival."""

    key: float
    level: Priority
    arrived: float
    order: int = 0


@dataclass(frozen=True)
class ProcessView:
    """One process of a model, and what it does now. Times are loop seconds.

    `reserved` is what was set aside for it on each device, in MB. `served` counts the requests that it was
    granted. `vram_mb` is what it uses of the GPUs: 0 on the CPU. `load_started` is set until it is ready.
    `warning` says what is not as it was meant, though it serves.
    """

    status: Status
    reserved: Placement = field(default_factory=dict)
    in_flight: int = 0
    best_in_flight: Priority | None = None
    served: int = 0
    ready_since: float = 0.0
    stop_reason: StopReason | None = None
    health: Health | None = None
    port: int | None = None
    pid: int | None = None
    vram_mb: int | None = None
    load_started: float | None = None
    load_progress: float | None = None
    load_stage: str | None = None
    warning: str | None = None

    @property
    def is_leaving(self) -> bool:
        """On its way out, and no decision of the policy keeps it."""
        if self.status is Status.STOPPING:
            return True
        is_swap = self.stop_reason is not None and self.stop_reason.is_swap
        return self.status is Status.DRAINING and not is_swap

    @property
    def on_devices(self) -> Placement:
        """Of `reserved`, what is on the devices that it runs on; a model on GPUs keeps more on the host."""
        gpus = {device: mb for device, mb in self.reserved.items() if device != HOST}
        return gpus or self.reserved

    @property
    def reserved_mb(self) -> int:
        return sum(self.on_devices.values())

    @property
    def host_mb(self) -> int:
        return self.reserved.get(HOST, 0)


@dataclass(frozen=True)
class KeptView:
    """Whether a model's conversations are kept over a swap, and how large those are that are kept now."""

    mode: str = "off"
    tokens: int | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class ModelView:
    """A snapshot of one model: the policy decides on it, the API shows it. Times are loop seconds.

    It has no process, or one; decisions are written as if it could have several. `slots` are those of one
    process. `preempted_at` is when it last gave way to another model with requests of its own still waiting:
    those compete as if they had arrived then. `service_s` is what a request takes lately. `asked_per_s` are
    requests by level, as far as they came while another model waited for room, `popularity` those while any
    did. `retry_at` counts while it is `crashed`. `stop_reason` and `stopped_for` are those of its last
    process, if that was stopped.
    """

    alias: str
    status: Status
    kind: ModelKind = ModelKind.CHAT
    slots: int = 1
    pinned: bool = False
    idle_timeout_s: float | None = None
    waiting_by_level: tuple[int, int, int] = (0, 0, 0)
    head: QueueHead | None = None
    need: MemoryNeed | None = None
    since: float = 0.0
    last_used: float = NEVER_USED
    preempted_at: float = NEVER_USED
    reload_s: float = 1.0
    expected_load_s: float | None = None
    service_s: float = 0.0
    asked_per_s: tuple[float, float, float] = (0.0, 0.0, 0.0)
    popularity: float = 0.0
    preload: bool = False
    retry_at: float = 0.0
    reason: str = ""
    stop_reason: StopReason | None = None
    stopped_for: str | None = None
    error: str | None = None
    estimated_mb: int | None = None
    measured_mb: int | None = None
    kept: KeptView = KeptView()
    processes: tuple[ProcessView, ...] = ()

    @property
    def process(self) -> ProcessView | None:
        """The one that is shown of it."""
        return self.processes[0] if self.processes else None

    @property
    def in_flight(self) -> int:
        return sum(process.in_flight for process in self.processes)

    @property
    def vram_mb(self) -> int | None:
        """None without a process."""
        known = [process.vram_mb for process in self.processes if process.vram_mb is not None]
        return sum(known) if known else None

    @property
    def waiting(self) -> int:
        return sum(self.waiting_by_level)
