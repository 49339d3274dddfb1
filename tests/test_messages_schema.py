"""Anthropic's Messages API where the answer has to obey a schema: asked, and told, in chat's words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import anthropic.types
import pytest

from app.domain.errors import BadRequest, ModelCrashed
from app.gguf.model_card import ModelCard
from app.proxy.dialects.anthropic_stream import CHAT, MessagesTranslation
from app.proxy.dialects.sse_format import EventReader, event
from app.proxy.dialects.translation_interface import Asked, Incoming, Times, Translator
from app.proxy.json_fields import fields_of
from tests.fakes import World
from tests.typed_models import check

Body = dict[str, Any]

PLACE = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}}
FORMAT = {"output_config": {"format": {"type": "json_schema", "schema": PLACE}}}
OBEYS = {"type": "json_schema", "json_schema": {"schema": PLACE}}
WEATHER = {"name": "weather", "description": "Of a city.", "input_schema": PLACE}
OTHER = {"name": "other", "input_schema": {"type": "object"}}
DEMANDED = {"tools": [OTHER, WEATHER], "tool_choice": {"type": "tool", "name": "weather"}}
SPEC = World({"m": 1}).manager.fleet.find("m").spec
CARD = ModelCard(
    architecture="llama", vocab_type=2, n_vocab=500, n_ctx_train=4096, n_embd=2, n_params=9, size=9,
    ftype=None, tags=(), tools=False, thinking=False, infill=False, vision=False, audio=False, file_size=9,
)  # fmt: skip
HI: Body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
TIMINGS = {"prompt_n": 7, "cache_n": 3, "predicted_n": 5}
END = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "timings": TIMINGS}


def ask(more: Mapping[str, Any], *, tools: bool = False) -> Asked:
    """`tools`: whether the model's template knows any."""
    translation = MessagesTranslation(lambda _alias: replace(CARD, tools=tools))
    text = json.dumps({**HI, **more}).encode()
    stream = more.get("stream", False)
    return translation.ask(Incoming(fields_of(text), text, "", SPEC, stream, 0.0))


def asked(more: Mapping[str, Any], *, tools: bool = False) -> Body:
    found = ask(more, tools=tools)
    assert found.path == CHAT
    body: Body = json.loads(found.body)
    return body


def translator(more: Mapping[str, Any]) -> Translator:
    make = ask(more).translator
    assert make is not None
    return make(Times(lambda: 0.0, 0.0, 0.0))


# --- what is asked


def test_a_request_without_a_schema_passes_as_it_is() -> None:
    for more in ({}, {"output_config": {"effort": "low"}}, {"output_config": None}, {"tools": [WEATHER]}):
        found = ask(more)
        assert (json.loads(found.body), found.path) == ({**HI, **more}, None)
    assert ask({"tools": [WEATHER, OTHER], "tool_choice": {"type": "any"}}, tools=True).path is None


@pytest.mark.parametrize("stream", [False, True])
def test_a_named_tool_is_the_only_one(stream: bool) -> None:
    found = ask({**DEMANDED, "stream": stream}, tools=True)
    expected = {**HI, **DEMANDED, "tools": [WEATHER], "stream": stream}
    assert (json.loads(found.body), found.path, found.stream) == (expected, None, stream)
    assert (found.translator is not None) is stream


def test_a_named_tool_that_is_not_there_is_refused() -> None:
    with pytest.raises(BadRequest) as refused:
        ask({**DEMANDED, "tool_choice": {"type": "tool", "name": "time"}}, tools=True)
    assert refused.value.param == "tool_choice"


@pytest.mark.parametrize("given", [FORMAT, {"output_format": FORMAT["output_config"]["format"]}])
def test_a_schema_is_asked_for_in_chats_words(given: Body) -> None:
    more = {"system": "Be brief.", "stop_sequences": ["."], "temperature": 0, "metadata": {"user_id": "u"}}
    told = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [text_part("Hi")]}]
    expected = {"model": "m", "max_tokens": 9, "temperature": 0, "stop": ["."], "messages": told}
    assert asked({**given, **more}) == {**expected, "response_format": OBEYS}


