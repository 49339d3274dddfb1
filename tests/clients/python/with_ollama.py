"""Ollama's own library."""

from __future__ import annotations

import ollama
from telling import (
    ASK,
    BASE,
    BROKEN,
    CHAT,
    CRASHING,
    EMBED,
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

TALK = [{"role": "user", "content": ASK}]
SHORT = {"num_predict": MOST_TOKENS, "temperature": 0}


def client(key: str = KEY) -> ollama.Client:
    return ollama.Client(BASE, headers={"Authorization": f"Bearer {key}"}, timeout=LONG_S)


here = client()


def chat(name: str, key: str = KEY) -> str:
    return client(key).chat(name, TALK, options=SHORT).message.content


def stream(name: str, options: dict[str, object]) -> list[str]:
    pieces = here.chat(name, TALK, options=options, stream=True)
    read = until_it_fails(pieces) if name == ENDLESS else pieces
    return text(piece.message.content for piece in read)


def loaded() -> list[str]:
    return [model.model for model in here.ps().models]


def keep_and_let_go() -> list[str]:
    return [here.generate(CHAT, keep_alive=kept).done_reason for kept in (-1, 0)]


step("list", lambda: [model.model.removesuffix(":latest") for model in here.list().models])
step("show", lambda: here.show(CHAT).capabilities)
step("chat", lambda: chat(CHAT))
step("stream", lambda: stream(CHAT, SHORT))
step("swap", lambda: [chat(OTHER), chat(CHAT)])
step("ps", loaded)
step("keep_alive", keep_and_let_go)
step("embed", lambda: [len(vector) for vector in here.embed(EMBED, ["a", "b"]).embeddings])
step("unknown", lambda: chat(NOBODY))
step("wrong_key", lambda: chat(CHAT, WRONG_KEY))
step("broken", lambda: chat(BROKEN))
step("too_long", lambda: chat(NARROW))
step("crashing", lambda: chat(CRASHING))
step("failing", lambda: stream(ENDLESS, {}))
