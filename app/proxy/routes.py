"""Which paths go to a model, and what is meant by a path that is written otherwise. Pure.

One table for both entrances. The paths of OpenAI's and Anthropic's APIs have their answers, with and without
`/v1`; llama-server's own paths have llama-server's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.domain.model_names import alike
from app.domain.status import ModelKind

TUNNEL = "/upstream/"
"""What follows it is an alias and any path of that model's llama-server."""

TUNNEL_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")


def is_tunnel(method: str, path: str) -> bool:
    """`path` is decoded; one with a line break in it is none."""
    return path.startswith(TUNNEL) and method in TUNNEL_METHODS and "\n" not in path


_ANY_KIND = frozenset(ModelKind)
_CHAT = frozenset({ModelKind.CHAT})
_EMBEDDING = frozenset({ModelKind.EMBEDDING})
_RERANK = frozenset({ModelKind.RERANK})


@dataclass(frozen=True)
class Endpoint:
    """A path whose requests go to the model that their body names."""

    path: str
    kinds: frozenset[ModelKind]
    summary: str
    example: dict[str, Any]
    is_upload: bool = False
    """Its body is a form with files, not JSON."""
    any_type: bool = False
    """Its body is JSON whatever its `Content-Type` says: programs of that API do not set it."""
    wrong_kind_status: int = 400
    """Where the model is of another kind."""


_CHAT_BODY = {"model": "qwen", "messages": [{"role": "user", "content": "Hello"}]}
_INPUT_BODY = {"model": "qwen", "input": "Hello"}
_PROMPT_BODY = {"model": "qwen", "prompt": "Once"}
_INFILL_BODY = {"model": "qwen", "input_prefix": "a", "input_suffix": "b"}
_RERANK_BODY = {"model": "rerank", "query": "q", "documents": ["d"]}

ENDPOINTS = (
    Endpoint("/v1/chat/completions", _CHAT, "Chat", _CHAT_BODY),
    Endpoint("/v1/chat/completions/input_tokens", _CHAT, "Count a prompt's tokens", _CHAT_BODY),
    Endpoint("/v1/completions", _CHAT, "Text completion", _PROMPT_BODY),
    Endpoint("/v1/responses", _CHAT, "OpenAI's Responses API", _INPUT_BODY),
    Endpoint("/v1/responses/input_tokens", _CHAT, "Count an input's tokens", _INPUT_BODY),
    Endpoint("/v1/messages", _CHAT, "Anthropic's Messages API", _CHAT_BODY),
    Endpoint("/v1/messages/count_tokens", _CHAT, "Count a prompt's tokens", _CHAT_BODY),
    Endpoint("/v1/embeddings", _EMBEDDING, "Embeddings", {"model": "embed", "input": "Hello"}),
    Endpoint("/v1/rerank", _RERANK, "Rerank documents", _RERANK_BODY),
    Endpoint("/v1/reranking", _RERANK, "As /v1/rerank", _RERANK_BODY),
    Endpoint("/rerank", _RERANK, "As /v1/rerank", _RERANK_BODY),
    Endpoint("/reranking", _RERANK, "As /v1/rerank", _RERANK_BODY),
    Endpoint(
        "/v1/audio/transcriptions", _CHAT, "Text of a recording", {"model": "qwen", "file": "@a.wav"}, True
    ),
    Endpoint("/completion", _CHAT, "llama-server's own text completion", _PROMPT_BODY),
    Endpoint("/embedding", _EMBEDDING, "llama-server's own embeddings", {"model": "embed", "content": "a"}),
    Endpoint("/infill", _CHAT, "Fill in the middle", _INFILL_BODY),
    Endpoint("/tokenize", _ANY_KIND, "Tokens of a text", {"model": "qwen", "content": "Hello"}),
    Endpoint("/detokenize", _ANY_KIND, "Text of tokens", {"model": "qwen", "tokens": [1, 2]}),
    Endpoint("/apply-template", _CHAT, "The prompt of a chat", _CHAT_BODY),
    Endpoint("/api/chat", _CHAT, "Ollama's chat", _CHAT_BODY, any_type=True),
    Endpoint("/api/generate", _CHAT, "Ollama's text completion", _PROMPT_BODY, any_type=True),
    Endpoint(
        "/api/embed", _EMBEDDING, "Ollama's embeddings", _INPUT_BODY, any_type=True, wrong_kind_status=501
    ),
    Endpoint(
        "/api/embeddings",
        _EMBEDDING,
        "Ollama's older embeddings",
        {"model": "embed", "prompt": "Hello"},
        any_type=True,
        wrong_kind_status=500,
    ),
)


