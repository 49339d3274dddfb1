"""What is wrong with a request, with the status that Ollama has for it. Pure."""

from __future__ import annotations

from app.domain.errors import BadRequest, ModelNotFound


class OddRequest(BadRequest):
    """Told with 500 there."""

    status = 500


def no_model(name: str) -> ModelNotFound:
    return ModelNotFound(f"model {name!r} not found; GET /api/tags lists the models", param="model")


def not_able(name: object, ability: str) -> BadRequest:
    return BadRequest(f'"{name}" does not support {ability}')


def wrong_type(field: str, wanted: str) -> BadRequest:
    return BadRequest(f"'{field}' must be {wanted}", param=field)
