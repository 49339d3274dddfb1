"""Answers read by the typed models of the official SDKs: nothing may be missing, nothing of another type.

The SDKs themselves are lenient: what does not fit is passed on as it is. Here it fails, with its place.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import anthropic.types
import pydantic
from openai.types import responses, shared
from openai.types.chat import ChatCompletion, ChatCompletionChunk

Body = dict[str, Any]
Problems = list[str]


@lru_cache
def _reader(kind: Any) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(kind)


def problems(kind: Any, body: object) -> Problems:
    """What a strict reader of this model would complain of. JSON has no tuples, so the text is read."""
    try:
        _reader(kind).validate_json(json.dumps(body), strict=True)
    except pydantic.ValidationError as error:
        return [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
    return []


def check(kind: Any, body: object) -> None:
    found = problems(kind, body)
    assert not found, f"{found[:8]}\n{json.dumps(body)[:3000]}"


def check_response(body: Body) -> None:
    """Also what its schema requires and the SDK's own model leaves open."""
    check(responses.Response, body)
    missing = _REQUIRED - body.keys()
    assert not missing, missing
    assert body["status"] in ("completed", "incomplete", "failed")
    assert (body["incomplete_details"] is not None) == (body["status"] == "incomplete")
    assert (body["error"] is not None) == (body["status"] == "failed")


_REQUIRED = frozenset({
    "background", "created_at", "error", "id", "incomplete_details", "instructions", "max_output_tokens",
    "metadata", "model", "object", "output", "parallel_tool_calls", "previous_response_id", "reasoning",
    "status", "store", "temperature", "text", "tool_choice", "tools", "top_p", "truncation", "usage",
})  # fmt: skip


def check_events(events: Iterable[Body]) -> Body:
    """A whole stream of a response: each event by its model, all in their order. The last response."""
    events = list(events)
    type_, last = events[-1]["type"], events[-1]["response"]
    assert type_ in ("response.completed", "response.incomplete", "response.failed")
    items = check_first_events(events[:-1], is_whole=type_ != "response.failed")
    _check_event(events[-1], len(events) - 1)
    check_response(last)
    if type_ != "response.failed":
        assert [item["id"] for item in last["output"]] == [item["id"] for item in items]
    found: Body = last
    return found


def check_first_events(events: list[Body], *, is_whole: bool = False) -> list[Body]:
    """What a client has read that leaves a stream, or whose stream fails. The items that were done."""
    for number, body in enumerate(events):
        _check_event(body, number)
    types = [body["type"] for body in events[:2]]
    assert types == ["response.created", "response.in_progress"][: len(types)]
    return _items(events[2:], is_whole)


def _check_event(body: Body, number: int) -> None:
    check(responses.ResponseStreamEvent, body)
    assert body["sequence_number"] == number


def _items(events: list[Body], is_whole: bool) -> list[Body]:
    """One after the other, each from `added` to `done`, its parts inside."""
    done: list[Body] = []
    current: Body | None = None
    text = ""
    for body in events:
        type_ = body["type"]
        if type_ == "response.in_progress":  # progress of the prompt
            continue
        if type_ == "response.output_item.added":
            assert current is None
            current, text = body["item"], ""
            assert body["output_index"] == len(done)
            continue
        assert current is not None, type_
        assert body["output_index"] == len(done)
        assert body.get("item_id", current["id"]) == current["id"]
        if type_.endswith(".delta"):
            text += body["delta"]
        elif type_.endswith(("text.done", "arguments.done")):
            assert body.get("text", body.get("arguments")) == text
        elif type_ == "response.output_item.done":
            assert (body["item"]["id"], body["item"]["type"]) == (current["id"], current["type"])
            assert _text(body["item"]) == text
            done.append(body["item"])
            current = None
    assert current is None or not is_whole
    return done


def _text(item: Body) -> str:
    if item["type"] == "function_call":
        arguments: str = item["arguments"]
        return arguments
    return "".join(part["text"] for part in item["content"])


def check_error(body: Body) -> None:
    """Of OpenAI's APIs: the answer, or the event of a stream of chat completions."""
    assert {"message", "type", "param", "code"} <= body["error"].keys()
    check(shared.ErrorObject, body["error"])


# --- chat completions


def check_chat(body: Body) -> None:
    check(ChatCompletion, body)


def check_chunk(body: Body) -> None:
    check(ChatCompletionChunk, body)


# --- Messages


def check_message(body: Body) -> None:
    check(anthropic.types.Message, body)


def check_message_error(body: Body) -> None:
    """The answer, or the event."""
    check(anthropic.types.ErrorResponse, body)


def check_message_events(events: Iterable[Body]) -> None:
    """A whole stream of a message, its blocks one after the other."""
    events = list(events)
    check_first_message_events(events)
    types = [body["type"] for body in events]
    assert types[-2:] == ["message_delta", "message_stop"]
    assert types.count("content_block_stop") == types.count("content_block_start")


def check_first_message_events(events: list[Body]) -> None:
    """What a client has read that leaves a stream, or whose stream fails."""
    for body in events:
        check(anthropic.types.RawMessageStreamEvent, body)
    types = [body["type"] for body in events]
    assert types[:1] == ["message_start"][: len(types)] and types.count("message_start") <= 1
    begun = [body["index"] for body in events if body["type"] == "content_block_start"]
    assert begun == list(range(len(begun)))
