"""OpenAI's SDK: chat completions, embeddings and responses."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Literal

from openai import OpenAI
from pydantic import BaseModel
from telling import (
    ASK,
    BASE,
    BROKEN,
    CALLER,
    CHAT,
    CRASHING,
    EMBED,
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

client = OpenAI(base_url=f"{BASE}/v1", api_key=KEY, timeout=LONG_S)
TALK = [{"role": "user", "content": ASK}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": WEATHER}}


def chat(model: str, client: OpenAI = client) -> str:
    answer = client.chat.completions.create(model=model, messages=TALK, max_tokens=MOST_TOKENS, temperature=0)
    return answer.choices[0].message.content


def stream(model: str, **more: object) -> list[str]:
    chunks = client.chat.completions.create(model=model, messages=TALK, stream=True, temperature=0, **more)
    pieces = until_it_fails(chunks) if model == ENDLESS else chunks
    return text(chunk.choices[0].delta.content for chunk in pieces if chunk.choices)


def call() -> list[object]:
    answer = client.chat.completions.create(
        model=CALLER,
        messages=TALK,
        tools=[TOOL],
        tool_choice="required",
        max_tokens=MOST_IN_A_CALL,
        temperature=0,
    )
    function = answer.choices[0].message.tool_calls[0].function
    return [function.name, json.loads(function.arguments)]


def embed() -> list[int]:
    found = client.embeddings.create(model=EMBED, input=["a", "b"])
    return [len(vector.embedding) for vector in found.data]


def converse() -> list[str]:
    first = client.responses.create(model=CHAT, input=ASK, max_output_tokens=MOST_TOKENS, temperature=0)
    with client.responses.stream(
        model=CHAT, input="Again.", previous_response_id=first.id, max_output_tokens=MOST_TOKENS
    ) as events:
        *some, last = events
    pieces = [event.delta for event in some if event.type == "response.output_text.delta"]
    assert last.type in ("response.completed", "response.incomplete")  # for the want of tokens
    assert "".join(pieces) == last.response.output_text
    return [first.output_text, last.response.output_text]


class Place(BaseModel):
    city: Literal["Paris", "Rome"]


def parse() -> dict[str, str]:
    found = client.responses.parse(model=CHAT, input=ASK, text_format=Place, max_output_tokens=MOST_IN_A_CALL)
    return found.output_parsed.model_dump()


def deltas(events: Iterable[object]) -> Iterator[str]:
    for event in events:
        if event.type == "response.failed":
            raise RuntimeError(event.response.error.message)
        if event.type == "response.output_text.delta":
            yield event.delta


def fail_in_a_response() -> list[str]:
    return text(until_it_fails(deltas(client.responses.create(model=ENDLESS, input=ASK, stream=True))))


step("list", lambda: [model.id for model in client.models.list()])
step("chat", lambda: chat(CHAT))
step("stream", lambda: stream(CHAT, max_tokens=MOST_TOKENS))
step("responses", converse)
step("parse", parse)
step("count", lambda: client.responses.input_tokens.count(model=CHAT, input=ASK).input_tokens)
step("tools", call)
step("swap", lambda: [chat(OTHER), chat(CHAT)])
step(
    "embed", lambda: [len(e.embedding) for e in client.embeddings.create(model=EMBED, input=["a", "b"]).data]
)
step("unknown", lambda: chat(NOBODY))
step("wrong_key", lambda: chat(CHAT, client.with_options(api_key=WRONG_KEY)))
step("broken", lambda: chat(BROKEN))
step("too_long", lambda: chat(NARROW))
step("crashing", lambda: chat(CRASHING))
step("failing", lambda: stream(ENDLESS))
step("failing_response", fail_in_a_response)
