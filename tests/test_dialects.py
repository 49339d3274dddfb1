"""How each API tells errors and waits, and what of llama-server's words is kept."""

from __future__ import annotations

import json
from typing import Any

import anthropic.types
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from app.domain.config_types import Heartbeats
from app.domain.errors import AnswerTooLarge, ModelCrashed, ModelError, QueueFull, RouterError
from app.llama.llama_server_errors import read_error
from app.proxy.dialect_by_path import dialect_of
from app.proxy.dialects.anthropic_errors import ANTHROPIC
from app.proxy.dialects.anthropic_stream import MessagesTranslator
from app.proxy.dialects.dialect import NATIVE, OPENAI, Dialect
from app.proxy.dialects.ollama.ollama_errors import OLLAMA
from app.proxy.dialects.responses.responses_errors import RESPONSES
from app.proxy.dialects.shown_wait import in_chat
from app.proxy.dialects.sse_format import MOST_BYTES, EventReader, event
from app.proxy.dialects.translation_interface import Times
from tests.typed_models import check

TIMES = Times(lambda: 0.0, 0.0, 0.0)
TOO_LONG = {
    "code": 400,
    "message": "request (5031 tokens) exceeds the available context size (2048 tokens), try increasing it",
    "type": "exceed_context_size_error",
    "n_prompt_tokens": 5031,
    "n_ctx": 2048,
}


def told(status: int, **error: Any) -> ModelError:
    return read_error(json.dumps({"error": error}).encode(), status)


# --- llama-server's errors


def test_what_llama_server_said_is_kept_and_its_code_is_a_text() -> None:
    error = told(400, **TOO_LONG)
    assert (error.status, error.retryable) == (400, False)
    assert error.body()["error"] == {**TOO_LONG, "param": None, "code": "context_length_exceeded"}


@pytest.mark.parametrize(
    ("type_", "code"),
    [
        ("invalid_request_error", "invalid_request"),
        ("not_supported_error", "not_supported"),
        ("unavailable_error", "unavailable"),
        ("server_error", "server"),
    ],
)
def test_the_code_says_what_the_type_says(type_: str, code: str) -> None:
    assert told(503, code=503, message="m", type=type_).code == code


@pytest.mark.parametrize(
    "message",
    [
        "[json.exception.parse_error.101] parse error at line 1, column 2: syntax error",
        "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
        "Multimodal data provided, but model does not support multimodal requests.",
        "Failed to load image or audio file",
        "Failed to parse tools: Expected 'tools' to be an array, got 5; tools = 5",
        "Failed to parse messages: Missing 'role' in message: {}",
        "Cannot use both json_schema and grammar",
        "'messages' is required",
        '"prompt" is required',
        "Invalid base64 value",
        "input (513 tokens) is too large to process. increase the physical batch size (current batch: 512)",
    ],
)
def test_what_is_wrong_with_a_request_is_400_and_not_repeated(message: str) -> None:
    error = told(500, code=500, message=message, type="server_error")
    assert (error.status, error.type, error.code) == (400, "invalid_request_error", "invalid_request")
    assert (error.message, error.retryable) == (message, False)


@pytest.mark.parametrize(
    "message", ["Compute error.", "failed to get logits", "context shift is disabled", "got exception: x"]
)
def test_what_is_wrong_with_the_server_stays_500(message: str) -> None:
    error = told(500, code=500, message=message, type="server_error")
    assert (error.status, error.retryable) == (500, True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "llama-server answered with status 502"),
        (b"<h1>oops\xff", "<h1>oops\ufffd"),
        (b'{"error": "text"}', "text"),
        (b'{"error": {"message": 5}}', '{"error": {"message": 5}}'),
        (b"[" * 100_000, "[" * 2000),
    ],
)
def test_an_answer_of_another_shape_is_told_too(text: bytes, message: str) -> None:
    assert read_error(text, 502).message == message


