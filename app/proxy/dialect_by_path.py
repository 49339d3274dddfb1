"""Which API is spoken at a path."""

from __future__ import annotations

from functools import lru_cache

from app.proxy.dialects.anthropic_errors import ANTHROPIC
from app.proxy.dialects.dialect import NATIVE, OPENAI, Dialect
from app.proxy.dialects.ollama.ollama_errors import OLLAMA
from app.proxy.dialects.responses.responses_errors import RESPONSES

_OPENAI_PATHS = frozenset({"chat", "completions", "embeddings", "models"})


@lru_cache(256)
def dialect_of(path: str) -> Dialect:
    """By the path that was asked for, with or without `/v1`, however many slashes there are."""
    parts = [*filter(None, path[:64].split("/")), "", ""]
    is_versioned = parts[0] == "v1"
    first = parts[1] if is_versioned else parts[0]
    if first == "messages":
        return ANTHROPIC
    if first == "responses":
        return RESPONSES
    if first == "api" and parts[1] != "v1":  # that is where others have OpenAI's
        return OLLAMA
    return OPENAI if is_versioned or first in _OPENAI_PATHS else NATIVE
