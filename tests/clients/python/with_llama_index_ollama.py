"""LlamaIndex's class for Ollama's API."""

from __future__ import annotations

from llama_index.core.llms import ChatMessage
from llama_index.llms.ollama import Ollama
from telling import (
    ASK,
    BASE,
    BROKEN,
    CHAT,
    CRASHING,
    ENDLESS,
    KEY,
    LONG_S,
    MOST_TOKENS,
    NARROW,
    NOBODY,
    OTHER,
    WRONG_KEY,
    step,
    text,
    until_it_fails,
)

TALK = [ChatMessage(role="user", content=ASK)]


def model(name: str, key: str = KEY, **options: object) -> Ollama:
    return Ollama(
        model=name,
        base_url=BASE,
        request_timeout=LONG_S,
        context_window=2048,
        temperature=0,
        headers={"Authorization": f"Bearer {key}"},
        additional_kwargs=options or {"num_predict": MOST_TOKENS},
    )


def chat(name: str, key: str = KEY) -> str:
    return model(name, key).chat(TALK).message.content


def endless() -> list[str]:
    pieces = model(ENDLESS, num_predict=-1).stream_chat(TALK)
    return text(piece.delta for piece in until_it_fails(pieces))


step("chat", lambda: chat(CHAT))
step("stream", lambda: text(piece.delta for piece in model(CHAT).stream_chat(TALK)))
step("swap", lambda: [chat(OTHER), chat(CHAT)])
step("unknown", lambda: chat(NOBODY))
step("wrong_key", lambda: chat(CHAT, WRONG_KEY))
step("broken", lambda: chat(BROKEN))
step("too_long", lambda: chat(NARROW))
step("crashing", lambda: chat(CRASHING))
step("failing", endless)
