"""Texts: what llama-server answers by hand it answers behind the router, byte for byte."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ggufs import make_tiny
from tests.router_process import MakeRouter
from tests.same_answers import Pair, Settings, pairs
from tests.tiny_models import make_adapter, make_fill_in

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
GREEDY = {"temperature": 0, "seed": 1, "max_tokens": 12}
TALK = [
    {"role": "system", "content": "the of and to"},
    {"role": "user", "content": "Gr\u00fc\u00dfe, was that for you?\n\n\u4f60\u597d \U0001f999"},
]
SCHEMA = {"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"]}
NAMED_SCHEMA = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
PARAMETERS = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": PARAMETERS}}
CALL_MARK = 261  # the token that begins a call; the model never chooses it by itself
CALLED = {"tools": [TOOL], "tool_choice": "required", "max_tokens": 60, "logit_bias": [[CALL_MARK, 100]]}
MANY_TOKENS = "the of and to " * 500


@pytest.fixture(scope="module")
def models(
    make_shared_router: MakeRouter,
    llama_server: Path,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_gguf: Path,
) -> Iterator[dict[str, Pair]]:
    folder = tmp_path_factory.mktemp("models")
    fill_in, adapter = make_fill_in(folder / "fill-in.gguf"), make_adapter(folder / "adapter.gguf")
    wide = make_tiny(folder / "wide.gguf", width=128)  # a row of its cache is a block of q8_0
    settings = {
        "chat": Settings(tiny_gguf),
        "two-slots": Settings(tiny_gguf, slots=2),
        "fill-in": Settings(fill_in),
        "adapted": Settings(tiny_gguf, extra=("--lora", str(adapter))),
        "small-cache": Settings(wide, extra=("-ctk", "q8_0", "-ctv", "q8_0")),
    }
    with pairs(make_shared_router, llama_server, folder, settings) as found:
        yield found


@pytest.fixture
def chat(models: dict[str, Pair]) -> Pair:
    return models["chat"]


# --- chat and completions


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"temperature": 0.9, "seed": 42},
        {"logprobs": True, "top_logprobs": 3},
        {"response_format": NAMED_SCHEMA, "max_tokens": 40},
        {"response_format": {"type": "json_object"}},
        {"grammar": 'root ::= "yes" | "no"'},
        {"stop": ["a", "e"]},
        CALLED,
        {"tools": [TOOL], "tool_choice": "none"},
        {"stream_options": {"include_usage": True}},
        {"return_progress": True, "timings_per_token": False},
        {"id_slot": 0, "cache_prompt": False, "min_p": 0.1, "repeat_penalty": 1.2},
        {"chat_template_kwargs": {"enable_thinking": False}, "reasoning_format": "none"},
    ],
    ids=lambda more: "-".join(more) or "greedy",
)
def test_chat(chat: Pair, more: dict[str, Any], stream: bool) -> None:
    answer = chat.same(CHAT, {"messages": TALK, **GREEDY, "stream": stream, **more})
    assert answer.status == 200
    assert b'"choices"' in answer.body
    assert answer.media_type.startswith("text/event-stream" if stream else "application/json")


def test_chat_calls_the_tool_that_it_has_to_call(chat: Pair) -> None:
    body = chat.same(CHAT, {"messages": TALK, **GREEDY, **CALLED}).body
    assert b'"name":"weather"' in body


def test_a_conversation_goes_on_with_the_results_of_a_tool(chat: Pair) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}}
    more = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "sun"},
    ]
    assert chat.same(CHAT, {"messages": [*TALK, *more], **GREEDY, "tools": [TOOL]}).status == 200


def test_several_choices(models: dict[str, Pair]) -> None:
    answer = models["two-slots"].same(CHAT, {"messages": TALK, **GREEDY, "n": 2})
    assert answer.status == 200
    assert answer.body.count(b'"finish_reason"') == 2


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(
    "more",
    [
        {"prompt": "the of"},
        {"prompt": ["the of", "and to"], "logprobs": 2},
        {"prompt": [1, 270, 271]},
        {"prompt": "", "grammar": "root ::= [0-9]+"},
    ],
    ids=["text", "several", "tokens", "grammar"],
)
def test_completions(chat: Pair, more: dict[str, Any], stream: bool) -> None:
    answer = chat.same(COMPLETIONS, {**GREEDY, "stream": stream, **more})
    assert answer.status == 200
    assert b"text_completion" in answer.body


def test_a_quantised_cache(models: dict[str, Pair]) -> None:
    assert models["small-cache"].same(CHAT, {"messages": TALK, **GREEDY}).status == 200


# --- the other APIs


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"system": "the of", "stop_sequences": ["e"]},
        {
            "tools": [{"name": "weather", "description": "d", "input_schema": PARAMETERS}],
            "tool_choice": {"type": "any"},
            "max_tokens": 60,
        },
    ],
    ids=["greedy", "system", "tools"],
)
def test_messages(chat: Pair, more: dict[str, Any], stream: bool) -> None:
    answer = chat.same(MESSAGES, {"messages": TALK[1:], **GREEDY, "stream": stream, **more})
    assert answer.status == 200
    assert b'"type":"message"' in answer.body


def test_messages_are_counted(chat: Pair) -> None:
    assert chat.same(f"{MESSAGES}/count_tokens", {"messages": TALK[1:]}).status == 200


@pytest.mark.parametrize(
    "more",
    [{"input": "the of"}, {"input": TALK, "instructions": "and to"}],
    ids=["text", "messages"],
)
def test_responses_hold_all_that_llama_server_says(chat: Pair, more: dict[str, Any]) -> None:
    """It leaves out much that the schema requires: tests/test_responses.py holds that against streams too."""
    by_hand, routed = (answer.json() for answer in chat.ask_both(RESPONSES, {**GREEDY, **more}))
    assert routed["output"][0]["content"] == by_hand["output"][0]["content"]
    assert by_hand.keys() <= routed.keys()
    details = by_hand["usage"].pop("input_tokens_details")
    assert details.items() <= routed["usage"]["input_tokens_details"].items()
    assert by_hand["usage"].items() <= routed["usage"].items()


def test_tokens_and_templates(chat: Pair) -> None:
    text = {"content": TALK[1]["content"]}
    for more in ({}, {"add_special": True}, {"with_pieces": True}, {"parse_special": False}):
        assert chat.same("/tokenize", {**text, **more}).status == 200
    assert chat.same("/detokenize", {"tokens": [1, 270, 271, 272]}).status == 200
    for tools in ({}, {"tools": [TOOL]}):
        assert chat.same("/apply-template", {"messages": TALK, **tools}).status == 200


def test_infill(models: dict[str, Pair]) -> None:
    extra = [{"filename": "a.py", "text": "the of"}]
    body = {"input_prefix": "def a", "input_suffix": "return", "n_predict": 8, "temperature": 0, "seed": 1}
    for more in ({}, {"prompt": "and"}, {"input_extra": extra}, {"stream": True}):
        answer = models["fill-in"].same("/infill", {**body, **more})
        assert answer.status == 200
        assert b"fim_prefix" in answer.body or "stream" in more


def test_an_adapter_counts_and_can_be_weighed(models: dict[str, Pair]) -> None:
    body = {"messages": TALK, **GREEDY}
    texts = [
        models["adapted"].same(CHAT, {**body, "lora": [{"id": 0, "scale": scale}]}).body
        for scale in (0.0, 0.5, 1.0)
    ]
    assert len(set(texts)) == 3
    assert models["adapted"].same(CHAT, body).status == 200


@pytest.mark.parametrize("path", ["/props", "/v1/models", "/lora-adapters", "/metrics", "/nowhere"])
def test_what_llama_server_says_of_itself(models: dict[str, Pair], path: str) -> None:
    """Its defaults for sampling, its template, its context: no flag of the router's changes them."""
    models["adapted"].same_through_tunnel(path, method="GET")
    models["two-slots"].same_through_tunnel(path, method="GET")


