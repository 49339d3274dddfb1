"""What a chat page shows of a wait, where its client asked for that: a thought before the answer. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from app.proxy.dialects.sse_format import event

ShowWait = Callable[[str], bytes]
"""Writes a line for people as a piece of the stream. It is no part of the answer, which may still fail or be
begun anew behind it."""


def in_chat(request_id: str, model: str, created: int) -> ShowWait:
    """Of a chat completion. Without a role: llama-server's first piece has it, and some clients put the roles
    of all pieces together."""
    frame = {
        "id": f"chatcmpl-{request_id}",
        "object": "chat.completion.chunk",
        "created": created,
        "model": model,
    }

    def show(text: str) -> bytes:
        delta = {"reasoning_content": f"{text}\n"}
        return event(frame | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})

    return show


SHOWN_WAITS: Mapping[str, Callable[[str, str, int], ShowWait]] = {"/v1/chat/completions": in_chat}
"""By endpoint. Streams of others have no place for it, and get their usual signs of life."""
