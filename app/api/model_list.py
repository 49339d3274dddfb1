"""Entries of `/v1/models`: what programs read before they send anything.

Each field is there because some look for it: OpenAI's and Anthropic's, llama-server's `meta` and
`architecture`, `root` and `max_model_len` as vLLM has them, `context_length` as others do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import Any

from app.api.model_json import router_mode_status
from app.domain.model_spec import ModelSpec
from app.domain.status import ModelKind
from app.gguf.model_card import ModelCard
from app.models.instance import ModelInstance


def entry(instance: ModelInstance, card: ModelCard | None, created: int) -> dict[str, Any]:
    """One model; `status` is that of llama-server's router mode. `created`: Unix seconds."""
    spec, n_ctx = instance.spec, context_length(instance.spec, card)
    modalities = _input_modalities(spec, card)
    return {
        "id": spec.alias,
        "object": "model",
        "created": created,
        "owned_by": "user",
        **_as_anthropic(spec.alias, created, n_ctx),
        "root": spec.alias,
        "parent": None,
        "n_ctx": n_ctx,
        "context_length": n_ctx,
        "max_model_len": n_ctx,
        "aliases": list(spec.aliases),
        "tags": [] if card is None else list(card.tags),
        "kind": spec.kind.value,
        "capabilities": capabilities(spec, card),
        "input_modalities": modalities,
        "architecture": {"input_modalities": modalities, "output_modalities": [_OUTPUT[spec.kind]]},
        "state": instance.status.public,
        "status": router_mode_status(instance),
        "meta": None if card is None else _meta(card, n_ctx),
    } | ({} if card is None else {"n_ctx_train": card.n_ctx_train})


def listed(
    instances: Iterable[ModelInstance],
    cards: Mapping[str, ModelCard],
    created: int,
    *,
    with_aliases: bool,
) -> dict[str, Any]:
    """All models; with their other names after them, for programs that choose from this list. It is the only
    page, as Anthropic's clients are told."""
    found = []
    for instance in instances:
        own = entry(instance, cards.get(instance.alias), created)
        found.append(own)
        if with_aliases:
            found += [renamed(own, name) for name in instance.spec.aliases]
    names = [model["id"] for model in found] or [None]
    return {
        "object": "list",
        "data": found,
        "has_more": False,
        "first_id": names[0],
        "last_id": names[-1],
    }


def renamed(own: dict[str, Any], name: str) -> dict[str, Any]:
    """The entry of another name of the same model."""
    return own | {"id": name, "display_name": name, "parent": own["id"]}


def _as_anthropic(name: str, created: int, n_ctx: int) -> dict[str, Any]:
    return {
        "type": "model",
        "display_name": name,
        "created_at": datetime.fromtimestamp(created, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        "max_input_tokens": n_ctx,
    }


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
