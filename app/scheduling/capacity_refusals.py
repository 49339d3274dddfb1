"""A refusal and its words: `no_capacity` or `vram_exhausted`, with the numbers."""

from __future__ import annotations

from collections.abc import Sequence

from app.domain.errors import NeverFits, NoCapacity, RouterError, VramExhausted
from app.domain.views import HOST, MemoryNeed
from app.scheduling.actions import Refuse
from app.scheduling.placement import Capacity, fits_on_devices

RETRY_WHEN_FULL_S = 10.0


def refuse(alias: str, need: MemoryNeed, best: Capacity, *, ever: bool) -> Refuse:
    """With the figures of what is short: the devices' memory, or the machine's own."""
    on_host, layers_help = HOST in need.devices, bool(best.free.keys() - best.shared - {HOST})
    if on_host or HOST not in best.free or not fits_on_devices(need, best):
        short = need.mb, best.most(need)
    else:
        on_host, short = True, (need.host_mb, max(best.free[HOST], 0))
    return Refuse(
        alias, False, *short, ever, on_host=on_host, layers_help=layers_help, is_blind=not best.free
    )


def refusal_error(refusal: Refuse, max_models: int, loaded: Sequence[str]) -> RouterError:
    if refusal.by_count:
        return NoCapacity(
            f"all {max_models} places are taken by pinned models; raise "
            "system.max_concurrent_models or unpin one",
            retry_after_s=RETRY_WHEN_FULL_S,
            details={"loaded_models": list(loaded)},
        )
    if refusal.is_blind:
        return VramExhausted(
            f"{refusal.alias} cannot be placed: no device's memory has been read yet; GET /vram says why",
            retry_after_s=RETRY_WHEN_FULL_S,
        )
    where = " of the machine's own memory" if refusal.on_host else ""
    message = (
        f"{refusal.alias} needs {refusal.need_mb} MB{where} and at most {refusal.available_mb} MB can be "
        f"made available; {_advice(refusal)}"
    )
    details = {
        "required_mb": refusal.need_mb,
        "available_mb": refusal.available_mb,
        "loaded_models": list(loaded),
    }
    if not refusal.ever:
        return NeverFits(message, details=details)
    return VramExhausted(message, retry_after_s=RETRY_WHEN_FULL_S, details=details)


def _advice(refusal: Refuse) -> str:
    if refusal.ever:
        return "free memory that pinned models or other programs hold"
    if not refusal.layers_help:
        return "use a smaller params.n_ctx or a smaller quantisation"
    if refusal.on_host:
        return "use a smaller params.n_ctx or a smaller quantisation, or more params.n_gpu_layers"
    return "use fewer params.n_gpu_layers, a smaller params.n_ctx or a smaller quantisation"
