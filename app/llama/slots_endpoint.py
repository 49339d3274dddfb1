"""llama-server's own word on its slots (`GET /slots`): which work, and how far they are."""

from __future__ import annotations

import json
from typing import Any

from app.judgement.evidence import Slot

SLOT_IS_FREE = (b" release: id ", b"cancel task, id_task = ")
"""In its log, where that is not too quiet; the second for what got no slot, too. Only a reason to look: a
client's text could say so, too."""


def working_slots(body: bytes) -> list[Slot] | None:
    """None for what cannot be understood: the shape changes between builds."""
    try:
        entries = json.loads(body)
    except ValueError:
        return None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return None
    if any(not isinstance(entry.get("is_processing"), bool) for entry in entries):
        return None
    return [_slot(entry) for entry in entries if entry["is_processing"]]


def _slot(entry: dict[str, Any]) -> Slot:
    token = entry.get("next_token")
    if isinstance(token, list):
        token = token[0] if token else None
    decoded = token.get("n_decoded") if isinstance(token, dict) else entry.get("n_decoded")
    return Slot(
        task=_whole(entry.get("id_task", entry.get("id"))),
        prompt=_whole(entry.get("n_prompt_tokens")),
        read=_whole(entry.get("n_prompt_tokens_processed")) + _whole(entry.get("n_prompt_tokens_cache")),
        generated=_whole(decoded),
    )


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
