"""Calls that chat completions demand: what llama-server is asked, and what becomes of its answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from app.core.config import Config
from app.domain.errors import BadRequest, ModelCrashed
from app.gguf.model_card import ModelCard
from app.proxy.dialects.demanded_calls import DemandedCalls
from app.proxy.dialects.sse_format import EventReader, event
from app.proxy.dialects.translation_interface import Asked, Incoming, Times, Translator
from app.proxy.json_fields import fields_of
from tests.typed_models import check_chat, check_chunk

Body = dict[str, Any]

SPEC = Config.model_validate({"models": {"m": {"model_path": "/m.gguf"}}}).spec("m")
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
TIME = {"type": "function", "function": {"name": "time", "parameters": {"type": "object"}}}
TALK: Body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "tools": [WEATHER, TIME]}
NAMED = {"type": "function", "function": {"name": "time"}}
CARD = ModelCard(
    architecture="llama", vocab_type=2, n_vocab=500, n_ctx_train=4096, n_embd=2, n_params=9, size=9,
    ftype=None, tags=(), tools=False, thinking=False, infill=False, vision=False, audio=False, file_size=9,
)  # fmt: skip


def ask(more: Body, *, tools: bool = True) -> tuple[Incoming, Asked]:
    """`tools`: whether the model's template knows any."""
    text = json.dumps({**TALK, **more}).encode()
    fields = fields_of(text)
    given = Incoming(fields, text, "", SPEC, bool(fields.get("stream")), 0.0)
    translation = DemandedCalls(lambda _alias: replace(CARD, tools=tools))
    assert not translation.leaves_alone(fields)
    return given, translation.ask(given)


@pytest.mark.parametrize("stream", [False, True])
def test_a_named_tool_is_the_only_one_and_has_to_be_called(stream: bool) -> None:
    _, asked = ask({"tool_choice": NAMED, "stream": stream, "seed": 7})
    expected = {**TALK, "tools": [TIME], "tool_choice": "required", "stream": stream, "seed": 7}
    assert (json.loads(asked.body), asked.stream) == (expected, stream)
    assert (asked.translator, asked.path, asked.again) == (None, None, None)


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_tools_that_are_allowed_are_the_only_ones(mode: str) -> None:
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [NAMED]}}
    _, asked = ask({"tool_choice": choice})
    assert json.loads(asked.body) == {**TALK, "tools": [TIME], "tool_choice": mode}


def test_a_tool_is_found_in_a_large_body_too() -> None:
    long = [{"role": "user", "content": "the " * 40_000}]
    _, asked = ask({"messages": long, "tool_choice": NAMED})
    expected = {**TALK, "messages": long, "tools": [TIME], "tool_choice": "required"}
    assert json.loads(asked.body) == expected


@pytest.mark.parametrize(("choice", "tools", "is_read"), [
    (NAMED, True, True), (NAMED, False, True), ("required", False, True), ("required", True, False)
])  # fmt: skip
def test_only_what_may_be_rewritten_is_read(choice: object, tools: bool, is_read: bool) -> None:
    """Where it is large, in another thread."""
    given, _ = ask({"tool_choice": choice}, tools=tools)
    translation = DemandedCalls(lambda _alias: replace(CARD, tools=tools))
    assert translation.size(given) == (len(given.body) if is_read else 0)


@pytest.mark.parametrize("choice", [None, "auto", "none"])
def test_what_demands_no_call_costs_nothing(choice: str | None) -> None:
    assert DemandedCalls(lambda _alias: CARD).leaves_alone({**TALK, "tool_choice": choice})
    assert DemandedCalls(lambda _alias: CARD).leaves_alone(TALK)


@pytest.mark.parametrize("tools", [True, False])
@pytest.mark.parametrize("choice", ["required", {"type": "auto"}, {}, [], 5, {"type": "allowed_tools"}])
def test_what_names_nothing_passes_byte_for_byte(choice: object, tools: bool) -> None:
    given, asked = ask({"tool_choice": choice}, tools=tools)
    assert asked.body is given.body
    assert asked.translator is None


@pytest.mark.parametrize(
    "more",
    [
        {"tool_choice": {"type": "function", "function": {"name": "date"}}},
        {"tool_choice": {"type": "function"}},
        {"tool_choice": {"type": "function", "function": {"name": [1]}}},
        {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"tools": "time"}}},
        {"tool_choice": NAMED, "tools": None},
        {"tool_choice": NAMED, "tools": [5, {"function": 5}, {"function": {"name": [1]}}]},
    ],
    ids=str,
)
def test_a_tool_that_is_not_there_is_refused(more: Body) -> None:
    with pytest.raises(BadRequest) as refused:
        ask(more)
    assert (refused.value.status, refused.value.param) == (400, "tool_choice")


