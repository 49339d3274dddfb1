"""An answer of each endpoint, for `/openapi.json`."""

from __future__ import annotations

from typing import Any

_MODEL = {
    "id": "qwen",
    "object": "model",
    "owned_by": "user",
    "context_length": 8192,
    "capabilities": ["completion", "tools"],
    "aliases": [],
    "state": "ready",
}
_MODELS = {"object": "list", "data": [_MODEL]}
_STATUS = {
    "model": "qwen",
    "status": "ready",
    "port": 8085,
    "vram_mb": 5120,
    "queue_depth": 0,
    "in_flight": 1,
}
_ALL = {
    "server": {"status": "ready", "uptime_seconds": 12.5},
    "models": {"qwen": _STATUS},
    "summary": {"ready": 1},
}
_CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "qwen",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello!"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
}
_RERANK = {"model": "rerank", "results": [{"index": 0, "relevance_score": 0.9}]}
_LOADED = {"success": True}
_RESPONSE = {"object": "response", "status": "completed", "model": "qwen", "output": []}
_DETAILS = {
    "parent_model": "",
    "format": "gguf",
    "family": "qwen3",
    "families": ["qwen3"],
    "parameter_size": "8.2B",
    "quantization_level": "Q4_K_M",
}
_ENTRY = {"name": "qwen:latest", "model": "qwen:latest", "size": 5027783488, "details": _DETAILS}
_JSON = "application/json"
_EVENTS = "text/event-stream"

EXAMPLES: dict[str, tuple[str, Any]] = {
    "/v1/chat/completions": (_JSON, _CHAT),
    "/v1/chat/completions/input_tokens": (_JSON, {"input_tokens": 9}),
    "/v1/responses/input_tokens": (_JSON, {"input_tokens": 9}),
    "/v1/audio/transcriptions": (_JSON, {"text": "Hello!"}),
    "/completion": (_JSON, {"content": "Hello!", "stop": True}),
    "/embedding": (_JSON, [{"index": 0, "embedding": [[0.1, -0.2]]}]),
    "/reranking": (_JSON, _RERANK),
    "/v1/reranking": (_JSON, _RERANK),
    "/v1/completions": (
        _JSON,
        {"object": "text_completion", "model": "qwen", "choices": [{"text": " upon"}]},
    ),
    "/v1/responses": (_JSON, _RESPONSE),
    "/v1/responses/{response_id}": (_JSON, _RESPONSE),
    "/v1/responses/{response_id}/input_items": (_JSON, {"object": "list", "data": [], "has_more": False}),
    "/v1/messages": (
        _JSON,
        {"type": "message", "role": "assistant", "content": [{"type": "text", "text": "Hello!"}]},
    ),
    "/v1/messages/count_tokens": (_JSON, {"input_tokens": 9}),
    "/v1/embeddings": (_JSON, {"object": "list", "data": [{"index": 0, "embedding": [0.1, -0.2]}]}),
    "/v1/rerank": (_JSON, _RERANK),
    "/rerank": (_JSON, _RERANK),
    "/infill": (_JSON, {"content": "c"}),
    "/tokenize": (_JSON, {"tokens": [1, 2]}),
    "/detokenize": (_JSON, {"content": "Hello"}),
    "/apply-template": (_JSON, {"prompt": "<|user|>Hello"}),
    "/upstream/{target}": (_JSON, {"whatever": "llama-server answers"}),
    "/v1/models": (_JSON, _MODELS),
    "/props": (_JSON, {"model_alias": "qwen", "total_slots": 1}),
    "/slots": (_JSON, [{"id": 0, "is_processing": False}]),
    "/lora-adapters": (_JSON, [{"id": 0, "path": "style.gguf", "scale": 1.0}]),
    "/models/sse": (
        _EVENTS,
        'data: {"model": "qwen", "event": "model_status", "data": {"status": "loaded"}}\n\n',
    ),
    "/v1/models/{alias}": (_JSON, _MODEL),
    "/v1/models/load": (_JSON, _STATUS),
    "/v1/models/eject": (
        _JSON,
        {"status": "success", "model_ejected": "qwen", "message": "qwen has been stopped"},
    ),
    "/models/load": (_JSON, _LOADED),
    "/models/unload": (_JSON, _LOADED),
    "/v1/models/failed": (
        _JSON,
        {"failed_models": [{"model": "qwen", "attempts": 3, "error": "why", "log_tail": []}]},
    ),
    "/v1/models/status": (_JSON, _ALL),
    "/v1/models/status/stream": (_EVENTS, 'event: full_status\ndata: {"summary": {"ready": 1}}\n\n'),
    "/v1/models/{alias}/reset": (_JSON, {"status": "success", "model": "qwen", "previous_error": "why"}),
    "/v1/models/{alias}/status": (_JSON, _STATUS),
    "/v1/models/{alias}/plan": (
        _JSON,
        {"fits": True, "devices": [{"index": 0, "need_mb": 5120, "free_mb": 9000}], "evicts": []},
    ),
    "/v1/models/{alias}/logs": ("text/plain", "main: server is listening\n"),
    "/health": (
        _JSON,
        {
            "status": "ok",
            "checks": {
                "gpu": {"status": "ok"},
                "manager": {"status": "ok"},
                "http_client": {"status": "ok"},
            },
        },
    ),
    "/metrics": ("text/plain", 'router_requests_total{model="qwen",status="success"} 1.0\n'),
    "/metrics/stream": (_EVENTS, 'event: metrics\ndata: {"timestamp": 1.0, "devices": [], "models": {}}\n\n'),
    "/vram": (_JSON, {"status": "healthy", "devices": [], "models": [], "can_load_more": True}),
    "/v1/queue/stats": (_JSON, {"summary": {"total_queued": 0, "total_processing": 1}, "per_model": {}}),
    "/v1/telemetry/summary": (_JSON, {"total_requests": 1, "success_count": 1, "error_count": 0}),
    "/v1/health/models": (_JSON, {"qwen": {"status": "healthy", "uptime_percentage": 100.0}}),
    "/session": (_JSON, {"key_needed": True, "logged_in": True, "name": "alice", "admin": True}),
    "/": ("text/html", "<!doctype html>"),
    "/api/chat": (_JSON, {"model": "qwen", "message": {"role": "assistant", "content": "Hi"}, "done": True}),
    "/api/generate": (_JSON, {"model": "qwen", "response": "Hi", "done": True, "done_reason": "stop"}),
    "/api/embed": (_JSON, {"model": "embed", "embeddings": [[0.6, 0.8]]}),
    "/api/embeddings": (_JSON, {"embedding": [0.6, 0.8]}),
    "/api/version": (_JSON, {"version": "0.33.0"}),
    "/api/status": (_JSON, {"cloud": {"disabled": True, "source": "env"}}),
    "/api/tags": (_JSON, {"models": [_ENTRY | {"capabilities": ["completion", "tools"]}]}),
    "/api/ps": (_JSON, {"models": [_ENTRY | {"size_vram": 5452595200, "context_length": 8192}]}),
    "/api/show": (_JSON, {"details": _DETAILS, "model_info": {"general.architecture": "qwen3"}}),
    **dict.fromkeys(
        (
            *("/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete", "/api/blobs/{digest}"),
            *("/api/me", "/api/signout"),
        ),
        (_JSON, {}),
    ),
}
