"""Answers of real llama-servers as strict typed clients read them, of three APIs, and the SDKs themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pydantic
import pytest

from app.proxy.dialects.sse_format import EventReader
from tests.router_process import MakeRouter, RouterProcess
from tests.tiny_models import THINKS, calling
from tests.typed_models import (
    check_chat,
    check_chunk,
    check_events,
    check_message,
    check_message_events,
    check_response,
)

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
THOUGHT = {"grammar": 'root ::= "Must think" "</think>" "Hello there"'}
SCHEMA = {"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"]}
PARAMETERS = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
CALL_MARK = 261  # the token that begins a call; the model never chooses it by itself
CALL = {"logit_bias": [[CALL_MARK, 100]]}
MANY_TOKENS = "the of and to " * 500
ALWAYS = {"temperature": 0, "seed": 1, "cache_prompt": False}


@pytest.fixture(scope="module")
def router(make_shared_router: MakeRouter, tiny_gguf: Path, smollm2: Path) -> RouterProcess:
    found = make_shared_router(
        {
            "tiny": {"model_path": tiny_gguf, "params": {"n_ctx": 1024}},
            "thinks": {"model_path": tiny_gguf, "params": {"n_ctx": 1024, "chat_template": THINKS}},
            "smollm2": {"model_path": smollm2, "params": {"n_ctx": 1024}},
            "caller": {"model_path": tiny_gguf, "params": {"n_ctx": 1024}, "extra_args": calling()},
        },
        api={"api_keys": ["one", {"key": "two"}]},
        key="one",
        system={"max_concurrent_models": 4},
    )
    found.load("tiny", "thinks", "smollm2", "caller")
    return found


@pytest.fixture(scope="module")
def sdk(router: RouterProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{router.url}/v1", api_key="one", max_retries=0, timeout=60) as sdk:
        yield sdk


def ask(router: RouterProcess, path: str, body: dict[str, Any], key: str = "one") -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"}
    answer: httpx.Response = router.client.post(path, json=body, headers=headers)
    return answer


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return [body for e in EventReader().feed(answer.content) if (body := e.json()) is not None]


# --- strictly typed

TOOL = {"name": "weather", "description": "d", "parameters": PARAMETERS}
OTHER_TOOL = {**TOOL, "name": "a_visit"}
FORMAT = {"name": "answer", "schema": SCHEMA, "strict": True}
OF_RESPONSES: list[dict[str, Any]] = [
    {"model": "tiny", "max_output_tokens": 12},
    {"model": "tiny", "max_output_tokens": 12, "instructions": "be brief", "metadata": {"a": "b"}},
    {"model": "tiny", "text": {"format": {"type": "json_schema", **FORMAT}}, "max_output_tokens": 60},
    {
        "model": "tiny",
        "tools": [{"type": "function", **TOOL}],
        "tool_choice": {"type": "function", "name": "weather"},
        "max_output_tokens": 60,
        **CALL,
    },
    {"model": "thinks", **THOUGHT},
    {"model": "thinks", "max_output_tokens": 9, **THOUGHT},
    {"model": "tiny", "ignore_eos": True},
    {"model": "smollm2", "max_output_tokens": 30},
]
OF_MESSAGES: list[dict[str, Any]] = [
    {"model": "tiny"},
    {"model": "tiny", "system": "be brief", "stop_sequences": ["e"]},
    {
        "model": "tiny",
        "tools": [{"name": "weather", "input_schema": PARAMETERS}],
        "tool_choice": {"type": "any"},
        "max_tokens": 60,
        **CALL,
    },
    {"model": "thinks"},
    {"model": "smollm2", "max_tokens": 60},
]
OF_CHAT: list[dict[str, Any]] = [
    {"model": "tiny", "max_tokens": 12},
    {"model": "tiny", "response_format": {"type": "json_schema", "json_schema": FORMAT}, "max_tokens": 60},
    {
        "model": "tiny",
        "tools": [{"type": "function", "function": TOOL}],
        "tool_choice": "required",
        "max_tokens": 60,
        **CALL,
    },
    {"model": "thinks", **THOUGHT},
    {"model": "smollm2", "max_tokens": 30, "stream_options": {"include_usage": True}},
]
TALK = {"messages": [{"role": "user", "content": "Hello"}]}


def named(body: dict[str, Any]) -> str:
    return "-".join([body["model"], *(name for name in body if name != "model")])


@pytest.mark.parametrize("more", OF_RESPONSES, ids=named)
def test_responses(router: RouterProcess, more: dict[str, Any]) -> None:
    body = {"input": "Hello", **ALWAYS, **more}
    answer = ask(router, RESPONSES, body)
    assert answer.status_code == 200, answer.text
    whole = answer.json()
    check_response(whole)
    streamed = check_events(events(ask(router, RESPONSES, {**body, "stream": True})))
    assert [item["type"] for item in streamed["output"]] == [item["type"] for item in whole["output"]]
    assert (streamed["status"], streamed["usage"]) == (whole["status"], whole["usage"])
    if "tools" in more:
        assert [item["name"] for item in whole["output"] if item["type"] == "function_call"] == ["weather"]
    if "text" in more and whole["status"] == "completed":
        assert json.loads(whole["output"][0]["content"][0]["text"]).keys() == {"sure"}
    if more["model"] == "thinks":
        assert whole["output"][0]["type"] == "reasoning"


@pytest.mark.parametrize("more", OF_MESSAGES, ids=named)
def test_messages(router: RouterProcess, more: dict[str, Any]) -> None:
    body = {"max_tokens": 12, **TALK, **ALWAYS, **more}
    answer = ask(router, MESSAGES, body)
    assert answer.status_code == 200, answer.text
    check_message(answer.json())
    check_message_events(events(ask(router, MESSAGES, {**body, "stream": True})))


DEMANDED = {
    "tools": [{"name": "weather", "input_schema": PARAMETERS}],
    "tool_choice": {"type": "tool", "name": "weather"},
}
OBEYING = {"output_config": {"format": {"type": "json_schema", "schema": PARAMETERS}}}


@pytest.mark.parametrize("more", [OBEYING, DEMANDED], ids=["format", "tool"])
def test_a_message_obeys_its_schema(router: RouterProcess, more: dict[str, Any]) -> None:
    """llama-server leaves both out: its messages know no format, and this model's template no tools."""
    body = {"model": "smollm2", "max_tokens": 200, **TALK, **ALWAYS, **more}
    whole = ask(router, MESSAGES, body).json()
    check_message(whole)
    (block,) = whole["content"]
    found = block["input"] if more is DEMANDED else json.loads(block["text"])
    assert found["city"] in ("Paris", "Rome")
    check_message_events(events(ask(router, MESSAGES, {**body, "stream": True})))


