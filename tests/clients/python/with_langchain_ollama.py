"""LangChain's classes for Ollama's API."""

from __future__ import annotations

from langchain_ollama import ChatOllama, OllamaEmbeddings
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


def here(key: str) -> dict[str, object]:
    http = {"headers": {"Authorization": f"Bearer {key}"}, "timeout": LONG_S}
    return {"base_url": BASE, "client_kwargs": http}


def model(name: str, most_tokens: int | None = MOST_TOKENS, key: str = KEY) -> ChatOllama:
    return ChatOllama(model=name, num_predict=most_tokens, temperature=0, **here(key))


def chat(name: str, key: str = KEY) -> str:
    return model(name, key=key).invoke(ASK).content


def embed() -> list[int]:
    embeddings = OllamaEmbeddings(model=EMBED, **here(KEY))
    return [len(vector) for vector in embeddings.embed_documents(["a", "b"])]


step("chat", lambda: chat(CHAT))
step("stream", lambda: text(piece.content for piece in model(CHAT).stream(ASK)))
step("swap", lambda: [chat(OTHER), chat(CHAT)])
step("embed", embed)
step("unknown", lambda: chat(NOBODY))
step("wrong_key", lambda: chat(CHAT, WRONG_KEY))
step("broken", lambda: chat(BROKEN))
step("too_long", lambda: chat(NARROW))
step("crashing", lambda: chat(CRASHING))
step("failing", lambda: text(p.content for p in until_it_fails(model(ENDLESS, None).stream(ASK))))
