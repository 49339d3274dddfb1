"""OpenAI's agents, by chat completions."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
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
    WRONG_KEY,
    begun,
    step,
    text,
)

set_tracing_disabled(True)


def agent(name: str, *, key: str = KEY, tools: list[Any] | None = None, **settings: object) -> Agent:
    client = AsyncOpenAI(base_url=f"{BASE}/v1", api_key=key, timeout=LONG_S)
    given = {"max_tokens": MOST_TOKENS, "temperature": 0, **settings}
    return Agent(
        name="one",
        instructions="Be short.",
        model=OpenAIChatCompletionsModel(model=name, openai_client=client),
        model_settings=ModelSettings(**given),
        tools=tools or [],
        tool_use_behavior="stop_on_first_tool",
    )


def chat(name: str, key: str = KEY) -> str:
    return asyncio.run(Runner.run(agent(name, key=key), ASK)).final_output


async def pieces_of(name: str, **settings: object) -> list[str]:
    found = []
    async for event in Runner.run_streamed(agent(name, **settings), ASK).stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            found.append(event.data.delta)
            if name == ENDLESS and len(found) == 1:
                begun()
    return text(found)


def call() -> list[object]:
    told = []

    @function_tool
    def weather(city: Literal["Paris", "Rome"]) -> str:
        """The weather of a city."""
        told.append(city)
        return "fine"

    made = agent(CALLER, tools=[weather], tool_choice="required", max_tokens=MOST_IN_A_CALL)
    result = asyncio.run(Runner.run(made, ASK))
    (use,) = (item.raw_item for item in result.new_items if item.type == "tool_call_item")
    assert told == [json.loads(use.arguments)["city"]]
    return [use.name, json.loads(use.arguments)]


step("chat", lambda: chat(CHAT))
step("stream", lambda: asyncio.run(pieces_of(CHAT)))
step("tools", call)
step("swap", lambda: [chat(OTHER), chat(CHAT)])
step("unknown", lambda: chat(NOBODY))
step("wrong_key", lambda: chat(CHAT, WRONG_KEY))
step("broken", lambda: chat(BROKEN))
step("too_long", lambda: chat(NARROW))
step("crashing", lambda: chat(CRASHING))
step("failing", lambda: asyncio.run(pieces_of(ENDLESS, max_tokens=None)))
