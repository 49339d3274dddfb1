"""A request that names the tool to be called: llama-server is given no other."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.core.config import Config
from app.domain.errors import BadRequest
from app.proxy.dialects.named_tools import NamedToolsTranslation
from app.proxy.dialects.translation_interface import Asked, Incoming
from app.proxy.json_fields import fields_of

Body = dict[str, Any]

SPEC = Config.model_validate({"models": {"m": {"model_path": "/m.gguf"}}}).spec("m")
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
TIME = {"type": "function", "function": {"name": "time", "parameters": {"type": "object"}}}
TALK: Body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "tools": [WEATHER, TIME]}
NAMED = {"type": "function", "function": {"name": "time"}}


def ask(more: Body) -> tuple[Incoming, Asked]:
    text = json.dumps({**TALK, **more}).encode()
    fields = fields_of(text)
    given = Incoming(fields, text, "", SPEC, bool(fields.get("stream")), 0.0)
    translation = NamedToolsTranslation()
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


@pytest.mark.parametrize("choice", [None, "auto", "none", "required"])
def test_words_that_llama_server_knows_cost_nothing(choice: str | None) -> None:
    assert NamedToolsTranslation().leaves_alone({**TALK, "tool_choice": choice})
    assert NamedToolsTranslation().leaves_alone(TALK)


@pytest.mark.parametrize("choice", [{"type": "auto"}, {}, [], 5, {"type": "allowed_tools"}])
def test_what_names_nothing_passes_byte_for_byte(choice: object) -> None:
    given, asked = ask({"tool_choice": choice})
    assert asked.body is given.body


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