def test_an_error_in_a_stream_has_the_status_that_it_names() -> None:
    assert told(200, code=400, message="m", type="invalid_request_error").status == 400
    assert told(200, code="x", message="m").status == 500


# --- dialects


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v1/chat/completions", OPENAI),
        ("/chat/completions", OPENAI),
        ("/v1/models/x", OPENAI),
        ("/v1/messages/count_tokens", ANTHROPIC),
        ("/messages", ANTHROPIC),
        ("//v1///messages/", ANTHROPIC),
        ("/v1", OPENAI),
        ("/v1/responses", RESPONSES),
        ("/responses/input_tokens", RESPONSES),
        ("/completion", NATIVE),
        ("/api/chat", OLLAMA),
        ("//api/nope/", OLLAMA),
        ("/api/v1/models", NATIVE),
        ("/upstream/m/v1/messages", NATIVE),
        ("/", NATIVE),
        ("", NATIVE),
    ],
)
def test_the_path_says_which_api_is_spoken(path: str, dialect: Dialect) -> None:
    assert dialect_of(path) is dialect


def one_event(data: bytes | bytearray) -> tuple[str, Any]:
    (found,) = EventReader().feed(bytes(data))
    return found.name, json.loads(found.data)


ERRORS: list[RouterError] = [QueueFull("full"), told(400, **TOO_LONG)]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: e.code)
def test_each_api_ends_a_stream_with_an_error_in_its_own_shape(error: RouterError) -> None:
    assert one_event(OPENAI.last_event(error)) == ("", error.body())
    name, body = one_event(RESPONSES.last_event(error))
    assert (name, body["type"], body["sequence_number"]) == ("error", "error", 0)
    assert (body["message"], body["code"], body["param"]) == (error.message, error.code, None)
    name, body = one_event(ANTHROPIC.last_event(error))
    assert (name, body["type"]) == ("error", "error")
    assert error.message in body["error"]["message"]


def test_anthropics_clients_find_the_words_by_which_they_know_a_prompt_that_is_too_long() -> None:
    body = ANTHROPIC.body(told(400, **TOO_LONG))["error"]
    assert body["type"] == "invalid_request_error"
    assert body["message"].startswith("prompt is too long: 5031 tokens > 2048 maximum; request (5031")
    assert (body["n_prompt_tokens"], body["n_ctx"]) == (5031, 2048)


def test_a_heartbeat_carries_no_event() -> None:
    comments = OPENAI.heartbeat(Heartbeats.COMMENTS, "queued position=1")
    assert comments == b": queued position=1\n\n"
    assert OPENAI.heartbeat(Heartbeats.BLANK, "x") == b"\n"
    assert OPENAI.heartbeat(Heartbeats.OFF, "x") == b""


def test_a_wait_that_is_shown_is_a_chunk_that_puts_nothing_into_the_answer() -> None:
    """Through the helper of OpenAI's SDK, which puts all pieces together."""
    show = in_chat("id", "m", 5)
    frame = {"id": "x", "object": "chat.completion.chunk", "created": 6, "model": "m"}
    said = [({"role": "assistant", "content": None}, None), ({"content": "Paris"}, None), ({}, "stop")]
    choices = [{"index": 0, "delta": delta, "finish_reason": end} for delta, end in said]
    answer = [event(frame | {"choices": [choice]}) for choice in choices]
    stream = b"".join([show("queued position=1"), show("loading progress=0.50"), *answer])
    chunks = [found.json() for found in EventReader().feed(stream)]
    check(ChatCompletionChunk, chunks[0])
    whole: ChatCompletionStreamState[None] = ChatCompletionStreamState()
    for chunk in chunks:
        whole.handle_chunk(ChatCompletionChunk.model_validate(chunk))
    message = whole.get_final_completion().choices[0].message
    assert (message.role, message.content) == ("assistant", "Paris")
    assert message.model_extra == {"reasoning_content": "queued position=1\nloading progress=0.50\n"}


