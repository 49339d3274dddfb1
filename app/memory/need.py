"""What loading a model would take: read from its file's header, or declared, or by its size."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from app.domain.files import FileIdentity
from app.domain.spec import ModelSpec
from app.domain.status import ModelKind
from app.domain.units import MIB
from app.domain.views import HOST, Need
from app.gguf.header import GgufError, GgufHeader, read_header
from app.llama.command import batch_sizes
from app.llama.exit_reason import Failure, FailureKind
from app.llama.os_process import NO_FILES_LEFT, out_of_files
from app.llama.runner import LoadError
from app.memory.estimate.estimate import DEFAULT_OVERHEAD_BYTES, MemoryEstimate, MemoryParams, estimate
from app.memory.history import Learned

NOTHING_LEARNED = Learned()


@dataclass(frozen=True)
class Footprint:
    """A model file as far as scheduling needs it. Memory figures are before the safety factor."""

    file_mb: int
    identity: FileIdentity
    header: GgufHeader
    with_gpu: MemoryEstimate
    on_host: MemoryEstimate
    projector_bytes: int = 0

    @property
    def trained_context(self) -> int | None:
        return self.header.context_length


def inspect(spec: ModelSpec) -> Footprint:
    """Read the header and estimate. Blocking. Raises `LoadError` for what no load could heal."""
    try:
        found = FileIdentity.at(spec.path)
        header = read_header(spec.path)
        projector = Path(spec.params.mmproj).stat().st_size if spec.params.mmproj else 0
    except FileNotFoundError as error:
        raise LoadError(_failure(FailureKind.MISSING_FILE, f"there is no file {error.filename}.")) from error
    except OSError as error:
        if out_of_files(error):
            raise LoadError(_failure(FailureKind.OUT_OF_FILES, NO_FILES_LEFT)) from error
        raise LoadError(
            _failure(FailureKind.MISSING_FILE, f"{spec.path} cannot be read: {error}.")
        ) from error
    except GgufError as error:
        raise LoadError(_failure(FailureKind.BAD_MODEL, str(error))) from error
    layers = 0 if spec.cpu_only else spec.params.n_gpu_layers
    return Footprint(
        file_mb=header.file_size // MIB,
        identity=found or FileIdentity(0, 0),
        header=header,
        with_gpu=estimate(header, _params(spec, layers, projector)),
        on_host=estimate(header, _params(spec, 0, projector)),
        projector_bytes=projector,
    )


def need(
    spec: ModelSpec,
    footprint: Footprint,
    gpus: Sequence[str],
    has_gpu: bool,
    multiplier: float,
    learned: Learned = NOTHING_LEARNED,
    learned_overhead_mb: int | None = None,
) -> Need:
    """What to reserve, and where it may go. Without any GPU a model is loaded into host memory.

    The factor is for what nobody has seen: what was measured in an earlier load is taken as it is.
    """
    on_gpu = has_gpu and not spec.cpu_only
    places = tuple(gpus) if on_gpu else (HOST,)
    if spec.declared_mb is not None:
        return Need(spec.declared_mb, places, note="declared by vram_mb", declared=True)
    found = footprint.with_gpu if on_gpu else footprint.on_host
    overhead_mb = _overhead_mb(found, multiplier, learned_overhead_mb) if on_gpu else 0
    size = found.device_bytes if on_gpu else found.host_bytes
    without = size - (found.device.overhead_bytes if on_gpu else 0)
    estimate_mb = _mb(without * multiplier) + overhead_mb
    beside_mb = _mb(footprint.projector_bytes * multiplier) if on_gpu else 0
    seen_mb = _seen_mb(learned, on_gpu, multiplier, overhead_mb + beside_mb)
    return Need(
        mb=max(seen_mb or estimate_mb, learned.floor_mb),
        devices=places,
        overhead_mb=overhead_mb,
        exact=found.exact or bool(seen_mb),
        note="measured at an earlier load" if seen_mb else found.note,
        estimate_mb=estimate_mb,
        beside_mb=beside_mb,
    )


def key(spec: ModelSpec, footprint: Footprint, build: str, has_gpu: bool) -> str:
    """Names all that decides how much memory a load takes: the build, the file, and how it is run."""
    params = spec.params.model_dump(mode="json", exclude={"chat_template"})
    run = [spec.slots, spec.flash_attention, spec.kind.value, *batch_sizes(spec), list(spec.extra_args)]
    where = has_gpu and not spec.cpu_only
    facts = [
        build,
        str(spec.path),
        footprint.identity,
        footprint.projector_bytes,
        params,
        run,
        spec.env,
        where,
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _seen_mb(learned: Learned, on_gpu: bool, multiplier: float, more_mb: int) -> int:
    """0 if it was never loaded like this. On the host only the buffers are known, not the process."""
    if not on_gpu:
        return _mb(learned.host_mb * multiplier * MIB)
    return max(learned.device_mb + more_mb, learned.measured_mb) if learned.device_mb else learned.measured_mb


def _overhead_mb(found: MemoryEstimate, multiplier: float, learned_mb: int | None) -> int:
    """The fixed cost of a process on the GPU, and what this model adds to it beside its buffers."""
    if learned_mb is None:
        return _mb(found.device.overhead_bytes * multiplier)
    own_bytes = max(found.device.overhead_bytes - DEFAULT_OVERHEAD_BYTES, 0)
    return learned_mb + _mb(own_bytes * multiplier)


def _params(spec: ModelSpec, layers: int, projector_bytes: int) -> MemoryParams:
    n_batch, n_ubatch = batch_sizes(spec)
    base = MemoryParams(
        n_ctx=spec.params.n_ctx,
        slots=spec.slots,
        n_gpu_layers=layers,
        type_k=spec.params.type_k,
        type_v=spec.params.type_v,
        flash_attention=spec.flash_attention != "off",
        embedding=spec.kind is not ModelKind.CHAT,
        mmproj_bytes=projector_bytes,
    )
    return replace(base, n_batch=n_batch or base.n_batch, n_ubatch=n_ubatch or base.n_ubatch)


def _mb(size: float) -> int:
    return -(-int(size) // MIB)


def _failure(kind: FailureKind, message: str) -> Failure:
    return Failure(kind, message, None, ())
