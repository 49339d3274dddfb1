"""pydantic-ai, by chat completions."""

from __future__ import annotations

import asyncio
from typing import Literal

from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
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


class Weather(BaseModel):
    """The weather of a city."""

    city: Literal["Paris", "Rome"]


def agent(name: str, key: str = KEY, most_tokens: int | None = MOST_TOKENS, **more: object) -> Agent:
    client = AsyncOpenAI(base_url=f"{BASE}/v1", api_key=key, timeout=LONG_S)
    settings = {"temperature": 0} | ({"max_tokens": most_tokens} if most_tokens else {})
    model = OpenAIChatModel(name, provider=OpenAIProvider(openai_client=client))
    return Agent(model, model_settings=settings, **more)


def chat(name: str, key: str = KEY) -> str:
    return agent(name, key).run_sync(ASK).output


async def pieces_of(name: str, most_tokens: int | None = MOST_TOKENS) -> list[str]:
    found = []
    async with agent(name, most_tokens=most_tokens).run_stream(ASK) as result:
        async for piece in result.stream_text(delta=True, debounce_by=None):
            found.append(piece)
            if name == ENDLESS and len(found) == 1:
                begun()
    return text(found)


def call() -> list[object]:
    """What an agent is to give is the call of a tool, which it must make."""
    made = agent(CALLER, most_tokens=MOST_IN_A_CALL, output_type=ToolOutput(Weather, name="weather"))
    return ["weather", made.run_sync(ASK).output.model_dump()]


step("chat", lambda: chat(CHAT))
step("stream", lambda: asyncio.run(pieces_of(CHAT)))
step("tools", call)
step("swap", lambda: [chat(OTHER), chat(CHAT)])
step("unknown", lambda: chat(NOBODY))
step("wrong_key", lambda: chat(CHAT, WRONG_KEY))
step("broken", lambda: chat(BROKEN))
step("too_long", lambda: chat(NARROW))
step("crashing", lambda: chat(CRASHING))
step("failing", lambda: asyncio.run(pieces_of(ENDLESS, None)))
