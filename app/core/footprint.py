"""What loading a model would take: read from its file's header, or declared, or by its size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from app.core.command import batch_sizes
from app.core.config import ModelSpec
from app.core.exit_reason import Failure, FailureKind
from app.core.gguf_utils import GgufError, GgufHeader, read_header
from app.core.gpu_probe import HOST, MIB
from app.core.memory_estimate import MemoryEstimate, MemoryParams, estimate
from app.core.model_status import ModelKind, Need
from app.core.runner import LoadError


@dataclass(frozen=True)
class Footprint:
    """A model file as far as scheduling needs it. Memory figures are before the safety factor."""

    file_mb: int
    identity: tuple[int, int]  # mtime in ns, size in bytes
    header: GgufHeader
    with_gpu: MemoryEstimate
    on_host: MemoryEstimate

    @property
    def trained_context(self) -> int | None:
        return self.header.context_length


def identity(path: Path) -> tuple[int, int] | None:
    """Changes when the file does; None without a file. Blocking."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def inspect(spec: ModelSpec) -> Footprint:
    """Read the header and estimate. Blocking. Raises `LoadError` for what no load could heal."""
    try:
        found = identity(spec.path)
        header = read_header(spec.path)
        projector = Path(spec.params.mmproj).stat().st_size if spec.params.mmproj else 0
    except FileNotFoundError as error:
        raise LoadError(_failure(FailureKind.MISSING_FILE, f"there is no file {error.filename}.")) from error
    except OSError as error:
        raise LoadError(
            _failure(FailureKind.MISSING_FILE, f"{spec.path} cannot be read: {error}.")
        ) from error
    except GgufError as error:
        raise LoadError(_failure(FailureKind.BAD_MODEL, str(error))) from error
    layers = 0 if spec.cpu_only else spec.params.n_gpu_layers
    return Footprint(
        file_mb=header.file_size // MIB,
        identity=found or (0, 0),
        header=header,
        with_gpu=estimate(header, _params(spec, layers, projector)),
        on_host=estimate(header, _params(spec, 0, projector)),
    )


def need(
    spec: ModelSpec, footprint: Footprint, gpus: Sequence[str], has_gpu: bool, multiplier: float
) -> Need:
    """What to reserve, and where it may go. Without any GPU a model is loaded into host memory."""
    on_gpu = has_gpu and not spec.cpu_only
    if spec.declared_mb is not None:
        return Need(spec.declared_mb, tuple(gpus) if on_gpu else (HOST,), note="declared by vram_mb")
    found = footprint.with_gpu if on_gpu else footprint.on_host
    size = found.device_bytes if on_gpu else found.host_bytes
    overhead = found.device.overhead_bytes if on_gpu else 0
    return Need(
        mb=_mb(size * multiplier),
        devices=tuple(gpus) if on_gpu else (HOST,),
        overhead_mb=_mb(overhead * multiplier),
        exact=found.exact,
        note=found.note,
    )


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