def test_native_completions_through_the_tunnel(chat: Pair) -> None:
    body = {"prompt": "the of", "n_predict": 8, "temperature": 0, "seed": 1}
    for more in ({}, {"stream": True}, {"n_probs": 2}):
        assert chat.same_through_tunnel("/completion", {**body, **more}).status == 200


# --- what llama-server refuses

REFUSED = [
    (CHAT, {"messages": [{"role": "user", "content": MANY_TOKENS}]}, {400}),
    (CHAT, {"messages": TALK, "max_tokens": 12, "n": 2}, {400}),
    (CHAT, {"messages": TALK, "grammar": "root ::= ("}, {400}),
    (CHAT, {"messages": TALK, "response_format": {"type": "nonsense"}}, {400}),
    (CHAT, {"messages": [{"role": "user"}]}, {400}),
    (CHAT, {}, {400}),
    (COMPLETIONS, {"prompt": MANY_TOKENS}, {400}),
    (COMPLETIONS, {"prompt": {"a": 1}}, {400}),
    (MESSAGES, {"messages": [{"role": "user", "content": MANY_TOKENS}], "max_tokens": 12}, {400}),
    (RESPONSES, {"input": MANY_TOKENS}, {400}),
    ("/infill", {"input_prefix": "a", "input_suffix": "b"}, {501}),
    ("/detokenize", {"tokens": "the"}, {400, 500}),
]


@pytest.mark.parametrize(("path", "body", "status"), REFUSED, ids=lambda value: str(value)[:40])
def test_errors_through_the_tunnel(chat: Pair, path: str, body: dict[str, Any], status: set[int]) -> None:
    assert chat.same_through_tunnel(path, body).status in status


@pytest.mark.parametrize(("path", "body", "status"), REFUSED, ids=lambda value: str(value)[:40])
def test_errors_keep_what_llama_server_says(
    chat: Pair, path: str, body: dict[str, Any], status: set[int]
) -> None:
    """The message and the fields that only llama-server has, in the shape of the API."""
    assert chat.same_refusal(path, body) in status | {400}


def test_an_error_in_a_stream_that_has_not_begun(chat: Pair) -> None:
    body = {"messages": [{"role": "user", "content": MANY_TOKENS}], "stream": True}
    assert chat.same_through_tunnel(CHAT, body).status == 400
