"""What llama-server is asked in the place of a request to `/v1/responses`. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.domain.errors import BadRequest
from app.proxy.dialects.named_tools import REQUIRED, only
from app.proxy.dialects.responses.items import Item, for_llama_server

Fields = dict[str, Any]

_NOT_HERE = {
    "conversation": "conversations are not kept here; use previous_response_id",
    "prompt": "prompts are not kept here; send the text as 'instructions' and 'input'",
}
_NOT_ASKED = frozenset({"previous_response_id", "top_logprobs"})
"""llama-server refuses a request that has them. What else it does not know it ignores."""


def given(fields: Mapping[str, Any]) -> Fields:
    """Without what is null, which means the default. Raises `BadRequest` for what nothing here can do."""
    found = {name: value for name, value in fields.items() if value is not None}
    for name, instead in _NOT_HERE.items():
        if name in found:
            raise BadRequest(f"'{name}' is not supported: {instead}", param=name)
    if found.get("background"):
        raise BadRequest(
            "'background' is not supported: leave it out, and read the answer", param="background"
        )
    for name, kind in (("text", dict), ("reasoning", dict), ("tools", list)):
        if not isinstance(found.get(name, kind()), kind):
            what = "an object" if kind is dict else "a list"
            raise BadRequest(f"'{name}' must be {what}", param=name)
    return found


def as_asked(fields: Fields, items: list[Item] | None) -> Fields:
    """`items`: its whole input, what went before included; None: a text, as it is."""
    asked = {name: value for name, value in fields.items() if name not in _NOT_ASKED}
    if items is not None:
        asked["input"] = for_llama_server(items)
    if "reasoning" in asked:
        asked["reasoning"] = {name: v for name, v in asked["reasoning"].items() if v is not None}
    wanted = _format(fields.get("text", {}))
    asked |= _tools(fields)
    # What obeys a format is a text: llama-server would answer with one, whatever has to be called.
    has_to_call = asked.get("tool_choice") == REQUIRED and asked.get("tools")
    return asked if has_to_call else asked | wanted


def _format(text: Mapping[str, Any]) -> Fields:
    """In chat's words, which llama-server obeys."""
    wanted = text.get("format") or {}
    type_ = wanted.get("type", "text") if isinstance(wanted, dict) else None
    if type_ == "text":
        return {}
    if type_ == "json_object":
        return {"response_format": {"type": "json_object"}}
    if type_ != "json_schema" or not isinstance(wanted.get("schema"), dict):
        raise BadRequest(
            "'text.format' must be of the type text, json_object, or json_schema with a schema",
            param="text.format",
        )
    named = {name: value for name, value in wanted.items() if name != "type" and value is not None}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def _tools(fields: Fields) -> Fields:
    """llama-server knows the words auto, none and required: a choice of tools becomes fewer tools."""
    choice = fields.get("tool_choice")
    if not isinstance(choice, dict):
        return {}
    if choice.get("type") == "function":
        return {"tools": only(fields.get("tools"), [choice]), "tool_choice": REQUIRED}
    if choice.get("type") == "allowed_tools" and isinstance(choice.get("tools"), list):
        kept = only(fields.get("tools"), choice["tools"])
        return {"tools": kept, "tool_choice": choice.get("mode", "auto")}
    raise BadRequest(
        f"'tool_choice' of the type {str(choice.get('type'))[:80]!r} is not supported: only functions are",
        param="tool_choice",
    )
