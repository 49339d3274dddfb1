"""`/api/embed`, and `/api/embeddings` from before. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from app.domain.errors import BadRequest
from app.proxy.dialects.json_pieces import text_of
from app.proxy.dialects.ollama import common_fields, options, shortening
from app.proxy.dialects.ollama.answer_lines import ConstantTranslator, waited
from app.proxy.dialects.ollama.chat_and_generate import loaded
from app.proxy.dialects.ollama.ollama_errors import no_model, wrong_type
from app.proxy.dialects.translation_interface import Asked, Incoming, Times, Told

Fields = dict[str, Any]
Vector = Sequence[float]

EMBEDDINGS = "/v1/embeddings"
"""llama-server's."""


class EmbedTranslation:
    """`/api/embed`."""

    edits = True

    def fields(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        return common_fields.named({**common_fields.normal(given), "stream": False}, no_model(""), "truncate")

    def size(self, incoming: Incoming) -> int:
        return len(incoming.body)

    def ask(self, incoming: Incoming) -> Asked | Told:
        fields = incoming.fields
        options.read(fields.get("options"), incoming.spec.params.n_ctx)
        texts, dimensions = _inputs(fields.get("input", [])), fields.get("dimensions", 0)
        if isinstance(dimensions, bool) or not isinstance(dimensions, int):
            raise wrong_type("dimensions", "a whole number")
        name = fields["asked_model"]
        if not texts:
            return loaded(incoming, lambda _: {"model": name, "embeddings": []})
        return _asked(incoming, texts, partial(_embedded, name, dimensions))


class EmbeddingsTranslation(EmbedTranslation):
    """`/api/embeddings`: of one text, and nothing but its vector."""

    def ask(self, incoming: Incoming) -> Asked | Told:
        prompt = common_fields.text(incoming.fields, "prompt")
        options.read(incoming.fields.get("options"), incoming.spec.params.n_ctx)
        if not prompt:
            return loaded(incoming, lambda _: {"embedding": []})
        return _asked(incoming, [prompt], _embedded_alone)


def _inputs(given: object) -> list[str]:
    if isinstance(given, str):
        return [given] if given else []
    if isinstance(given, list) and all(isinstance(text, str) for text in given):
        return given
    raise BadRequest("invalid input type", param="input")


def _asked(incoming: Incoming, texts: list[str], made: Any) -> Asked:
    body: Fields = {"model": incoming.spec.alias, "input": texts, "encoding_format": "float"}
    again = None if incoming.fields.get("truncate") is False else shortening.of_inputs()
    translator = partial(ConstantTranslator, made)
    return Asked(text_of(body, len(incoming.body)), False, translator, EMBEDDINGS, again, keeps_ttl=True)


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
