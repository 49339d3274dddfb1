"""A response with all that its schema requires: llama-server's fields in a frame of the request's. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json

from app.proxy.dialects.json_pieces import written
from app.proxy.dialects.responses.items import Item

Body = dict[str, Any]

_ECHOED: Body = {
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "safety_identifier": None,
    "service_tier": "default",
    "temperature": None,
    "tool_choice": "auto",
    "top_logprobs": 0,
    "top_p": None,
    "truncation": "disabled",
    "user": None,
}
"""What an answer says of its request, with what is said where that is silent."""

MOST_ECHOED = 131072
"""Bytes of the request that are told once more, by every response and by three events of a stream: with 60 MB
of instructions each would have as many."""

CONTEXT_STEP = 256
"""llama-server rounds a context up to a multiple of this."""


def echoed(fields: Mapping[str, Any]) -> Body:
    """What of a long request is told once more: as much as there is room for."""
    left, kept = MOST_ECHOED, {}
    for name in ("reasoning", "text", *_ECHOED, "tools"):
        size = len(written(fields[name], to_json)) if name in fields else 0
        if name in fields and size <= left:
            left -= size
            kept[name] = fields[name]
    return kept


class Frame:
    """What is known of a response before llama-server says a word."""

    def __init__(
        self, fields: Mapping[str, Any], model: str, context: int, now: float, *, stored: bool
    ) -> None:
        """`context`: tokens that prompt and answer may have together."""
        self._context = -(-context // CONTEXT_STEP) * CONTEXT_STEP
        self._most_output: object = fields.get("max_output_tokens")
        reasoning = fields.get("reasoning", {})
        self._body: Body = {
            "object": "response",
            "created_at": int(now),
            "background": False,
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            "model": model,
            "output": [],
            "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
            "store": stored,
            "text": {"format": {"type": "text"}, **_without_null(fields.get("text", {}))},
            "tools": [_tool(tool) for tool in fields.get("tools", ())],
            "usage": None,
            **{name: fields.get(name, default) for name, default in _ECHOED.items()},
        }

    def begun(self, told: Mapping[str, Any]) -> Body:
        """`told`: what llama-server says of it."""
        return {**self._body, **told, "created_at": self._body["created_at"], "status": "in_progress"}

    def finished(self, told: Mapping[str, Any], output: list[Item]) -> Body:
        usage = _usage(told.get("usage"))
        body = {**self.begun(told), "output": output, "usage": usage, "status": "completed"}
        if not self._is_cut(usage):
            return {**body, "completed_at": told.get("completed_at", told.get("created_at"))}
        if output:
            output[-1] = {**output[-1], "status": "incomplete"}
        reason = {"reason": "max_output_tokens"}
        return {**body, "status": "incomplete", "completed_at": None, "incomplete_details": reason}

    def failed(self, told: Mapping[str, Any], output: list[Item], message: str) -> Body:
        error = {"code": "server_error", "message": message}
        return {**self.begun(told), "status": "failed", "error": error, "output": output}

    def _is_cut(self, usage: Mapping[str, Any]) -> bool:
        """llama-server does not say so here, but tokens up to a limit are no end of one's own."""
        made, limit = usage["output_tokens"], self._most_output
        is_full: bool = usage["total_tokens"] >= self._context
        return is_full or (isinstance(limit, int) and made >= limit > 0)


def whole_item(item: Mapping[str, Any], status: str = "completed") -> Item:
    """An item of the output with all its fields."""
    item = {"status": status, **item}
    if item.get("type") == "message":
        return {**item, "content": [whole_part(part) for part in item.get("content", ())]}
    return item


def whole_part(part: Mapping[str, Any]) -> Body:
    if part.get("type") == "output_text":
        return {"annotations": [], "logprobs": [], **part}
    return dict(part)


def _without_null(fields: Mapping[str, Any]) -> Body:
    return {name: value for name, value in fields.items() if value is not None}


def _usage(told: object) -> Body:
    usage = told if isinstance(told, dict) else {}
    read, made = usage.get("input_tokens", 0), usage.get("output_tokens", 0)
    return {
        "total_tokens": read + made,
        **usage,
        "input_tokens": read,
        "input_tokens_details": {
            "cached_tokens": 0,
            "cache_write_tokens": 0,
            **usage.get("input_tokens_details", {}),
        },
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": 0, **usage.get("output_tokens_details", {})},
    }


def _tool(tool: object) -> object:
    """A function says whether it is strict; llama-server takes it for strict where it does not."""
    if isinstance(tool, dict) and tool.get("type") == "function":
        return {"description": None, "parameters": None, "strict": True, **tool}
    return tool