# --- events


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_events_are_found_wherever_the_stream_is_cut(size: int) -> None:
    text = b'event: a\ndata: {"x":1}\n\n:\n\ndata: [DONE]\n\nevent: b\ndata: {}'
    reader = EventReader()
    found = [e for at in range(0, len(text), size) for e in reader.feed(text[at : at + size])]
    found += reader.end()
    assert [(e.name, e.json()) for e in found] == [("a", {"x": 1}), ("", None), ("", None), ("b", {})]
    assert b"".join(e.raw for e in found) == text + b"\n\n"


def test_a_large_event_in_small_pieces_is_looked_through_once() -> None:
    """Were it looked through with each piece, this would take hours."""
    data = b"data: " + b"a" * (MOST_BYTES // 2) + b"\n\ndata: 2\n\n"
    reader = EventReader()
    found = [e for at in range(0, len(data), 64) for e in reader.feed(data[at : at + 64])]
    assert [len(event.data) for event in found] == [MOST_BYTES // 2, 1]
    assert [*reader.end()] == []


@pytest.mark.parametrize("size", [1000, MOST_BYTES + 1000])
def test_an_event_that_does_not_end_is_given_up(size: int) -> None:
    reader = EventReader()
    with pytest.raises(AnswerTooLarge):
        for _ in range(MOST_BYTES // size + 1):
            reader.feed(b"a" * size)


# --- Messages

BEGINNING = b'event: message_start\ndata: {"type":"message_start","message":{}}\n\n'
BLOCK = b'event: content_block_start\ndata: {"type":"content_block_start","index":0,"content_block":%b}\n\n'


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            b'{"type":"tool_use","id":"1","name":"f"}',
            {"type": "tool_use", "id": "1", "name": "f", "input": {}},
        ),
        (b'{"type":"thinking","thinking":""}', {"type": "thinking", "thinking": "", "signature": ""}),
    ],
)
def test_a_block_begins_with_all_its_fields(given: bytes, expected: dict[str, Any]) -> None:
    translator = MessagesTranslator("m", TIMES)
    translator.feed(BEGINNING)
    name, body = one_event(translator.feed(BLOCK % given))
    assert (name, body["index"], body["content_block"]) == ("content_block_start", 0, expected)


def test_all_other_events_of_messages_pass_byte_for_byte() -> None:
    ping = b'event: ping\ndata: {"type": "ping"}\n\n'
    end = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    text = b": wait\n\n" + ping + BEGINNING + BLOCK % b'{"type":"text","text":""}' + ping + end
    translator = MessagesTranslator("m", TIMES)
    assert b"".join(translator.feed(bytes([byte])) for byte in text) + translator.end() == text
    assert translator.failure is None
    assert translator.whole(b"{}") == b"{}"


def test_a_stream_of_messages_that_stops_before_its_end_has_failed() -> None:
    translator = MessagesTranslator("m", TIMES)
    assert translator.feed(BEGINNING) + translator.end() == BEGINNING
    assert isinstance(translator.failure, ModelCrashed)
    assert b"event: error" in translator.fail(translator.failure)


def test_a_stream_of_messages_without_its_beginning_gets_one() -> None:
    translator, block = MessagesTranslator("m", TIMES), BLOCK % b'{"type":"text","text":""}'
    told = translator.feed(b": wait\n\n" + block + block)
    beginning = told.removeprefix(b": wait\n\n").removesuffix(block + block)
    name, body = one_event(beginning)
    check(anthropic.types.RawMessageStreamEvent, body)
    assert (name, body["message"]["model"]) == ("message_start", "m")


def test_an_error_that_llama_server_tells_in_a_stream_of_messages_is_taken_out_of_it() -> None:
    translator = MessagesTranslator("m", TIMES)
    assert translator.feed(b'event: error\ndata: {"code":500,"message":"Compute error."}\n\n') == b""
    assert translator.failure is not None
    name, body = one_event(translator.fail(translator.failure))
    assert (name, body["type"], body["error"]["message"]) == ("error", "error", "Compute error.")
