"""How far the requests are that a model serves: for its status, the queue's figures and the page."""

from __future__ import annotations

from typing import Any

from app.api.model_json import unix
from app.judgement.evidence import Slot
from app.judgement.progress import Running, known, of_process
from app.models.instance import ModelInstance


def progress(instance: ModelInstance) -> dict[str, Any]:
    """`requests`, the longest first; `progress` is that of all slots of the process together.

    Slots are looked at only where a request has got nothing for a while: each look keeps a cancelled request
    alive for longer.
    """
    runner, running = instance.runner, instance.queue.running
    if runner is None or not running:
        return {"requests": [], "progress": None}
    asked = [(t.granted_at, t.owner.generated if t.owner is not None else None) for t in running]
    evidence = runner.evidence
    of_all = of_process(evidence, min(since for since, _ in asked))
    return {
        "requests": [_request(found) for found in known(asked, evidence)],
        "progress": None if of_all is None else {"seen": unix(evidence.slots_at), **_tokens(of_all)},
    }


def _request(found: Running) -> dict[str, Any]:
    return {"since": unix(found.since), **_tokens(found)}


def _tokens(of: Running | Slot) -> dict[str, int | None]:
    return {"prompt_tokens": of.prompt, "prompt_read": of.read, "generated": of.generated}
