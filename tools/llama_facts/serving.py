"""Answers: their shapes, status codes and connections, as the router passes them on or reads them."""

from __future__ import annotations

import contextlib
from typing import Any

from tests.ggufs import make_architecture
from tools.llama_facts.fact import Claims
from tools.llama_facts.server import Answer, Server, Subject, ready, spec_of

CHAT = "/v1/chat/completions"
TIMINGS = {"cache_n", "prompt_n", "predicted_n", "predicted_per_second"}
SAID = [{"role": "user", "content": "Hello"}]
BODY: dict[str, Any] = {"messages": SAID, "max_tokens": 4, "ignore_eos": True}


def claims(subject: Subject) -> Claims:
    slots = subject.folder / "slots"
    slots.mkdir()
    with ready(subject, spec_of(subject.tiny), slot_folder=slots) as server:
        yield from _answers(server)
        yield from _streams(server)
        yield from _errors(server)
        yield from _connections(server)
        yield from _kept(server)
    with ready(subject, spec_of(subject.tiny, embedding=True, pooling="mean", n_ubatch=32)) as server:
        yield from _embeddings(server)
    bert = make_architecture("bert", subject.folder / "bert.gguf")
    with ready(subject, spec_of(bert, rerank=True)) as server:
        body = {"query": "t1", "documents": ["t2", "t3"]}
        for path in ("/v1/rerank", "/rerank"):
            ranked = server.ask("POST", path, body)
            held = ranked.status == 200 and {"index", "relevance_score"} <= set(ranked.json["results"][0])
            yield f"{path}: `results` with `index` and `relevance_score`", held, ranked


def _answers(server: Server) -> Claims:
    chat = server.ask("POST", CHAT, BODY)
    held = chat.status == 200 and set(chat.json["timings"]) >= TIMINGS
    yield f"{CHAT}: 200 with `timings`", held, chat
    usage = chat.json["usage"]
    held = usage["completion_tokens"] == 4 and usage["prompt_tokens"] > 4
    yield f"{CHAT}: `usage`, and `max_tokens` with `ignore_eos` is obeyed", held, usage
    for name in ("any-name", None):
        answer = server.ask("POST", CHAT, {**BODY, "model": name} if name else BODY)
        yield f"{CHAT}: {'whatever' if name else 'no'} `model` is 200", answer.status == 200, answer
    tokens = server.ask("POST", "/tokenize", {"content": "Hello"}).json["tokens"]
    text = server.ask("POST", "/detokenize", {"tokens": tokens}).json["content"]
    yield "/tokenize and /detokenize undo each other", text == "Hello", (tokens, text)
    asked = {"content": ["Hello", -1, "Hello", -1, ""], "add_special": True}
    mixed = server.ask("POST", "/tokenize", asked).json["tokens"]
    held = [*mixed[-len(tokens) - 2 :]] == [-1, *tokens, -1]
    yield "/tokenize: numbers between texts pass; only the first has begin and end", held, (tokens, mixed)
    counted = server.ask("POST", "/v1/messages/count_tokens", {"messages": SAID}).json
    yield "/v1/messages/count_tokens: `input_tokens`", counted["input_tokens"] > 4, counted


def _streams(server: Server) -> Claims:
    plain = server.ask("POST", CHAT, {**BODY, "stream": True})
    yield (
        "stream: text/event-stream",
        plain.headers["content-type"].startswith("text/event-stream"),
        plain.headers,
    )
    yield "stream: chunked", plain.headers.get("transfer-encoding") == "chunked", plain.headers
    yield "stream: ends with [DONE]", plain.body.endswith(b"data: [DONE]\n\n"), plain.body[-80:]
    yield "stream: `timings` in the last event", set(plain.events[-1]["timings"]) >= TIMINGS, plain.events[-1]
    counted = server.ask("POST", CHAT, {**BODY, "stream": True, "stream_options": {"include_usage": True}})
    last = counted.events[-1]
    yield (
        "stream: include_usage adds an event without choices",
        last["choices"] == [] and bool(last["usage"]),
        last,
    )
    for path, body, word in (
        ("/v1/messages", {"messages": SAID, "max_tokens": 4}, "message_stop"),
        ("/v1/responses", {"input": "Hello", "max_output_tokens": 4}, "response.completed"),
    ):
        answer = server.ask("POST", path, {**body, "stream": True})
        yield f"{path}: ends with {word}, without [DONE]", _ends_with(answer, word), answer.body[-200:]
    text = server.ask("POST", "/v1/completions", {"prompt": "Once", "max_tokens": 4, "stream": True})
    yield "/v1/completions: ends with [DONE]", text.body.endswith(b"data: [DONE]\n\n"), text.body[-80:]


