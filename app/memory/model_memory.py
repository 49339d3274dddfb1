"""One model's memory through its life: reserved, checked before the weights are read, measured, noted."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence

from app.domain.model_spec import ModelSpec
from app.domain.views import HOST, Layout, MemoryNeed, Placement
from app.llama.exit_reason import Failure, FailureKind
from app.llama.load_output import Buffer, LoadLog
from app.memory.ledger.memory_ledger import MemoryLedger
from app.memory.load_history import LoadHistory
from app.memory.probes.fixed_cost import UNLISTED_MB

logger = logging.getLogger(__name__)

MOST_OVERHEAD_MB = 2048  # what is beyond it was not the process's fixed cost
OOM_STEP_MB = 256
TAKEN_MB = 64  # others' use changes by a little all the time
ON_CPU = (
    "%s: it was to run on GPU %s, but llama-server has put all of it into the machine's own memory: it runs "
    "on the CPU. Its log says why; perhaps it was built for other GPUs, or for another driver"
)
_ON_HOST = re.compile(r"CPU|AMX|BLAS|.*_Host$")
_BESIDE = {"--lora", "--lora-scaled", "-md", "--model-draft", "--mmproj", "-mm", "--control-vector"}


class ModelMemory:
    """`need` is what a load would take; `key` names this file with these flags in what was learned."""

    def __init__(self, alias: str, ledger: MemoryLedger, history: LoadHistory) -> None:
        self._alias, self._ledger, self._history = alias, ledger, history
        self._spec: ModelSpec | None = None
        self._key = ""
        self._need: MemoryNeed | None = None
        self._checked = self._loaded = False
        self._stopped_for_more = False
        self.is_on_cpu = False
        """It was to run on GPUs, and its log shows no buffer there."""
        self._buffers = (0, 0)
        self._layout = Layout({})
        self._others_before = 0

    # --- what is known

    def expect(self, spec: ModelSpec, key: str, need: MemoryNeed) -> None:
        """The file has been looked at."""
        self._spec, self._key, self._need = spec, key, need

    @property
    def estimated_mb(self) -> int | None:
        """By the file's header, or declared; of the last look at it."""
        if self._need is None:
            return None
        return self._need.mb if self._need.estimate_mb is None else self._need.estimate_mb

    @property
    def measured_mb(self) -> int | None:
        """What it really takes, or took when it was last loaded; None where nobody has seen it."""
        now = self._ledger.of(self._alias).measured_mb
        return now if now is not None else self._history.model(self._key).seen_mb

    @property
    def load_s(self) -> float | None:
        """How long its last load took; None where nobody has seen one."""
        return self._history.model(self._key).load_ms / 1000 or None

    # --- one load

    def reserve(self, placement: Placement) -> None:
        self._checked = self._loaded = self.is_on_cpu = False
        self._buffers = (0, 0)
        self._layout = placement if isinstance(placement, Layout) else Layout(placement)
        self._others_before = self._ledger.others_mb(placement)
        self._ledger.reserve(self._alias, placement)

    def check(self, log: LoadLog) -> Failure | None:
        """Compare what llama-server announces with the reservation, before it reads the weights.

        More than was reserved is reserved now if there is room. Else the load has to stop: what it needs is
        known the next time. `may_heal` of a second such failure in a row ends in a real one.
        """
        mb = self._announced_mb(log)
        if mb is None or self._checked:
            return None
        self._checked = True
        reserved = self._reserved()
        more_mb = mb - sum(reserved.values())
        if more_mb <= 0:
            return None
        grown = _scaled(reserved, mb)
        if all(self._ledger.room_mb(d) >= grown[d] - reserved[d] for d in reserved):
            logger.info("%s: needs %d MB more than expected, which is there", self._alias, more_mb)
            self._reserve(grown)
            return None
        self._history.put(self._key, floor_mb=mb)
        message = f"It needs {mb} MB, {more_mb} MB more than expected, and that is not free."
        return Failure(FailureKind.OUT_OF_MEMORY, message, None, ())

    @property
    def may_plan_again(self) -> bool:
        """Once in a row: a second surprise is a failure like any other."""
        return not self._stopped_for_more

    def plan_again(self) -> None:
        """The load is stopped for a plan that knows more."""
        self._stopped_for_more = True

    def loaded(self, log: LoadLog, took_s: float) -> None:
        """Remember the buffers that it logged, and the time."""
        self._history.put(self._key, load_ms=max(1, round(1000 * took_s)))
        self._loaded, self._stopped_for_more = True, False
        self._buffers = device_mb, host_mb = split_buffers(log.buffers)
        if device_mb or host_mb:
            self._history.put(self._key, device_mb=device_mb, host_mb=host_mb, floor_mb=0)
        self._ledger.loaded(self._alias)
        self.is_on_cpu = bool(self._offloads() and host_mb and not device_mb)
        if self.is_on_cpu:
            logger.warning(ON_CPU, self._alias, ", ".join(self._gpus()))

    def look(self, *, has_served: bool) -> bool:
        """After each reading: learn from what the driver shows, and reserve what it really takes.

        Before it has served somebody its pools have not grown: what it takes then is not all. True if the
        reservation became another one.
        """
        gpus = self._gpus()
        if not self._loaded or not gpus or not self._buffers[0]:
            return False
        if not self._ledger.has_reading_since_load(self._alias):
            return False
        self._learn_from_driver(gpus, has_served)
        return self._reserve_what_it_takes(gpus)

    def ran_out(self, log: LoadLog) -> bool:
        """Its process has ended for want of memory. True: because others took it while it was loaded.

        Else the next plan reserves more, and so makes room if that helps.
        """
        others_mb = self._ledger.others_mb(self._layout, without=self._alias)
        if not self._loaded and others_mb - self._others_before > TAKEN_MB:
            return True
        reserved, gpus = self._reserved(), self._gpus()
        asked = split_buffers([*log.buffers, *([log.refused] if log.refused else ())])
        beside_mb = self._need.overhead_mb * len(gpus) if self._need else 0
        self._needs_more_than(sum(reserved.values()), asked[0] + beside_mb if gpus else asked[1])
        return False

    def release(self, *, crashed: bool) -> None:
        """The process is gone."""
        self._loaded = False
        self._ledger.release(self._alias, crashed=crashed)

    def keep_unkillable(self, pid: int) -> str:
        """Its process does not die; the name under which what it holds stays reserved."""
        self._loaded = False
        return self._ledger.keep_unkillable(self._alias, pid)

    # --- inside

    def _learn_from_driver(self, gpus: Sequence[str], has_served: bool) -> None:
        """What a process takes beside its buffers is the GPU's and the driver's: it holds for all models."""
        peak_mb = self._ledger.of(self._alias).peak_mb
        beyond_mb = peak_mb - self._buffers[0]
        if not 0 < beyond_mb <= MOST_OVERHEAD_MB * len(gpus):
            return
        if has_served:
            alone_mb = peak_mb - self._more_for_several(len(gpus))
            known_mb = self._history.model(self._key).measured_mb
            self._history.put(self._key, measured_mb=max(alone_mb, known_mb))
        if len(gpus) == 1 and not self._has_more_than_its_log_tells():
            (card,) = [reading for reading in self._ledger.gpus() if reading.id in gpus]
            self._history.saw_fixed_cost(card.kind, beyond_mb + UNLISTED_MB)

    def _more_for_several(self, devices: int) -> int:
        """What a split takes beyond the same model on one device: each further device's own part."""
        if self._need is None:
            return 0
        each_mb = self._need.overhead_mb + self._need.scratch_mb
        return (devices - 1) * each_mb + (devices * self._need.copies_mb if devices > 1 else 0)

    def _reserve_what_it_takes(self, gpus: Sequence[str]) -> bool:
        """Less than was reserved for the load, but with room for the pools that still grow."""
        if self._need is None or self._need.declared:
            return False
        reserved, measured = self._reserved(), self._ledger.of(self._alias).measured
        expected_mb = self._buffers[0] + self._need.beside_mb + self._need.overhead_mb * len(gpus)
        seen_mb = self._ledger.of(self._alias).peak_mb
        target_mb = max(seen_mb and seen_mb + UNLISTED_MB, min(sum(reserved.values()), expected_mb))
        if abs(target_mb - sum(reserved.values())) <= len(reserved):  # rounding
            return False
        self._reserve(_scaled(measured if set(measured) == set(reserved) else reserved, target_mb))
        return True

    def _offloads(self) -> bool:
        """Some of it is to be in a GPU's memory."""
        return bool(self._gpus()) and self._spec is not None and self._spec.params.n_gpu_layers > 0

    def _gpus(self) -> list[str]:
        return [device for device in self._ledger.of(self._alias).placement if device != HOST]

    def _reserved(self) -> dict[str, int]:
        """Of the devices that it is loaded on: GPUs, or the host, whose prompt cache is left out here."""
        reserved = self._ledger.of(self._alias).placement
        if gpus := self._gpus():
            return {device: reserved[device] for device in gpus}
        return {device: mb - (self._layout.cache_mb or 0) for device, mb in reserved.items()}

    def _reserve(self, amounts: Mapping[str, int]) -> None:
        """These in the place of what `_reserved` tells; what it keeps beside them on the host stays."""
        own, whole = self._reserved(), self._ledger.of(self._alias).placement
        changed = {device: mb - own.get(device, 0) + amounts.get(device, 0) for device, mb in whole.items()}
        self._ledger.adjust(self._alias, changed)

    def _announced_mb(self, log: LoadLog) -> int | None:
        """What llama-server says that it will use there, and what it does not count itself."""
        if self._need is None or self._need.declared:
            return None
        gpus = self._gpus()
        mb = log.projected_mb.get("device" if gpus else "host")
        if mb is None:
            return None
        return mb + self._need.overhead_mb * max(len(gpus), 1) + self._need.beside_mb

    def _needs_more_than(self, mb: int, asked_mb: int) -> None:
        """It ran out of memory with this much, and had asked for that much; never believed to need more
        than the devices could give."""
        if self._need is None or self._need.declared:
            return
        most_mb = self._ledger.most_mb(self._need.devices)
        floor_mb = min(max(mb + max(mb // 10, OOM_STEP_MB), asked_mb), max(most_mb, mb))
        if self._loaded:  # it was loaded, and grew while it served
            self._history.put(
                self._key, measured_mb=max(floor_mb, self._history.model(self._key).measured_mb)
            )
        else:
            self._history.put(self._key, floor_mb=max(floor_mb, self._history.model(self._key).floor_mb))

    def _has_more_than_its_log_tells(self) -> bool:
        assert self._spec is not None
        flags = {arg.partition("=")[0] for arg in self._spec.extra_args}
        return bool(self._spec.params.mmproj or flags & _BESIDE)


def split_buffers(buffers: Iterable[Buffer]) -> tuple[int, int]:
    """MB on devices and on the host."""
    device = host = 0.0
    for buffer in buffers:
        if _ON_HOST.match(buffer.device):
            host += buffer.mib
        else:
            device += buffer.mib
    return _up(device), _up(host)


def _scaled(shares: Mapping[str, int], total_mb: int) -> dict[str, int]:
    """`total_mb` in the proportion of `shares`."""
    whole = sum(shares.values()) or 1
    return {device: -(-total_mb * mb // whole) for device, mb in shares.items()}


def _up(mib: float) -> int:
    return -(-int(mib * 100) // 100)