@dataclass(frozen=True)
class InfoPath:
    """A path of a loaded model's llama-server that tells something; the query names the model."""

    path: str
    summary: str
    admin: bool = False
    is_ours_without_model: bool = False


INFO_PATHS = (
    InfoPath("/props", "What llama-server says of a loaded model"),
    InfoPath("/slots", "What its slots are doing", admin=True),
    InfoPath("/lora-adapters", "Its LoRA adapters"),
    InfoPath("/metrics", "Its own metrics", is_ours_without_model=True),
)
INFO_BY_PATH: Mapping[str, InfoPath] = {info.path: info for info in INFO_PATHS}

# --- other spellings

_VERSION = "/v1"
_VERSIONED = frozenset({"audio", "chat", "completions", "embeddings", "messages", "models", "responses"})
"""Of what is under `/v1`, what programs also ask for without it: their base URL has none."""

_PEERS = frozenset({"/models/load", "/models/unload", "/models/sse"})
"""Of llama-server's router mode; beside them `/v1/models/...` says something else."""

_BARE = frozenset({
    "/apply-template", "/completion", "/detokenize", "/embedding", "/health", "/infill", "/tokenize",
    *INFO_BY_PATH,
})  # fmt: skip
"""Never under `/v1`: programs ask for them there, because their base URL has it."""

BY_PATH: Mapping[str, Endpoint] = {
    **{endpoint.path.removeprefix(_VERSION): endpoint for endpoint in ENDPOINTS},
    **{endpoint.path: endpoint for endpoint in ENDPOINTS},
}
"""Most of what is asked for is found here at once; `normal` knows the rest."""

_REPEATED = re.compile(r"\A(?:/v1)+(?=/v1/)")


def normal(path: str) -> str:
    """The path as the routes have it. What follows an alias in the tunnel stays as it is."""
    if not path.startswith("/"):
        return path
    path = "/" + path.lstrip("/")
    if path.startswith(TUNNEL):
        return path
    while "//" in path:
        path = path.replace("//", "/")
    path = path.rstrip("/") or "/"
    path = _REPEATED.sub("", path)
    if path.split("/", 2)[1] in _VERSIONED and path not in _PEERS:
        return _VERSION + path
    bare = path.removeprefix(_VERSION)
    return bare if bare in _BARE else path


def endpoint_of(path: str) -> Endpoint | None:
    """For a path in any spelling."""
    return BY_PATH.get(path) or BY_PATH.get(normal(path))


def group_of(path: str) -> str:
    """Paths that belong together: an endpoint's spellings, and all that begin with the same segment; under
    `/v1` and `/api`, with the same two."""
    if (endpoint := endpoint_of(path)) is not None:
        return endpoint.path
    segments = normal(path).split("/", 3)
    return "/".join(segments[: 3 if segments[1:2] in (["v1"], ["api"]) else 2])


def meant_by(path: str) -> str | None:
    """The known path that an unknown one looks like, such as `/v1/chat/completion`, or that stands at its
    end, such as `/api/v1/models`."""
    if near := alike(path[max(path.rfind("/v1/"), 0) :], _KNOWN, _MISSPELT):
        return normal(near[0])
    ends = [known for known in _KNOWN if path.endswith(known)]
    return normal(max(ends, key=len)) if ends else None


_LISTS = ("/v1/models", "/models", "/api/tags", "/api/ps", "/api/show", "/api/version")
"""What programs ask for first."""

_KNOWN = (*BY_PATH, *INFO_BY_PATH, *_LISTS)
_MISSPELT = 0.8
