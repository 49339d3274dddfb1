"""`/api/embed`, and `/api/embeddings` from before. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from app.domain.errors import BadRequest
from app.proxy.dialects.ollama import common_fields, options
from app.proxy.dialects.ollama.answer_lines import ConstantTranslator, waited
from app.proxy.dialects.ollama.chat_and_generate import loaded
from app.proxy.dialects.ollama.input_limit import InputLimit
from app.proxy.dialects.ollama.ollama_errors import no_model, wrong_type
from app.proxy.dialects.translation_interface import Asked, Incoming, Times, Told

Fields = dict[str, Any]
Vector = Sequence[float]


class EmbedTranslation:
    """`/api/embed`."""

    edits = True

    def fields(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        return common_fields.named({**common_fields.normal(given), "stream": False}, no_model(""), "truncate")

    def size(self, incoming: Incoming) -> int:
        return len(incoming.body)

    def ask(self, incoming: Incoming) -> Asked | Told:
        fields = incoming.fields
        limit = _limit(incoming)
        texts, dimensions = _inputs(fields.get("input", [])), fields.get("dimensions", 0)
        if isinstance(dimensions, bool) or not isinstance(dimensions, int):
            raise wrong_type("dimensions", "a whole number")
        name = fields["asked_model"]
        if not texts:
            return loaded(incoming, lambda _: {"model": name, "embeddings": []})
        return _asked(incoming, texts, limit, partial(_embedded, name, dimensions))


class EmbeddingsTranslation(EmbedTranslation):
    """`/api/embeddings`: of one text, and nothing but its vector."""

    def fields(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        missing = BadRequest("model is required", param="model")
        return common_fields.named(
            {**common_fields.normal(given), "stream": False, "truncate": True}, missing
        )

    def ask(self, incoming: Incoming) -> Asked | Told:
        prompt, limit = common_fields.text(incoming.fields, "prompt"), _limit(incoming)
        if not prompt:
            return loaded(incoming, lambda _: {"embedding": []})
        return _asked(incoming, [prompt], limit, _embedded_alone)


def _inputs(given: object) -> list[str]:
    if isinstance(given, str):
        return [given] if given else []
    if isinstance(given, list) and all(isinstance(text, str) for text in given):
        return given
    raise BadRequest("invalid input type", param="input")


def _limit(incoming: Incoming) -> int | None:
    """Tokens that a text may have, where fewer are asked for than the model takes."""
    context, given = incoming.spec.params.n_ctx, incoming.fields.get("options")
    wanted = options.read(given, context).context
    return wanted if wanted is not None and wanted < context else None


def _asked(incoming: Incoming, texts: list[str], limit: int | None, made: Any) -> Asked:
    cuts = incoming.fields.get("truncate") is not False
    inputs = InputLimit(incoming.spec.alias, partial(ConstantTranslator, made), cuts=cuts)
    return inputs.asked(texts, limit, len(incoming.body))


def _embedded(name: str, dimensions: int, told: Fields, times: Times) -> Fields:
    vectors = [_cut(vector, dimensions) for vector in _vectors(told)]
    count = told.get("usage", {}).get("prompt_tokens", 0)
    return {"model": name, "embeddings": vectors, **waited(times), "prompt_eval_count": count}


def _embedded_alone(told: Fields, _times: Times) -> Fields:
    vectors = _vectors(told)
    return {"embedding": vectors[0] if vectors else []}


def _vectors(told: Fields) -> list[Vector]:
    found = [entry for entry in told.get("data", ()) if isinstance(entry, dict)]
    return [entry.get("embedding", []) for entry in sorted(found, key=lambda entry: entry.get("index", 0))]


def _cut(vector: Vector, dimensions: int) -> Vector:
    """The first ones, of length 1 again."""
    if not 0 < dimensions < len(vector):
        return vector
    kept = vector[:dimensions]
    length = math.hypot(*kept) or 1.0
    return [number / length for number in kept]