# --- where the model's template knows no tools


@pytest.mark.parametrize(
    "more", [{"tool_choice": NAMED}, {"tool_choice": "required", "tools": [TIME]}], ids=str
)
def test_the_only_tool_is_asked_for_by_its_schema(more: Body) -> None:
    _, asked = ask({**more, "seed": 7, "parallel_tool_calls": False}, tools=False)
    schema = {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}
    expected = {"model": "m", "messages": TALK["messages"], "seed": 7, "response_format": schema}
    assert json.loads(asked.body) == expected
    assert asked.translator is not None


def translator() -> Translator:
    make = ask({"tool_choice": NAMED}, tools=False)[1].translator
    assert make is not None
    return make(Times(lambda: 0.0, 0.0, 0.0))


ABOUT: Body = {"id": "c", "created": 1, "model": "m", "system_fingerprint": "b1"}


def answered(message: Body, reason: str) -> Body:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": reason}
    return {**ABOUT, "object": "chat.completion", "choices": [choice], "timings": {"predicted_n": 3}}


@pytest.mark.parametrize(("reason", "expected"), [("stop", "tool_calls"), ("length", "length")])
def test_the_text_of_an_answer_is_the_call(reason: str, expected: str) -> None:
    told = answered({"content": '{"at": 1}', "reasoning_content": "Hm."}, reason)
    whole = translator().whole(json.dumps(told).encode())
    assert not isinstance(whole, Asked)
    body = json.loads(whole)
    check_chat(body)
    message = body["choices"][0]["message"]
    (call,) = message.pop("tool_calls")
    assert call.pop("id").startswith("call_")
    assert call == {"type": "function", "function": {"name": "time", "arguments": '{"at": 1}'}}
    assert message == {"role": "assistant", "content": None, "reasoning_content": "Hm."}
    assert (body["choices"][0]["finish_reason"], body["timings"]) == (expected, {"predicted_n": 3})


def test_what_is_no_answer_passes() -> None:
    for body in (b'{"input_tokens":3}', b"no JSON"):
        assert translator().whole(body) is body


def chunk(delta: Body, reason: str | None = None, index: int = 0) -> bytes:
    choice = {"index": index, "delta": delta, "finish_reason": reason}
    return event({**ABOUT, "object": "chat.completion.chunk", "choices": [choice]})


def chunks(sent: bytes) -> Iterator[Body]:
    for found in EventReader().feed(sent):
        if (body := found.json()) is not None:
            check_chunk(body)
            yield body


COUNTS = {"completion_tokens": 3, "prompt_tokens": 2, "total_tokens": 5}
USAGE = event({**ABOUT, "object": "chat.completion.chunk", "choices": [], "usage": COUNTS})
STREAMED = [
    chunk({"role": "assistant", "content": None}), chunk({"reasoning_content": "Hm."}),
    chunk({"content": '{"at"'}), chunk({"content": ": 1}"}), chunk({}, "stop"), USAGE, b"data: [DONE]\n\n",
]  # fmt: skip


def test_the_text_of_a_stream_is_the_call() -> None:
    found = translator()
    sent = b"".join(map(found.feed, STREAMED)) + found.end()
    assert (found.is_over, found.failure) == (True, None)
    assert sent.endswith(USAGE + b"data: [DONE]\n\n")
    deltas = [body["choices"][0]["delta"] for body in chunks(sent) if body["choices"]]
    assert deltas[:2] == [{"role": "assistant", "content": None}, {"reasoning_content": "Hm."}]
    first, second = (delta["tool_calls"][0] for delta in deltas[2:4])
    assert first.pop("id").startswith("call_")
    named = {"name": "time", "arguments": '{"at"'}
    assert first == {"index": 0, "type": "function", "function": named}
    assert second == {"index": 0, "function": {"arguments": ": 1}"}}
    reasons = [body["choices"][0]["finish_reason"] for body in chunks(sent) if body["choices"]]
    assert reasons == [None, None, None, None, "tool_calls"]


def test_each_choice_has_a_call_of_its_own() -> None:
    found = translator()
    sent = b"".join(found.feed(chunk({"content": "{"}, index=index)) for index in (0, 1, 0, 1))
    calls = [body["choices"][0]["delta"]["tool_calls"][0] for body in chunks(sent)]
    assert ["id" in call for call in calls] == [True, True, False, False]


def test_a_call_that_breaks_off_fails() -> None:
    found = translator()
    found.feed(STREAMED[2])
    found.end()
    assert isinstance(found.failure, ModelCrashed)
    (told,) = EventReader().feed(found.fail(found.failure))
    assert (told.json() or {})["error"]["code"] == "model_crashed"
