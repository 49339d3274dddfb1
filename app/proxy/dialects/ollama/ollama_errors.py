"""Errors of Ollama's API: their shape, and what is wrong with a request in its words and statuses. Pure."""

from __future__ import annotations

from typing import Any

from app.domain.config_types import Heartbeats
from app.domain.errors import BadRequest, ModelNotFound, RouterError
from app.proxy.dialects.dialect import Dialect
from app.proxy.dialects.sse_format import line

_STATUSES = {424: 500, 502: 500}
"""It knows no others for a model that cannot be loaded, or whose process is gone."""


_TOO_LONG = "the input length exceeds the context length"
"""Its clients look for these words."""


class _Ollama(Dialect):
    """Lines of JSON; a line that is none is a mistake to its clients, so nothing is sent while one waits."""

    stream_type = b"application/x-ndjson"
    json_type = b"application/json; charset=utf-8"

    def status(self, error: RouterError) -> int:
        return _STATUSES.get(error.status, error.status)

    def body(self, error: RouterError) -> dict[str, Any]:
        too_long = error.code == "context_length_exceeded"
        return {"error": f"{_TOO_LONG}: {error.message}" if too_long else error.message}

    def last_event(self, error: RouterError) -> bytes:
        return line(self.body(error))

    def heartbeat(self, kind: Heartbeats, text: str) -> bytes:
        return b""


OLLAMA = _Ollama()


class OddRequest(BadRequest):
    """Told with 500 there."""

    status = 500


def no_model(name: str) -> ModelNotFound:
    return ModelNotFound(f"model {name!r} not found; GET /api/tags lists the models", param="model")


def not_able(name: object, ability: str) -> BadRequest:
    return BadRequest(f'"{name}" does not support {ability}')


def wrong_type(field: str, wanted: str) -> BadRequest:
    return BadRequest(f"'{field}' must be {wanted}", param=field)
