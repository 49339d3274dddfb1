"""Entries of `/v1/models`: what programs read before they send anything.

Each field is there because some look for it: OpenAI's, llama-server's `meta` and `architecture`, `root` and
`max_model_len` as vLLM has them, `context_length` as others do.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from app.api.render import router_mode_status
from app.domain.spec import ModelSpec
from app.domain.status import ModelKind
from app.gguf.card import ModelCard
from app.models.instance import ModelInstance


class Started(Protocol):
    """What knows when the router was started, on the monotonic clock."""

    @property
    def started_at(self) -> float: ...


def entry(instance: ModelInstance, card: ModelCard | None, router: Started) -> dict[str, Any]:
    """One model; `status` is that of llama-server's router mode."""
    spec, n_ctx = instance.spec, context_length(instance.spec, card)
    modalities = _input_modalities(spec, card)
    return {
        "id": spec.alias,
        "object": "model",
        "created": int(time.time() - (time.monotonic() - router.started_at)),
        "owned_by": "user",
        "root": spec.alias,
        "parent": None,
        "n_ctx": n_ctx,
        "context_length": n_ctx,
        "max_model_len": n_ctx,
        "aliases": list(spec.aliases),
        "tags": [],
        "kind": spec.kind.value,
        "capabilities": capabilities(spec, card),
        "input_modalities": modalities,
        "architecture": {"input_modalities": modalities, "output_modalities": [_OUTPUT[spec.kind]]},
        "state": instance.status.public,
        "status": router_mode_status(instance),
        "meta": None if card is None else _meta(card, n_ctx),
    } | ({} if card is None else {"n_ctx_train": card.n_ctx_train})


def entries(
    instances: Iterable[ModelInstance],
    cards: Mapping[str, ModelCard],
    router: Started,
    *,
    with_aliases: bool,
) -> list[dict[str, Any]]:
    """Of all models; with their other names after them, for programs that choose from this list."""
    found = []
    for instance in instances:
        own = entry(instance, cards.get(instance.alias), router)
        found.append(own)
        if with_aliases:
            found += [own | {"id": name, "parent": instance.alias} for name in instance.spec.aliases]
    return found


_OUTPUT = {ModelKind.CHAT: "text", ModelKind.EMBEDDING: "embeddings", ModelKind.RERANK: "scores"}
_FIRST = {ModelKind.CHAT: "completion", ModelKind.EMBEDDING: "embedding", ModelKind.RERANK: "rerank"}


def context_length(spec: ModelSpec, card: ModelCard | None) -> int:
    """Tokens that one request may use: llama-server gives no more than a model was trained for."""
    trained = card.n_ctx_train if card is not None else 0
    return min(spec.params.n_ctx, trained) if trained else spec.params.n_ctx


def capabilities(spec: ModelSpec, card: ModelCard | None) -> list[str]:
    found = [_FIRST[spec.kind]]
    if card is not None and spec.kind is ModelKind.CHAT:
        able = {
            "tools": card.tools,
            "thinking": card.thinking,
            "insert": card.infill,
            "vision": card.vision,
            "audio": card.audio,
        }
        found += [name for name, has in able.items() if has]
    return found


def _input_modalities(spec: ModelSpec, card: ModelCard | None) -> list[str]:
    if card is None or spec.kind is not ModelKind.CHAT:
        return ["text"]
    return ["text", *(["image"] if card.vision else []), *(["audio"] if card.audio else [])]


def _meta(card: ModelCard, n_ctx: int) -> dict[str, Any]:
    return {
        "vocab_type": card.vocab_type,
        "n_vocab": card.n_vocab,
        "n_ctx": n_ctx,
        "n_ctx_train": card.n_ctx_train,
        "n_embd": card.n_embd,
        "n_params": card.n_params,
        "size": card.size,
        "ftype": card.ftype,
    }
