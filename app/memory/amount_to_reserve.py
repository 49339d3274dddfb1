"""What loading a model would take: read from its file's header, or declared, or by its size."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from app.domain.file_identity import FileIdentity
from app.domain.model_spec import ModelSpec
from app.domain.status import ModelKind
from app.domain.units import MIB
from app.domain.views import HOST, MemoryNeed
from app.gguf.header import ENCODERS, PROJECTOR, GgufError, GgufHeader, read_header
from app.llama.command_line import batch_sizes
from app.llama.exit_reason import Failure, FailureKind
from app.llama.os_calls import NO_FILES_LEFT, out_of_files
from app.llama.runner_interface import LoadError
from app.memory.estimate.estimate import MemoryEstimate, MemoryParams, estimate
from app.memory.load_history import LoadRecord
from app.memory.probes.fixed_cost import CUDA_COST, UNLISTED_MB, FixedCost

NO_RECORD = LoadRecord()
DECLARED = "declared by vram_mb"
_NO_CHAT = (
    "its file is an encoder ({}), which makes embeddings and no text: set params.embedding to true, or "
    "remove it; where it is not set, the file was another one when the configuration was read: reload it."
)
_NO_MODEL = "its file is a projector: set params.mmproj of the model that it belongs to."
PROCESS_MB = 64  # of a llama-server beside its buffers: 17 MiB of its own, and its libraries
GPU_PROCESS_MB = 384  # the same with a GPU's libraries and pinned memory


@dataclass(frozen=True)
class Footprint:
    """A model file as far as scheduling needs it. Memory figures are before the safety factor."""

    file_mb: int
    identity: FileIdentity
    header: GgufHeader
    with_gpu: MemoryEstimate
    on_host: MemoryEstimate
    projector_bytes: int = 0

    def slot_bytes(self, slots: int) -> int:
        """What one slot holds when it is full."""
        share = self.on_host.host
        return (share.kv_bytes + share.recurrent_bytes) // slots


def inspect(spec: ModelSpec) -> Footprint:
    """Read the header and estimate. Blocking. Raises `LoadError` for what no load could heal."""
    try:
        found = FileIdentity.at(spec.path)
        header = read_header(spec.path)
        projector = _projector_bytes(spec)
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
    if header.architecture == PROJECTOR:
        raise LoadError(_failure(FailureKind.BAD_MODEL, _NO_MODEL))
    if header.architecture in ENCODERS and spec.kind is ModelKind.CHAT:
        raise LoadError(_failure(FailureKind.BAD_FLAG, _NO_CHAT.format(header.architecture)))
    layers = 0 if spec.cpu_only else spec.params.n_gpu_layers
    return Footprint(
        file_mb=header.file_size // MIB,
        identity=found or FileIdentity(0, 0),
        header=header,
        with_gpu=estimate(header, _params(spec, layers, projector)),
        on_host=estimate(header, _params(spec, 0, projector)),
        projector_bytes=projector,
    )


def _projector_bytes(spec: ModelSpec) -> int:
    if not spec.params.mmproj:
        return 0
    header = read_header(Path(spec.params.mmproj))
    if header.architecture != PROJECTOR:
        raise GgufError(f"params.mmproj: {header.parts[0].name} is a model and no projector; name its own")
    return header.file_size


def need(
    spec: ModelSpec,
    footprint: Footprint,
    gpus: Sequence[str],
    has_gpu: bool,
    multiplier: float,
    record: LoadRecord = NO_RECORD,
    cost: FixedCost = CUDA_COST,
) -> MemoryNeed:
    """What to reserve, and where it may go. Without any GPU a model is loaded into host memory.

    The factor is for what is uncertain: scratch memory, costs that nobody has measured, and all of a header
    that does not tell. Weights and caches that follow from the header are taken as they are, and so is what
    was measured in an earlier load.
    """
    if has_gpu and not spec.cpu_only:
        return _on_gpu(spec, footprint, tuple(gpus), multiplier, record, cost)
    return _on_host(spec, footprint, multiplier, record)


def _on_gpu(
    spec: ModelSpec,
    footprint: Footprint,
    gpus: tuple[str, ...],
    multiplier: float,
    record: LoadRecord,
    cost: FixedCost,
) -> MemoryNeed:
    found, share = footprint.with_gpu, footprint.with_gpu.device
    beside_mb = _mb(footprint.projector_bytes * multiplier)
    fixed_mb = cost.total_mb if cost.is_known else round(cost.total_mb * multiplier)
    overhead_mb = fixed_mb + _mb(share.overhead_bytes * multiplier)
    sure_bytes = share.sure_bytes - footprint.projector_bytes
    buffers_mb = _mb(sure_bytes * _doubt(found, multiplier) + share.compute_bytes * multiplier)
    estimate_mb = buffers_mb + beside_mb + overhead_mb
    seen_mb = _seen_mb(record, overhead_mb - cost.growth_mb + beside_mb, cost.growth_mb)
    base = MemoryNeed(
        mb=max(seen_mb or estimate_mb, record.floor_mb),
        devices=gpus,
        overhead_mb=overhead_mb,
        host_mb=_host_part_mb(found, multiplier),
        cache_mb=_prompt_cache_mb(spec),
        exact=found.exact or bool(seen_mb),
        note="measured at an earlier load" if seen_mb else found.note,
        estimate_mb=estimate_mb,
        beside_mb=beside_mb,
        scratch_mb=_mb(share.compute_bytes * multiplier),
        copies_mb=_mb(found.copies_bytes),
        layers=found.layers,
    )
    if spec.declared_mb is None:
        return base
    return replace(_declared(base, spec.declared_mb), layers=())


def _on_host(spec: ModelSpec, footprint: Footprint, multiplier: float, record: LoadRecord) -> MemoryNeed:
    found, share = footprint.on_host, footprint.on_host.host
    process_mb = round(PROCESS_MB * multiplier)
    buffers_mb = _mb(share.sure_bytes * _doubt(found, multiplier) + share.compute_bytes * multiplier)
    estimate_mb = buffers_mb + process_mb
    seen_mb = record.host_mb + process_mb if record.host_mb else 0
    base = MemoryNeed(
        mb=max(seen_mb or estimate_mb, record.floor_mb),
        devices=(HOST,),
        overhead_mb=process_mb,
        cache_mb=_prompt_cache_mb(spec),
        exact=found.exact or bool(seen_mb),
        note="measured at an earlier load" if seen_mb else found.note,
        estimate_mb=estimate_mb,
    )
    if spec.declared_mb is None:
        return base
    return _declared(base, spec.declared_mb)


def _declared(need: MemoryNeed, mb: int) -> MemoryNeed:
    return replace(need, mb=mb, note=DECLARED, estimate_mb=None, exact=True, declared=True)


def _doubt(found: MemoryEstimate, multiplier: float) -> float:
    return 1.0 if found.exact else multiplier


def _host_part_mb(found: MemoryEstimate, multiplier: float) -> int:
    """What a model on the GPU keeps in the machine's memory: embedded tokens, layers, the process itself."""
    unsure_bytes = found.host.compute_bytes + GPU_PROCESS_MB * MIB
    return _mb(found.host.sure_bytes * _doubt(found, multiplier) + unsure_bytes * multiplier)


def _prompt_cache_mb(spec: ModelSpec) -> int:
    return spec.prompt_cache_mb if spec.kind is ModelKind.CHAT else 0


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


def _seen_mb(record: LoadRecord, beyond_mb: int, growth_mb: int) -> int:
    """0 if it was never loaded like this.

    `beyond_mb` is what it takes beside its buffers, `growth_mb` what has not grown yet where it was measured
    before it had served anybody.
    """
    buffers_mb = record.device_mb + beyond_mb if record.device_mb else 0
    if not record.measured_mb:
        return buffers_mb + growth_mb if buffers_mb else 0
    return max(record.measured_mb + UNLISTED_MB, buffers_mb)


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
