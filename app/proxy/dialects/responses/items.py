"""Items of an input that llama-server does not know: told in those that it knows, or refused by name. Pure.

It knows messages, calls of functions, their outputs, and reasoning, each in one form only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from app.domain.errors import BadRequest, NotFound
from app.proxy.dialects.json_pieces import object_of, written
from app.proxy.dialects.sse_format import as_json

Item = dict[str, Any]
FindItem = Callable[[str], bytes | bytearray | None]

_TEXTS = frozenset({"input_text", "output_text", "text", "refusal", "summary_text", "reasoning_text"})
_IMAGES = frozenset({"input_image", "image_url"})


def as_items(given: object) -> list[Item]:
    """`input` as a list, whether it is a text or one already."""
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    if not isinstance(given, list):
        raise BadRequest("'input' must be a text or a list of items", param="input")
    for place, item in enumerate(given):
        if not isinstance(item, dict):
            raise BadRequest(f"input[{place}] must be an object", param=f"input[{place}]")
    return given


def refers(item: object) -> bool:
    """Whether another item is meant, which is stored."""
    return isinstance(item, dict) and (item.get("type") == "item_reference" or item.keys() == {"id"})


def resolved(items: Sequence[Item], find: FindItem) -> list[Item]:
    """References in the place of which stands what they refer to."""
    return [_resolved(item, f"input[{place}]", find) for place, item in enumerate(items)]


def for_llama_server(items: Sequence[Item]) -> list[Item]:
    return [told for place, item in enumerate(items) for told in _told(item, f"input[{place}]")]


def _resolved(item: Item, where: str, find: FindItem) -> Item:
    if not refers(item):
        return item
    name = item.get("id")
    found = find(name) if isinstance(name, str) else None
    if found is None:
        raise NotFound(
            f"{where} refers to the item {str(name)[:80]!r}, which is not stored here for this key: send the "
            'item itself (clients do with "store": false), or raise api.stored_responses_mb',
            param=f"{where}.id",
        )
    return object_of(found)


def _told(item: Item, where: str) -> Iterator[Item]:
    type_ = item.get("type") or ("message" if "role" in item else None)
    tell = _BY_TYPE.get(type_) if isinstance(type_, str) else None
    if tell is None:
        raise BadRequest(
            f"{where} is of the type {str(type_)[:80]!r}, which llama-server does not know: leave it out",
            param=f"{where}.type",
        )
    return tell(item, where)


def _message(item: Item, where: str) -> Iterator[Item]:
    is_assistants = item.get("role") == "assistant"
    content = item.get("content")
    if isinstance(content, list):
        text_type = "output_text" if is_assistants else "input_text"
        content = [_part(part, f"{where}.content[{n}]", text_type) for n, part in enumerate(content)]
    yield {**item, "type": "message", "content": "" if content is None else content}


def _part(part: object, where: str, text_type: str) -> Item:
    type_ = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(type_, str):
        raise BadRequest(f"{where} must be an object with a type", param=where)
    if type_ in _TEXTS:
        return {**part, "type": text_type, "text": part.get("text", part.get("refusal", ""))}
    url = part.get("image_url")
    if type_ in _IMAGES and url is not None:
        return {**part, "type": "input_image", "image_url": url.get("url") if isinstance(url, dict) else url}
    what = "an image without image_url" if type_ in _IMAGES else f"of the type {type_[:80]!r}"
    raise BadRequest(f"{where} is {what}; llama-server takes texts and images by URL or as data", param=where)


def _call(item: Item, where: str) -> Iterator[Item]:
    yield {**item, "arguments": item.get("arguments") or "{}"}


def _output(item: Item, where: str) -> Iterator[Item]:
    output = item.get("output")
    if isinstance(output, list):
        output = [_part(part, f"{where}.output[{n}]", "input_text") for n, part in enumerate(output)]
    elif not isinstance(output, str):
        output = _as_text(output)
    yield {**item, "type": "function_call_output", "output": output}


def _custom_call(item: Item, where: str) -> Iterator[Item]:
    """A call whose argument is a text."""
    arguments = _as_text({"input": item.get("input", "")})
    rest = {name: value for name, value in item.items() if name != "input"}
    yield {**rest, "type": "function_call", "arguments": arguments}


def _as_text(value: object) -> str:
    return written(value, as_json).decode()


def _reasoning(item: Item, where: str) -> Iterator[Item]:
    """llama-server wants one text. What is only there encrypted, by another provider, is nothing here."""
    text = _texts(item.get("content")) or _texts(item.get("summary"))
    if text:
        yield {**item, "summary": [], "content": [{"type": "reasoning_text", "text": text}]}


def _texts(parts: object) -> str:
    found = [part.get("text") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    return "\n\n".join(text for text in found if isinstance(text, str) and text)


_BY_TYPE: Mapping[str, Callable[[Item, str], Iterator[Item]]] = {
    "message": _message,
    "function_call": _call,
    "function_call_output": _output,
    "custom_tool_call": _custom_call,
    "custom_tool_call_output": _output,
    "reasoning": _reasoning,
}