def _ends_with(answer: Answer, word: str) -> bool:
    return answer.status == 200 and answer.events[-1]["type"] == word and b"[DONE]" not in answer.body


def _errors(server: Server) -> Claims:
    long = server.ask("POST", CHAT, {**BODY, "messages": [{"role": "user", "content": "the " * 3000}]})
    held = long.status == 400 and long.error["type"] == "exceed_context_size_error"
    yield "prompt too long: 400 exceed_context_size_error", held, long
    yield "... with `n_prompt_tokens` and `n_ctx`", {"n_prompt_tokens", "n_ctx"} <= set(long.error), long
    yield (
        "errors: `error` with `code`, `message`, `type`",
        {"code", "message", "type"} <= set(long.error),
        long,
    )
    for path, body in (
        ("/v1/embeddings", {"input": "Hello"}),
        ("/v1/rerank", {"query": "a", "documents": ["b"]}),
    ):
        answer = server.ask("POST", path, body)
        yield f"{path} of a chat model: 501", answer.status == 501, answer
    unknown = server.ask("GET", "/no/such/path")
    yield "unknown path: 404 with `error`", unknown.status == 404 and bool(unknown.error), unknown


def _connections(server: Server) -> Claims:
    with contextlib.closing(server.connect()) as connection:
        server.ask_on(connection, "POST", CHAT, BODY)
        kept = connection.sock
        server.ask_on(connection, "POST", CHAT, BODY)
        yield "connection: kept after a short answer", kept is not None and connection.sock is kept, "closed"
        server.ask_on(connection, "POST", CHAT, {**BODY, "stream": True})
        left = connection.sock.recv(1) if connection.sock is not None else b""
        yield "connection: closed after a stream", left == b"", left


def _kept(server: Server) -> Claims:
    """What a conversation that is kept goes through."""
    question = {**BODY, "messages": [{"role": "user", "content": "the " * 100}]}
    first = server.ask("POST", CHAT, question).json["timings"]["prompt_n"]
    saved = server.ask("POST", "/slots/0?action=save", {"filename": "one.kv"}).json
    yield (
        "/slots/0?action=save: `n_saved`, `n_written`",
        saved["n_saved"] >= 100 and saved["n_written"] > 0,
        saved,
    )
    erased = server.ask("POST", CHAT, {**BODY, "messages": [{"role": "user", "content": "0 1 2 3"}]})
    restored = server.ask("POST", "/slots/0?action=restore", {"filename": "one.kv"})
    held = erased.status == restored.status == 200
    yield "/slots/0?action=restore: 200", held, restored
    again = server.ask("POST", CHAT, question).json["timings"]
    held = again["cache_n"] + again["prompt_n"] >= 100 and again["cache_n"] > again["prompt_n"]
    yield "... and `cache_n` counts what was restored", held, (first, again)
    missing = server.ask("POST", "/slots/0?action=restore", {"filename": "none.kv"})
    yield (
        "... of a missing file: `error` with `message`",
        missing.status >= 400 and bool(missing.error["message"]),
        missing,
    )


def _embeddings(server: Server) -> Claims:
    vectors = server.ask("POST", "/v1/embeddings", {"input": ["Hello", "you"]})
    items = vectors.json["data"]
    yield (
        "/v1/embeddings: `data` with `index` and `embedding`",
        [item["index"] for item in items] == [0, 1] and len(items[0]["embedding"]) == 64,
        vectors,
    )
    packed = server.ask("POST", "/v1/embeddings", {"input": "Hello", "encoding_format": "base64"})
    yield "... as base64 where asked for", isinstance(packed.json["data"][0]["embedding"], str), packed
    chat = server.ask("POST", CHAT, BODY)
    yield "chat with an embedding server: 200, so the router refuses it itself", chat.status == 200, chat
    long = server.ask("POST", "/v1/embeddings", {"input": "the " * 100})
    yield "an input longer than -ub: 500", long.status == 500, long
