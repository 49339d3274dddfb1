"""A conversation in OpenAI's words, as llama-server wants it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json

from app.domain.errors import BadRequest
from app.proxy.dialects.json_pieces import written
from app.proxy.dialects.ollama.images import data_url, images

Message = dict[str, Any]


def messages(given: object) -> list[Message]:
    """Of a request's field. Raises `BadRequest` with the place of what is wrong."""
    if not isinstance(given, list):
        raise BadRequest("'messages' must be a list", param="messages")
    calls: dict[str, str] = {}
    return [_message(message, f"messages[{place}]", calls) for place, message in enumerate(given)]


def said(role: str, content: str, pictures: list[str] | None = None) -> Message:
    if not pictures:
        return {"role": role, "content": content}
    shown = [{"type": "image_url", "image_url": {"url": data_url(picture)}} for picture in pictures]
    return {"role": role, "content": [*shown, {"type": "text", "text": content}]}


_TEXTS = ("role", "content", "thinking", "tool_name", "tool_call_id")


def _message(given: object, where: str, calls: dict[str, str]) -> Message:
    """`calls`: ids by the name of the function that was called last, which answers do not repeat."""
    if not isinstance(given, dict | None):
        raise BadRequest(f"{where} must be an object", param=where)
    given = {name.lower(): value for name, value in (given or {}).items() if value is not None}
    for name in _TEXTS:
        if not isinstance(given.get(name, ""), str):
            raise BadRequest(f"{where}.{name} must be a text", param=f"{where}.{name}")
    role, content = given.get("role", ""), given.get("content", "")
    role = role.lower() or "user"
    told = said(role, content, images(given.get("images"), f"{where}.images"))
    if given.get("thinking"):
        told["reasoning_content"] = given["thinking"]
    if given.get("tool_calls"):
        told["tool_calls"] = _calls(given["tool_calls"], f"{where}.tool_calls", calls)
    if role == "tool":
        told |= _answer_of_tool(given, calls)
    return told


def _calls(given: object, where: str, calls: dict[str, str]) -> list[Message]:
    if not isinstance(given, list):
        raise BadRequest(f"{where} must be a list", param=where)
    return [_call(call, f"{where}[{place}]", calls) for place, call in enumerate(given)]


def _call(given: object, where: str, calls: dict[str, str]) -> Message:
    function = given.get("function") if isinstance(given, dict) else None
    name = function.get("name", "") if isinstance(function, dict) else None
    arguments = function.get("arguments", {}) if isinstance(function, dict) else None
    if not isinstance(given, dict) or not isinstance(name, str) or not isinstance(arguments, dict):
        raise BadRequest(f"{where} must have a function with a name, and arguments as an object", param=where)
    id_ = given.get("id") or f"call_{len(calls)}_{name}"
    calls[name] = str(id_)
    function = {"name": name, "arguments": written(arguments, to_json).decode()}
    return {"id": calls[name], "type": "function", "function": function}


def _answer_of_tool(given: Mapping[str, Any], calls: Mapping[str, str]) -> Message:
    name = given.get("tool_name") or given.get("name")
    last = [*calls.values()][-1] if calls else "call"
    told: Message = {"tool_call_id": given.get("tool_call_id") or calls.get(str(name), last)}
    return told | ({"name": name} if isinstance(name, str) else {})