def test_a_schema_in_a_large_body_is_obeyed_too() -> None:
    long = [{"role": "user", "content": "the " * 40_000}]
    body = asked({**FORMAT, "messages": long})
    assert body["response_format"] == OBEYS
    assert body["messages"] == [{"role": "user", "content": [text_part("the " * 40_000)]}]


def test_a_conversation_with_tools_and_images_is_told_whole() -> None:
    picture = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    use = {"type": "tool_use", "id": "1", "name": "weather", "input": {"city": "Rome"}}
    result = {"type": "tool_result", "tool_use_id": "1", "content": [text_part("Sunny.")]}
    messages = [
        {"role": "user", "content": [{"type": "image", "source": picture}, text_part("Where?")]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm."}, text_part("Rome."), use]},
        {"role": "user", "content": [result, text_part("Go on.")]},
    ]
    body = asked({**FORMAT, "messages": messages, "tools": [WEATHER, {"type": "web_search", "name": "w"}]})
    function = {"name": "weather", "arguments": '{"city":"Rome"}'}
    assert body["messages"] == [
        {"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, text_part("Where?")
        ]},
        {"role": "assistant", "content": [text_part("Rome.")], "reasoning_content": "Hm.",
         "tool_calls": [{"id": "1", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "1", "content": "Sunny."},
        {"role": "user", "content": [text_part("Go on.")]},
    ]  # fmt: skip
    parameters = {"name": "weather", "description": "Of a city.", "parameters": PLACE}
    assert (body["tools"], body["tool_choice"]) == ([{"type": "function", "function": parameters}], "auto")


def test_a_demanded_tool_is_a_schema_where_the_template_knows_no_tools() -> None:
    body = asked(DEMANDED)
    assert (body["response_format"], "tools" in body) == (OBEYS, False)
    only = {"tools": [WEATHER], "tool_choice": {"type": "any"}}
    assert asked(only)["response_format"] == OBEYS
    for free in ({**only, "tools": [WEATHER, OTHER]}, {**only, "tool_choice": {"type": "auto"}}):
        assert ask(free).path is None


WRONG = [
    ({"output_config": {"format": {"type": "text"}}}, "output_config.format"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format"),
    ({**FORMAT, "messages": "Hi"}, "messages"),
    ({**FORMAT, "messages": [{"role": "tool", "content": ""}]}, "messages[0]"),
    ({**FORMAT, "messages": [{"role": "user", "content": [3]}]}, "messages[0].content"),
    ({**FORMAT, "messages": [{"role": "user", "content": [{"type": "x"}]}]}, "messages[0].content[0]"),
    ({**FORMAT, "system": 3}, "system"),
]


@pytest.mark.parametrize(("more", "place"), WRONG, ids=lambda value: str(value)[:40])
def test_what_is_wrong_is_told_with_its_place(more: Body, place: str) -> None:
    with pytest.raises(BadRequest) as told:
        ask(more)
    assert told.value.param == place


# --- what is answered


def text_part(text: str) -> Body:
    return {"type": "text", "text": text}


def whole(more: Body, message: Body, reason: str = "stop") -> Body:
    told = {"choices": [{"message": message, "finish_reason": reason}], "timings": TIMINGS}
    answer = translator(more).whole(json.dumps(told).encode())
    assert not isinstance(answer, Asked)
    found: Body = json.loads(answer)
    check(anthropic.types.Message, found)
    return found


def streamed(more: Body, *deltas: Body) -> list[Body]:
    """However its pieces were cut."""
    events = [event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}) for delta in deltas]
    text = b"".join([*events, event(END), b"data: [DONE]\n\n"])
    told = translator({**more, "stream": True})
    found = b"".join(told.feed(text[at : at + 7]) for at in range(0, len(text), 7)) + told.end()
    assert (told.is_over, told.failure) == (True, None)
    bodies = [read.json() or {} for read in EventReader().feed(found)]
    for body in bodies:
        check(anthropic.types.RawMessageStreamEvent, body)
    return bodies


def test_a_plain_answer_is_a_message() -> None:
    found = whole(FORMAT, {"content": '{"city":"Rome"}', "reasoning_content": "Hm."})
    thought, said = found["content"]
    assert (thought["thinking"], said) == ("Hm.", text_part('{"city":"Rome"}'))
    assert (found["stop_reason"], found["model"]) == ("end_turn", "m")
    usage = {"input_tokens": 7, "cache_read_input_tokens": 3, "output_tokens": 5}
    assert found["usage"] == usage
    assert whole(FORMAT, {"content": "{"}, "length")["stop_reason"] == "max_tokens"


def test_a_demanded_tool_is_called() -> None:
    found = whole(DEMANDED, {"content": '{"city":"Rome"}'})
    (use,) = found["content"]
    assert (use["type"], use["name"], use["input"]) == ("tool_use", "weather", {"city": "Rome"})
    assert found["stop_reason"] == "tool_use"


def test_a_stream_is_told_block_by_block() -> None:
    events = streamed(FORMAT, {"role": "assistant", "content": None}, {"reasoning_content": "Hm."},
                      {"content": '{"city":'}, {"content": '"Rome"}'})  # fmt: skip
    assert [body["type"].removeprefix("content_block_") for body in events] == [
        "message_start", "start", "delta", "stop", "start", "delta", "delta", "stop", "message_delta",
        "message_stop",
    ]  # fmt: skip
    assert [body["index"] for body in events if "index" in body] == [0, 0, 0, 1, 1, 1, 1]
    assert "".join(b["delta"]["text"] for b in events if "text" in b.get("delta", {})) == '{"city":"Rome"}'
    assert events[-2]["usage"]["output_tokens"] == 5


def test_a_demanded_tool_is_called_in_a_stream() -> None:
    events = streamed(DEMANDED, {"content": '{"city":'}, {"content": '"Rome"}'})
    assert events[1]["content_block"]["name"] == "weather"
    pieces = [body["delta"]["partial_json"] for body in events if body["type"] == "content_block_delta"]
    assert "".join(pieces) == '{"city":"Rome"}'
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


def test_calls_are_told_whole() -> None:
    call = {"index": 0, "id": "7", "function": {"name": "weather", "arguments": '{"city":'}}
    rest = {"index": 0, "function": {"arguments": '"Rome"}'}}
    events = streamed(FORMAT, {"content": "So"}, {"tool_calls": [call]}, {"tool_calls": [rest]})
    (use,) = [b["content_block"] for b in events if b.get("content_block", {}).get("type") == "tool_use"]
    assert (use["id"], use["name"], events[-2]["delta"]["stop_reason"]) == ("7", "weather", "tool_use")
    assert {"type": "input_json_delta", "partial_json": '{"city":"Rome"}'} in [b.get("delta") for b in events]


def test_an_error_within_a_stream_is_told_once() -> None:
    told = translator({**FORMAT, "stream": True})
    assert b"message_start" in told.feed(event({"choices": [{"delta": {"content": "x"}}]}))
    assert told.feed(event({"error": {"code": 500, "message": "Compute error."}})) == b""
    assert told.end() == b""
    assert told.failure is not None
    assert told.fail(told.failure).count(b"Compute error.") == 1


def test_a_stream_that_breaks_off_has_failed() -> None:
    told = translator({**FORMAT, "stream": True})
    told.feed(event({"choices": [{"delta": {"content": "x"}}]}))
    told.end()
    assert isinstance(told.failure, ModelCrashed)
