"""litellm as a library."""

from __future__ import annotations

import json

import litellm
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

TALK = [{"role": "user", "content": ASK}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": WEATHER}}
HERE = {"api_base": f"{BASE}/v1", "api_key": KEY, "timeout": LONG_S}


def ask(model: str, **more: object) -> object:
    given = {"messages": TALK, "max_tokens": MOST_TOKENS, "temperature": 0, **HERE, **more}
    return litellm.completion(model=f"openai/{model}", **given)


def chat(model: str, **more: object) -> str:
    return ask(model, **more).choices[0].message.content


def stream(model: str, **more: object) -> list[str]:
    chunks = ask(model, stream=True, **more)
    pieces = until_it_fails(chunks) if model == ENDLESS else chunks
    return text(chunk.choices[0].delta.content for chunk in pieces)


def call() -> list[object]:
    answer = ask(CALLER, tools=[TOOL], tool_choice="required", max_tokens=MOST_IN_A_CALL)
    function = answer.choices[0].message.tool_calls[0].function
    return [function.name, json.loads(function.arguments)]


def embed() -> list[int]:
    found = litellm.embedding(model=f"openai/{EMBED}", input=["a", "b"], **HERE)
    return [len(vector["embedding"]) for vector in found.data]


step("chat", lambda: chat(CHAT))
step("stream", lambda: stream(CHAT))
step("tools", call)
step("swap", lambda: [chat(OTHER), chat(CHAT)])
step("embed", embed)
step("unknown", lambda: chat(NOBODY))
step("wrong_key", lambda: chat(CHAT, api_key=WRONG_KEY))
step("broken", lambda: chat(BROKEN))
step("too_long", lambda: chat(NARROW))
step("crashing", lambda: chat(CRASHING))
step("failing", lambda: stream(ENDLESS, max_tokens=None))
