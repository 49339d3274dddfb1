"""LangChain's classes for OpenAI's API."""

from __future__ import annotations

from langchain_openai import ChatOpenAI, OpenAIEmbeddings
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

TOOL = {"title": "weather", "description": "The weather of a city.", **WEATHER}


def model(name: str, most_tokens: int | None = MOST_TOKENS, key: str = KEY) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=f"{BASE}/v1", api_key=key, model=name, max_tokens=most_tokens, temperature=0, timeout=LONG_S
    )


def chat(name: str, key: str = KEY) -> str:
    return model(name, key=key).invoke(ASK).content


def call() -> list[object]:
    answer = model(CALLER, MOST_IN_A_CALL).bind_tools([TOOL], tool_choice="required").invoke(ASK)
    (use,) = answer.tool_calls
    return [use["name"], use["args"]]


def embed() -> list[int]:
    embeddings = OpenAIEmbeddings(
        base_url=f"{BASE}/v1", api_key=KEY, model=EMBED, check_embedding_ctx_length=False
    )
    return [len(vector) for vector in embeddings.embed_documents(["a", "b"])]


step("chat", lambda: chat(CHAT))
step("stream", lambda: text(piece.content for piece in model(CHAT).stream(ASK)))
step("tools", call)
step("swap", lambda: [chat(OTHER), chat(CHAT)])
step("embed", embed)
step("unknown", lambda: chat(NOBODY))
step("wrong_key", lambda: chat(CHAT, WRONG_KEY))
step("broken", lambda: chat(BROKEN))
step("too_long", lambda: chat(NARROW))
step("crashing", lambda: chat(CRASHING))
step("failing", lambda: text(p.content for p in until_it_fails(model(ENDLESS, None).stream(ASK))))
