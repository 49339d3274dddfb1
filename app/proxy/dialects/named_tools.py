"""A request that names which tools its answer may call: llama-server knows the words auto, none and required,
and takes anything else for auto. Fewer tools say the same. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from app.domain.errors import BadRequest

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
    """Empty where it has none."""
    name = tool.get("name") if isinstance(tool, dict) else None
    return name if isinstance(name, str) else ""
