"""A request that names which tools its answer may call: llama-server knows the words auto, none and required,
and takes anything else for auto. Fewer tools say the same. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from app.domain.errors import BadRequest
from app.proxy.dialects.json_pieces import text_of
from app.proxy.dialects.translation_interface import Asked, Incoming

Fields = dict[str, Any]

REQUIRED = "required"
"""The answer has to be a call."""


def only(tools: object, chosen: Iterable[object]) -> list[Any]:
    """Those of `tools` that have the name of a chosen one. Raises `BadRequest` where there is none."""
    names = {_name(tool) for tool in chosen} - {""}
    kept = [tool for tool in tools if _name(tool) in names] if isinstance(tools, list) else []
    if not kept:
        raise BadRequest("'tool_choice' names no function of 'tools'", param="tool_choice")
    return kept


def _name(tool: object) -> str:
    """As Responses and Anthropic have it, or as chat completions; empty where it has none."""
    about = tool.get("function", tool) if isinstance(tool, dict) else None
    name = about.get("name") if isinstance(about, dict) else None
    return name if isinstance(name, str) else ""


class NamedToolsTranslation:
    """Chat completions. All other bodies pass as they are, and so do all answers."""

    edits = False

    def fields(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        return given

    def leaves_alone(self, fields: Mapping[str, Any]) -> bool:
        choice = fields.get("tool_choice")
        return choice is None or isinstance(choice, str)

    def size(self, incoming: Incoming) -> int:
        return len(incoming.body)

    def ask(self, incoming: Incoming) -> Asked:
        fields = incoming.all_fields()
        found = _as_named(fields)
        body = incoming.body if found is None else text_of({**fields, **found}, len(incoming.body))
        return Asked(body, incoming.stream)


def _as_named(fields: Mapping[str, Any]) -> Fields | None:
    """None: it names nothing."""
    choice = fields.get("tool_choice")
    if not isinstance(choice, dict):
        return None
    allowed = choice.get("allowed_tools")
    if choice.get("type") == "allowed_tools" and isinstance(allowed, dict):
        chosen = allowed.get("tools")
        kept = only(fields.get("tools"), chosen if isinstance(chosen, list) else ())
        return {"tools": kept, "tool_choice": allowed.get("mode", "auto")}
    if choice.get("type") == "function":
        return {"tools": only(fields.get("tools"), [choice]), "tool_choice": REQUIRED}
    return None
