"""What Ollama's lists say of a model: from its file's header, whether it is loaded or not."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping
from typing import Any

from app.api.model_list import capabilities, context_length
from app.domain.model_spec import ModelSpec
from app.domain.units import MIB
from app.domain.views import ModelView
from app.gguf.model_card import ModelCard
from app.models.instance import ModelInstance
from app.proxy.dialects.ollama.number_format import NS, never, parameter_size, quantization, timestamp
from app.proxy.dialects.ollama.tagged_names import tagged

Body = dict[str, Any]


def available(
    instances: Iterable[ModelInstance], cards: Mapping[str, ModelCard], *, with_aliases: bool
) -> list[Body]:
    """Entries of `/api/tags`, the newest file first; other names are models of their own there."""
    found: list[Body] = []
    for instance in instances:
        spec = instance.spec
        names, of_file = [spec.alias], _file(spec, cards.get(spec.alias))
        if with_aliases:
            names += spec.aliases
        found += [_named(tagged(name)) | of_file for name in names]
    return sorted(found, key=lambda entry: entry["modified_at"], reverse=True)


def running(instances: Iterable[ModelInstance], cards: Mapping[str, ModelCard]) -> list[Body]:
    """Entries of `/api/ps`: what is loaded, first what stays longest."""
    now_ns, loop_now = time.time_ns(), time.monotonic()
    found = []
    for instance in instances:
        if instance.serves:
            spec, card, view = instance.spec, cards.get(instance.alias), instance.view()
            found.append(_named(tagged(spec.alias)) | {
                **_memory(view),
                "digest": _digest(spec, card),
                "details": details(card),
                "expires_at": _expires_at(view, now_ns, loop_now),
                "context_length": context_length(spec, card),
            })  # fmt: skip
    return sorted(found, key=lambda entry: entry["expires_at"], reverse=True)


def details(card: ModelCard | None) -> Body:
    """The six that stand everywhere."""
    family = card.architecture if card is not None else ""
    return {
        "parent_model": "",
        "format": "gguf",
        "family": family,
        "families": [family] if family else [],
        "parameter_size": parameter_size(card.n_params) if card is not None else "",
        "quantization_level": quantization(card.ftype if card is not None else None),
    }


def modified_at(card: ModelCard | None) -> str:
    return timestamp(card.file.modified_ns if card is not None else 0)


def _named(name: str) -> Body:
    return {"name": name, "model": name}


def _file(spec: ModelSpec, card: ModelCard | None) -> Body:
    lengths = {
        "context_length": card.n_ctx_train if card is not None else 0,
        "embedding_length": card.n_embd if card is not None else 0,
    }
    return {
        "modified_at": modified_at(card),
        "size": card.file_size if card is not None else 0,
        "digest": _digest(spec, card),
        "details": details(card) | lengths,
        "capabilities": capabilities(spec, card),
    }


def _digest(spec: ModelSpec, card: ModelCard | None) -> str:
    """Of the file, of how it is run, and of the entry: programs take names of one digest for one model.

    A file that cannot be read is told by its path.
    """
    of_file = card.file.digest if card is not None else str(spec.path)
    return hashlib.sha256(f"{spec.alias} {of_file} {spec.params!r} {spec.extra_args}".encode()).hexdigest()


def _memory(view: ModelView) -> Body:
    process = view.process
    vram_mb = view.vram_mb or 0
    host_mb = process.host_mb if process is not None else 0
    return {"size": (vram_mb + host_mb) * MIB, "size_vram": vram_mb * MIB}


def _expires_at(view: ModelView, now_ns: int, loop_now: float) -> str:
    """If nobody asks for it any more."""
    if view.idle_timeout_s is None:
        return never(now_ns)
    idle_s = 0.0 if view.in_flight else loop_now - view.last_used
    return timestamp(now_ns + int((view.idle_timeout_s - idle_s) * NS))
