"""Anthropic's SDK."""

from __future__ import annotations

from typing import Literal

from anthropic import Anthropic
from pydantic import BaseModel
from telling import (
    ASK,
    BASE,
    BROKEN,
    CALLER,
    CHAT,
    CRASHING,
    ENDLESS,
    KEY,
    LONG_S,
    MOST_IN_A_CALL,
    MOST_TOKENS,
    NARROW,
    NOBODY,
    OTHER,
    WEATHER,
    WRONG_KEY,
    step,
    text,
    until_it_fails,
)

client = Anthropic(base_url=BASE, api_key=KEY, timeout=LONG_S)
TALK = [{"role": "user", "content": ASK}]


def chat(model: str, client: Anthropic = client) -> str:
    answer = client.messages.create(model=model, messages=TALK, max_tokens=MOST_TOKENS)
    return answer.content[0].text


def stream(model: str, most_tokens: int) -> list[str]:
    with client.messages.stream(model=model, messages=TALK, max_tokens=most_tokens) as events:
        return text(until_it_fails(events.text_stream) if model == ENDLESS else events.text_stream)


def call() -> list[object]:
    answer = client.messages.create(
        model=CALLER,
        messages=TALK,
        tools=[{"name": "weather", "input_schema": WEATHER}],
        tool_choice={"type": "any"},
        max_tokens=MOST_IN_A_CALL,
    )
    (use,) = (block for block in answer.content if block.type == "tool_use")
    return [use.name, use.input]


class Place(BaseModel):
    city: Literal["Paris", "Rome"]


def parse() -> dict[str, str]:
    asked = {"messages": TALK, "max_tokens": MOST_IN_A_CALL, "output_format": Place}
    return client.messages.parse(model=CHAT, **asked).parsed_output.model_dump()


def listed() -> list[str]:
    models = list(client.models.list())
    assert all(model.display_name == model.id and model.created_at.year > 2000 for model in models)
    return [model.id for model in models]


step("list", listed)
step("chat", lambda: chat(CHAT))
step("stream", lambda: stream(CHAT, MOST_TOKENS))
step("count", lambda: client.messages.count_tokens(model=CHAT, messages=TALK).input_tokens)
step("parse", parse)
step("tools", call)
step("swap", lambda: [chat(OTHER), chat(CHAT)])
step("unknown", lambda: chat(NOBODY))
step("wrong_key", lambda: chat(CHAT, client.with_options(api_key=WRONG_KEY)))
step("broken", lambda: chat(BROKEN))
step("too_long", lambda: chat(NARROW))
step("crashing", lambda: chat(CRASHING))
step("failing", lambda: stream(ENDLESS, 100_000))
