"""A refusal in words: `no_capacity` or `vram_exhausted`, with the numbers."""

from __future__ import annotations

from collections.abc import Sequence

from app.domain.errors import NoCapacity, RouterError, VramExhausted
from app.scheduling.plan import Refuse

RETRY_WHEN_FULL_S = 10.0


def refusal_error(refusal: Refuse, max_models: int, loaded: Sequence[str]) -> RouterError:
    if refusal.by_count:
        return NoCapacity(
            f"all {max_models} places are taken by pinned models; raise "
            "system.max_concurrent_models or unpin one",
            retry_after_s=RETRY_WHEN_FULL_S,
            details={"loaded_models": list(loaded)},
        )
    advice = (
        "free memory that pinned models or other programs hold"
        if refusal.ever
        else "use fewer params.n_gpu_layers, a smaller params.n_ctx or a smaller quantisation"
    )
    return VramExhausted(
        f"{refusal.alias} needs {refusal.need_mb} MB and at most {refusal.available_mb} MB can be made "
        f"available; {advice}",
        retryable=refusal.ever,
        retry_after_s=RETRY_WHEN_FULL_S if refusal.ever else None,
        details={
            "required_mb": refusal.need_mb,
            "available_mb": refusal.available_mb,
            "loaded_models": list(loaded),
        },
    )
