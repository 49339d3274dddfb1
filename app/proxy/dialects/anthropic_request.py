"""A request to Anthropic's Messages API in the words of chat completions. Pure.

llama-server translates such requests by itself, but leaves out that an answer has to obey a schema, which it
knows for chat completions only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic_core import to_json

from app.domain.errors import BadRequest
from app.proxy.dialects.json_pieces import written

Fields = dict[str, Any]

_SAME = ("model", "stream", "max_tokens", "temperature", "top_p", "top_k", "chat_template_kwargs")
_CHOICES = {"auto": "auto", "any": "required", "tool": "required", "none": "none"}


def schema_of(fields: Mapping[str, Any]) -> Fields | None:
    """What the text of the answer has to obey; None: nothing. Raises `BadRequest`."""
    config = fields.get("output_config")
    wanted = config.get("format") if isinstance(config, dict) else None
    wanted = fields.get("output_format") if wanted is None else wanted
    if wanted is None:
        return None
    found = wanted.get("schema") if isinstance(wanted, dict) and wanted.get("type") == "json_schema" else None
    if not isinstance(found, dict):
        raise BadRequest(
            "'output_config.format' must be of the type json_schema, with a schema",
            param="output_config.format",
        )
    return found


def demanded_tool(fields: Mapping[str, Any]) -> Fields | None:
    """The only tool that the answer may call, and has to; None: there is none."""
    choice, tools = fields.get("tool_choice"), fields.get("tools")
    if not isinstance(choice, dict) or not isinstance(tools, list):
        return None
    named = [tool for tool in tools if isinstance(tool, dict) and isinstance(tool.get("input_schema"), dict)]
    if choice.get("type") == "tool":
        named = [tool for tool in named if tool.get("name") == choice.get("name")]
    elif choice.get("type") != "any":
        return None
    return named[0] if len(named) == 1 else None


def names_one_of_many(fields: Mapping[str, Any]) -> bool:
    """A tool: llama-server hears no more than that one has to be called."""
    choice, tools = fields.get("tool_choice"), fields.get("tools")
    is_named = isinstance(choice, dict) and choice.get("type") == "tool"
    return is_named and isinstance(tools, list) and len(tools) > 1


def as_chat(fields: Mapping[str, Any], schema: Fields, *, with_tools: bool) -> Fields:
    """With an answer that obeys this schema. Raises `BadRequest` with the place of what is wrong."""
    body = {name: fields[name] for name in _SAME if fields.get(name) is not None}
    body["messages"] = [*_system(fields.get("system")), *_messages(fields.get("messages"))]
    if fields.get("stop_sequences"):
        body["stop"] = fields["stop_sequences"]
    if with_tools and isinstance(tools := fields.get("tools"), list) and tools:
        body["tools"] = [_tool(tool) for tool in tools if isinstance(tool, dict) and "input_schema" in tool]
        choice = fields.get("tool_choice")
        type_ = choice.get("type") if isinstance(choice, dict) else "auto"
        body["tool_choice"] = _CHOICES.get(str(type_), "auto")
    body["response_format"] = {"type": "json_schema", "json_schema": {"schema": schema}}
    return body


def _tool(given: Fields) -> Fields:
    told = {"name": given.get("name"), "description": given.get("description") or ""}
    return {"type": "function", "function": told | {"parameters": given["input_schema"]}}


def _system(given: object) -> list[Fields]:
    if given is None:
        return []
    blocks = _blocks(given, "system")
    text = "".join(_text(block, f"system[{place}]") for place, block in enumerate(blocks))
    return [{"role": "system", "content": text}] if text else []


def _messages(given: object) -> Iterator[Fields]:
    if not isinstance(given, list):
        raise BadRequest("'messages' must be a list", param="messages")
    for place, message in enumerate(given):
        where = f"messages[{place}]"
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ("user", "assistant", "system"):
            raise BadRequest(f"{where} must have the role user or assistant", param=where)
        yield from _turn(role, _blocks(message.get("content"), f"{where}.content"), f"{where}.content")


def _blocks(given: object, where: str) -> list[Fields]:
    if isinstance(given, str):
        return [{"type": "text", "text": given}]
    if not isinstance(given, list) or not all(isinstance(block, dict) for block in given):
        raise BadRequest(f"'{where}' must be a text or a list of blocks", param=where)
    return given


def _turn(role: str, blocks: list[Fields], where: str) -> Iterator[Fields]:
    """What tools have answered comes in messages of its own, before what was said beside it."""
    parts: list[Fields] = []
    told: Fields = {"role": role}
    for place, block in enumerate(blocks):
        here, type_ = f"{where}[{place}]", block.get("type")
        if type_ == "tool_result":
            yield {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": _result(block, here)}
        elif type_ == "tool_use":
            told.setdefault("tool_calls", []).append(_call(block))
        elif type_ == "thinking":
            told["reasoning_content"] = told.get("reasoning_content", "") + str(block.get("thinking", ""))
        elif type_ == "image":
            parts.append({"type": "image_url", "image_url": {"url": _url(block, here)}})
        elif type_ != "redacted_thinking":
            parts.append({"type": "text", "text": _text(block, here)})
    if parts or len(told) > 1:
        yield told | {"content": parts}


def _text(block: Fields, where: str) -> str:
    text = block.get("text")
    if block.get("type") != "text" or not isinstance(text, str):
        type_ = str(block.get("type"))[:80]
        raise BadRequest(f"'{where}' is a block of the type {type_!r}, which is not known here", param=where)
    return text


def _result(block: Fields, where: str) -> str:
    blocks = _blocks(block.get("content") or "", where)
    return "".join(_text(part, f"{where}.content[{place}]") for place, part in enumerate(blocks))


def _call(block: Fields) -> Fields:
    arguments = written(block.get("input") or {}, to_json).decode()
    function = {"name": block.get("name"), "arguments": arguments}
    return {"id": block.get("id"), "type": "function", "function": function}


def _url(block: Fields, where: str) -> str:
    source = block.get("source")
    if isinstance(source, dict) and isinstance(source.get("url"), str):
        url: str = source["url"]
        return url
    if not isinstance(source, dict) or not isinstance(source.get("data"), str):
        raise BadRequest(f"'{where}.source' must have data or a url", param=f"{where}.source")
    return f"data:{source.get('media_type')};base64,{source['data']}"