@pytest.mark.parametrize("name", ["weather", "a_visit"])
def test_a_message_calls_the_tool_that_is_named(router: RouterProcess, name: str) -> None:
    """llama-server would leave it to the model, which would call the same one each time."""
    more = {"model": "caller", "max_tokens": 200, **TALK, **ALWAYS}
    tools = [{"name": tool["name"], "input_schema": PARAMETERS} for tool in (TOOL, OTHER_TOOL)]
    demand = {"tools": tools, "tool_choice": {"type": "tool", "name": name}}
    message = ask(router, MESSAGES, {**more, **demand}).json()
    check_message(message)
    assert [block["name"] for block in message["content"] if block["type"] == "tool_use"] == [name]


@pytest.mark.parametrize("more", OF_CHAT, ids=named)
def test_chat(router: RouterProcess, more: dict[str, Any]) -> None:
    body = {**TALK, **ALWAYS, **more}
    check_chat(ask(router, CHAT, body).json())
    for chunk in events(ask(router, CHAT, {**body, "stream": True})):
        check_chunk(chunk)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
def test_an_answer_whose_first_token_is_no_whole_character(
    router: RouterProcess, path: str, stream: bool
) -> None:
    """It takes several to write a face, and llama-server says nothing until all of them are there."""
    face = {"grammar": 'root ::= "\U0001f469 Hello"', "stream": stream, **ALWAYS}
    answer = ask(router, path, {"model": "tiny", "max_tokens": 40, "input": "Hello", **TALK, **face})
    assert answer.status_code == 200, answer.text
    if not stream:
        {CHAT: check_chat, RESPONSES: check_response, MESSAGES: check_message}[path](answer.json())
    elif path == CHAT:
        for chunk in events(answer):
            check_chunk(chunk)
    elif path == RESPONSES:
        assert check_events(events(answer))["output"][0]["content"][0]["text"] == "\U0001f469 Hello"
    else:
        check_message_events(events(answer))


