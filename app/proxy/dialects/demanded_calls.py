"""What chat completions have to call. Pure.

llama-server knows the words auto, none and required, and takes a choice that names tools for auto: fewer
tools say the same. And it calls nothing where the model's template knows no tools: there an answer that obeys
the schema of the only tool is the call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from app.domain.errors import BadRequest
from app.gguf.model_card import ModelCard
from app.proxy.dialects.json_pieces import text_of
from app.proxy.dialects.text_as_call import TextAsCall
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


class DemandedCalls:
    """Of chat completions. All other bodies pass as they are, and their answers, too."""

    edits = False

    def __init__(self, card_of: Callable[[str], ModelCard | None]) -> None:
        """`card_of`: what is known of a model's file, by its alias."""
        self._card_of = card_of

    def fields(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        return given

    def leaves_alone(self, fields: Mapping[str, Any]) -> bool:
        choice = fields.get("tool_choice")
        return choice is None or (isinstance(choice, str) and choice != REQUIRED)

    def size(self, incoming: Incoming) -> int:
        return 0 if self._is_obeyed(incoming) else len(incoming.body)

    def ask(self, incoming: Incoming) -> Asked:
        if self._is_obeyed(incoming):
            return Asked(incoming.body, incoming.stream)
        given = incoming.all_fields()
        found = _as_named(given)
        fields = {**given, **(found or {})}
        tool = _only_one(fields) if self._knows_no_tools(incoming) else None
        if tool is not None:
            text = text_of(_by_schema(fields, tool), len(incoming.body))
            return Asked(text, incoming.stream, partial(TextAsCall, _name(tool)))
        body = incoming.body if found is None else text_of(fields, len(incoming.body))
        return Asked(body, incoming.stream)

    def _is_obeyed(self, incoming: Incoming) -> bool:
        """By llama-server."""
        return incoming.fields.get("tool_choice") == REQUIRED and not self._knows_no_tools(incoming)

    def _knows_no_tools(self, incoming: Incoming) -> bool:
        card = self._card_of(incoming.spec.alias)
        return card is not None and not card.tools


def _only_one(fields: Mapping[str, Any]) -> Fields | None:
    """The only function that there is, where one has to be called."""
    tools = fields.get("tools")
    if fields.get("tool_choice") != REQUIRED or not isinstance(tools, list) or len(tools) != 1:
        return None
    return tools[0] if _name(tools[0]) and isinstance(tools[0].get("function"), dict) else None


def _by_schema(fields: Fields, tool: Fields) -> Fields:
    """Asks for what it is called with."""
    schema = tool["function"].get("parameters") or {"type": "object"}
    obeys = {"type": "json_schema", "json_schema": {"schema": schema}}
    rest = {name: value for name, value in fields.items() if name not in _OF_CALLS}
    return {**rest, "response_format": obeys}


_OF_CALLS = frozenset({"tools", "tool_choice", "parallel_tool_calls"})


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
