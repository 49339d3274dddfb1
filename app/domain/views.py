"""The frozen pictures of models and devices: policies decide on them, the API shows them."""

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
class Need:
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

    `others_mb` is what programs other than our models use: it stays taken whatever we stop. `settling_mb`
    has been given back but the driver does not show it as free yet. `asked_at` is when it was last tried to
    read the device, in loop seconds; `source` is who tells.
    """

    id: str
    name: str
    total_mb: int
    used_mb: int
    free_mb: int
    reserved_mb: int
    min_free_mb: int = 0
    others_mb: int = 0
    settling_mb: int = 0
    asked_at: float = float("inf")
    utilization: float | None = None
    is_gpu: bool = True
    error: str | None = None
    source: str = ""

    @property
    def index(self) -> int | str:
        return int(self.id) if self.id.isdigit() else self.id


@dataclass(frozen=True)
class Head:
    """The waiting request that is served next. `order` breaks ties between equal keys by arrival."""

    key: float
    level: Priority
    arrived: float
    order: int = 0


@dataclass(frozen=True)
class ModelView:
    """A frozen picture of one model: the policy decides on it, the API shows it. Times are loop seconds.

    `held` is what it holds of each device, in MB. `yielded_at` is when it last gave way to another model
    with requests of its own still waiting: those compete as if they had arrived then. `vram_mb` is None
    without a process, and 0 for a model that runs on the CPU.
    """

    alias: str
    status: Status
    kind: ModelKind = ModelKind.CHAT
    slots: int = 1
    in_flight: int = 0
    waiting_by_level: tuple[int, int, int] = (0, 0, 0)
    head: Head | None = None
    best_in_flight: Priority | None = None
    pinned: bool = False
    idle_timeout_s: float | None = None
    need: Need | None = None
    held: Mapping[str, int] = field(default_factory=dict)
    since: float = 0.0
    ready_since: float = 0.0
    last_used: float = NEVER_USED
    served: int = 0
    yielded_at: float = NEVER_USED
    reload_s: float = 1.0
    preload: bool = False
    retry_at: float = 0.0
    stop_reason: StopReason | None = None
    stopped_for: str | None = None
    reason: str = ""
    error: str | None = None
    health: Health | None = None
    port: int | None = None
    pid: int | None = None
    vram_mb: int | None = None
    estimated_mb: int | None = None
    measured_mb: int | None = None
    keep_cache: str = "off"
    kept_tokens: int | None = None
    kept_bytes: int | None = None
    load_started: float | None = None
    expected_load_s: float | None = None
    load_progress: float | None = None
    load_stage: str | None = None

    @property
    def on_devices(self) -> Placement:
        """Of `held`, what is on the devices that it runs on; a model on GPUs keeps more on the host."""
        gpus = {device: mb for device, mb in self.held.items() if device != HOST}
        return gpus or self.held

    @property
    def reserved_mb(self) -> int:
        return sum(self.on_devices.values())

    @property
    def waiting(self) -> int:
        return sum(self.waiting_by_level)

    @property
    def busy(self) -> bool:
        return bool(self.in_flight or self.head)