# --- OpenAI's SDK


class City(pydantic.BaseModel):
    sure: bool


def test_the_sdks_own_stream_ends_with_the_response(sdk: openai.OpenAI) -> None:
    hello = {"grammar": 'root ::= "Hello there"'}
    with sdk.responses.stream(model="tiny", input="Hello", extra_body=hello) as stream:
        types = [event.type for event in stream]
        final = stream.get_final_response()
    assert (types[0], types[-1]) == ("response.created", "response.completed")
    assert (final.status, final.output_text) == ("completed", "Hello there")


def test_a_stream_of_reasoning_and_text(sdk: openai.OpenAI) -> None:
    with sdk.responses.stream(model="thinks", input="Hello", extra_body=THOUGHT) as stream:
        final = stream.get_final_response()
    assert [item.type for item in final.output] == ["reasoning", "message"]
    assert final.output_text == "Hello there"


def test_an_answer_is_parsed(sdk: openai.OpenAI) -> None:
    parsed = sdk.responses.parse(model="smollm2", input="Are you sure?", text_format=City)
    assert isinstance(parsed.output_parsed, City)


def test_a_conversation_goes_on_and_is_deleted(sdk: openai.OpenAI) -> None:
    first = sdk.responses.create(model="smollm2", input="My name is Ann.", max_output_tokens=20)
    second = sdk.responses.create(
        model="smollm2", input="What is my name?", previous_response_id=first.id, max_output_tokens=20
    )
    assert first.usage is not None and second.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens + 5
    assert sdk.responses.retrieve(second.id) == second
    items = sdk.responses.input_items.list(second.id, order="asc").data
    assert [getattr(item, "role", None) for item in items] == ["user", "assistant", "user"]
    newest = sdk.responses.input_items.list(second.id, limit=1)
    assert (newest.data[0].id, newest.has_more) == (items[-1].id, True)
    sdk.responses.delete(second.id)
    with pytest.raises(openai.NotFoundError, match="not stored here"):
        sdk.responses.retrieve(second.id)
    with pytest.raises(openai.NotFoundError, match="not stored here"):
        sdk.responses.create(model="smollm2", input="x", previous_response_id=second.id)


def test_another_key_finds_nothing(router: RouterProcess, sdk: openai.OpenAI) -> None:
    first = sdk.responses.create(model="tiny", input="x", max_output_tokens=3)
    path = f"{RESPONSES}/{first.id}"
    assert router.client.get(path).status_code == 200
    other = {"Authorization": "Bearer two"}
    for method, where in (("GET", path), ("DELETE", path), ("GET", f"{path}/input_items")):
        assert router.client.request(method, where, headers=other).status_code == 404


# --- errors, once each, with their message


def test_a_prompt_that_is_too_long_is_told_in_each_apis_way(
    router: RouterProcess, sdk: openai.OpenAI
) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as refused:
            sdk.responses.create(model="tiny", input=MANY_TOKENS, stream=stream)
        assert (refused.value.code, refused.value.type) == (
            "context_length_exceeded",
            "exceed_context_size_error",
        )
        assert isinstance(refused.value.body, dict) and refused.value.body["n_ctx"] == 1024
    with (
        anthropic.Anthropic(base_url=router.url, api_key="one", max_retries=0) as client,
        pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 1024 maximum"),
    ):
        client.messages.create(
            model="tiny", max_tokens=5, messages=[{"role": "user", "content": MANY_TOKENS}]
        )


def test_an_image_for_a_model_without_eyes_is_the_clients_mistake(sdk: openai.OpenAI) -> None:
    image: list[Any] = [{"role": "user", "content": [{"type": "input_image", "image_url": PIXEL}]}]
    with pytest.raises(openai.BadRequestError, match="image input is not supported"):
        sdk.responses.create(model="tiny", input=image)


PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5"
    "ErkJggg=="
)
