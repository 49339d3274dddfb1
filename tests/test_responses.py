"""The Responses API: what llama-server is asked, what becomes of its events, what is stored."""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from app.core.config import Config
from app.domain.errors import BadRequest, ModelCrashed, NotFound, RequestTooLarge, RouterError
from app.domain.model_spec import ModelSpec
from app.proxy.dialects.responses.response_object import MOST_ECHOED
from app.proxy.dialects.responses.stored_responses import OVERHEAD_BYTES, StoredResponses
from app.proxy.dialects.responses.stream import MUCH_TEXT
from app.proxy.dialects.responses.translation import ResponsesTranslation, TokensTranslation
from app.proxy.dialects.sse_format import EventReader, as_json, event
from app.proxy.dialects.translation_interface import Asked, Incoming, Times, Translator
from app.proxy.request_memory_limit import ClientMemory
from tests.typed_models import check_events, check_response

NOW = 1_800_000_000.0
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
FORMAT = {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}
WEATHER = {"type": "function", "name": "weather", "parameters": SCHEMA}
TIME = {"type": "function", "name": "time", "parameters": SCHEMA}
USAGE = {
    "input_tokens": 31,
    "output_tokens": 5,
    "total_tokens": 36,
    "input_tokens_details": {"cached_tokens": 30},
}
Body = dict[str, Any]


def spec(context: int = 2048) -> ModelSpec:
    models = {"m": {"model_path": "/m.gguf", "params": {"n_ctx": context}}}
    return Config.model_validate({"models": models}).spec("m")


def incoming(fields: Mapping[str, Any], *, owner: str = "", context: int = 2048) -> Incoming:
    fields = {"model": "m", **fields}
    body = json.dumps(fields).encode()
    return Incoming(fields, body, owner, spec(context), bool(fields.get("stream")), NOW)


class Router:
    """The translation, and what it stores."""

    def __init__(self, limit_bytes: int = 2**20) -> None:
        self.memory = ClientMemory(Config(), 1024)
        self.stored = StoredResponses(limit_bytes, self.memory)
        self.translation = ResponsesTranslation(self.stored)

    def ask(self, fields: Mapping[str, Any], **more: Any) -> Asked:
        return self.translation.ask(incoming(fields, **more))

    def asked(self, fields: Mapping[str, Any], **more: Any) -> Body:
        """What llama-server gets."""
        body: Body = json.loads(self.ask(fields, **more).body)
        return body

    def translator(self, fields: Mapping[str, Any], **more: Any) -> Translator:
        make = self.ask(fields, **more).translator
        assert make is not None
        return make(Times(lambda: 0.0, 0.0, 0.0))

    def answer(self, fields: Mapping[str, Any], told: Body | None = None, **more: Any) -> Body:
        translator = self.translator(fields, **more)
        whole = translator.whole(json.dumps(told or PLAIN).encode())
        assert not isinstance(whole, Asked)
        body: Body = json.loads(whole)
        translator.done()
        return body


@pytest.fixture
def router() -> Router:
    return Router()


def message(name: str = "msg_1", text: str = "Hi") -> Body:
    content = [{"type": "output_text", "annotations": [], "logprobs": [], "text": text}]
    return {"content": content, "id": name, "role": "assistant", "status": "completed", "type": "message"}


PLAIN: Body = {
    "completed_at": 7,
    "created_at": 7,
    "id": "resp_1",
    "model": "m",
    "object": "response",
    "output": [message()],
    "status": "completed",
    "usage": USAGE,
}


# --- what llama-server is asked


def test_a_body_that_needs_no_edit_passes_byte_for_byte(router: Router) -> None:
    for more in ({}, {"stream": True, "instructions": "be brief", "store": False}):
        given = incoming({"input": "Hello", **more})
        assert router.translation.ask(given).body is given.body


def test_null_means_the_default(router: Router) -> None:
    asked = router.asked(
        {"input": "x", "tools": None, "max_output_tokens": None, "reasoning": {"effort": None}}
    )
    assert asked == {"model": "m", "input": "x", "reasoning": {}}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"type": "text"}, None),
        (None, None),
        ({"type": "json_object"}, {"type": "json_object"}),
        (
            {**FORMAT, "description": None},
            {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}},
        ),
    ],
)
def test_a_format_is_told_in_the_words_that_llama_server_obeys(
    router: Router, wanted: Body | None, expected: Body | None
) -> None:
    assert router.asked({"input": "x", "text": {"format": wanted}}).get("response_format") == expected


@pytest.mark.parametrize(
    "choice",
    [
        {"type": "function", "name": "time"},
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "time"}]},
    ],
)
def test_a_choice_of_a_tool_leaves_only_that_one(router: Router, choice: Body) -> None:
    asked = router.asked({"input": "x", "tools": [WEATHER, TIME], "tool_choice": choice})
    assert (asked["tools"], asked["tool_choice"]) == ([TIME], "required")


@pytest.mark.parametrize(("choice", "obeys"), [("required", False), (WEATHER, False), ("auto", True)])
def test_what_has_to_be_called_obeys_no_format(router: Router, choice: object, obeys: bool) -> None:
    more = {"tools": [WEATHER], "tool_choice": choice, "text": {"format": FORMAT}}
    assert ("response_format" in router.asked({"input": "x", **more})) is obeys
    assert "response_format" in router.asked(
        {"input": "x", **more, "tools": []} | {"tool_choice": "required"}
    )


ITEMS = [
    ({"role": "user", "content": "a"}, {"type": "message", "role": "user", "content": "a"}),
    ({"role": "assistant", "content": "a"}, {"type": "message", "role": "assistant", "content": "a"}),
    (
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "refusal": "no", "text": "no"}],
        },
    ),
    (
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]},
        {"type": "message", "role": "user", "content": [{"type": "input_image", "image_url": "data:x"}]},
    ),
    (
        {"type": "function_call_output", "call_id": "1", "output": [{"type": "output_text", "text": "a"}]},
        {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "a"}]},
    ),
    (
        {"type": "function_call_output", "call_id": "1", "output": {"a": 1}},
        {"type": "function_call_output", "call_id": "1", "output": '{"a":1}'},
    ),
    (
        {"type": "custom_tool_call", "call_id": "1", "name": "f", "input": "a"},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": '{"input":"a"}'},
    ),
    (
        {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "a"}]},
        {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "a"}]},
    ),
    ({"type": "reasoning", "id": "r", "summary": [], "encrypted_content": "x"}, None),
]


@pytest.mark.parametrize(("item", "expected"), ITEMS, ids=lambda value: str(value)[:50])
def test_an_item_is_told_as_llama_server_knows_it(router: Router, item: Body, expected: Body | None) -> None:
    assert router.asked({"input": [item]})["input"] == ([] if expected is None else [expected])


def said(part: Body) -> Body:
    return {"role": "user", "content": [part]}


REFUSED = [
    ({"input": [{"type": "web_search_call", "id": "x"}]}, "input[0].type", "'web_search_call'"),
    ({"input": [said({"type": "input_file"})]}, "input[0].content[0]", "'input_file'"),
    ({"input": [said({"type": "input_image", "file_id": "x"})]}, "input[0].content[0]", "an image"),
    ({"input": ["x"]}, "input[0]", "object"),
    ({"input": 5}, "input", "a text or a list"),
    ({"input": "x", "background": True}, "background", "background"),
    ({"input": "x", "conversation": "c"}, "conversation", "previous_response_id"),
    ({"input": "x", "tools": "x"}, "tools", "list"),
    ({"input": "x", "text": "x"}, "text", "object"),
    ({"input": "x", "text": {"format": {"type": "grammar"}}}, "text.format", "json_schema"),
    ({"input": "x", "tools": [TIME], "tool_choice": {"type": "function"}}, "tool_choice", "no function"),
    ({"input": "x", "tools": [TIME], "tool_choice": {"type": "function", "name": [1]}}, "tool_choice", "no"),
    ({"input": "x", "tools": [{"name": [1]}], "tool_choice": {**TIME, "name": "n"}}, "tool_choice", "no"),
    ({"input": [{"type": {"a": 1}}]}, "input[0].type", "type"),
    ({"input": "x", "tool_choice": {"type": "web_search"}}, "tool_choice", "'web_search'"),
    ({"input": "x", "previous_response_id": 5}, "previous_response_id", "text"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "said"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_nothing_can_be_made_of_is_refused_by_name(
    router: Router, fields: Body, param: str, said: str
) -> None:
    with pytest.raises(BadRequest) as refused:
        router.ask(fields)
    assert (refused.value.status, refused.value.param) == (400, param)
    assert said in refused.value.message


def test_what_is_not_there_at_all_is_for_llama_server_to_say(router: Router) -> None:
    assert router.asked({}) == {"model": "m"}


# --- answers


def test_an_answer_has_all_that_its_schema_requires_and_all_that_llama_server_said(router: Router) -> None:
    fields = {"input": "x", "tools": [WEATHER], "text": {"format": FORMAT}, "metadata": {"a": "b"}}
    answer = router.answer({**fields, "temperature": 0.5, "max_output_tokens": 6})
    check_response(answer)
    assert answer["output"] == PLAIN["output"]
    assert USAGE.items() <= {**answer["usage"], "input_tokens_details": {"cached_tokens": 30}}.items()
    assert answer["usage"]["input_tokens_details"]["cached_tokens"] == 30
    assert {name: PLAIN[name] for name in ("id", "model", "completed_at")}.items() <= answer.items()
    assert (answer["created_at"], answer["metadata"], answer["temperature"]) == (int(NOW), {"a": "b"}, 0.5)
    assert answer["text"]["format"] == FORMAT


@pytest.mark.parametrize(
    ("limit", "context", "status"), [(5, 2048, "incomplete"), (6, 2048, "completed"), (9, 30, "completed")]
)
def test_an_answer_that_ends_at_a_limit_is_incomplete(limit: int, context: int, status: str) -> None:
    answer = Router().answer({"input": "x", "max_output_tokens": limit}, context=context)
    check_response(answer)
    assert (answer["status"], answer["output"][-1]["status"]) == (status, status)


def test_an_answer_that_fills_the_context_is_incomplete() -> None:
    told = {**PLAIN, "usage": {"input_tokens": 200, "output_tokens": 56}}
    assert Router().answer({"input": "x"}, told, context=250)["status"] == "incomplete"


# --- streams

STREAMED = (Path(__file__).parent / "data" / "responses-stream.txt").read_bytes()
"""As the current build writes reasoning, a text, and two calls."""


def read(data: bytes | bytearray) -> list[Body]:
    return [body for e in EventReader().feed(bytes(data)) if (body := e.json()) is not None]


@pytest.mark.parametrize("size", [1, 100, 10**6])
def test_a_stream_is_whole_wherever_it_is_cut(router: Router, size: int) -> None:
    translator = router.translator({"input": "x", "stream": True, "tools": [WEATHER]})
    pieces = [STREAMED[at : at + size] for at in range(0, len(STREAMED), size)]
    sent = b"".join(translator.feed(piece) for piece in pieces) + translator.end()
    assert translator.failure is None
    response = check_events(read(sent))
    assert [item["type"] for item in response["output"]] == [
        "reasoning",
        "message",
        "function_call",
        "function_call",
    ]
    assert response["status"] == "completed"
    names = [e.name for e in EventReader().feed(sent)]
    assert names == [body["type"] for body in read(sent)]


def test_a_beginning_that_is_told_again_and_again_is_told_once(router: Router) -> None:
    """By llama-server, with each piece of an answer whose first token is no whole character."""
    beginning = STREAMED[: STREAMED.index(b"event: response.output_item.added")]
    delta = b"event: response.output_text.delta"
    again = router.translator({"input": "x", "stream": True})
    once = router.translator({"input": "x", "stream": True})
    events = read(again.feed(STREAMED.replace(delta, beginning + delta)) + again.end())
    assert events == read(once.feed(STREAMED) + once.end())


def test_what_llama_server_said_in_a_stream_is_still_there(router: Router) -> None:
    """Every event of its, but for those that are told again with the end of their item."""
    translator = router.translator({"input": "x", "stream": True})
    given = read(translator.feed(STREAMED))
    for told in read(STREAMED):
        like = [body for body in given if body["type"] == told["type"]]
        assert any(_holds(body, told) for body in like), told


def _holds(found: object, told: object) -> bool:
    if isinstance(told, dict):
        rest = {name: value for name, value in told.items() if name != "created_at"}
        return isinstance(found, dict) and all(_holds(found.get(name), value) for name, value in rest.items())
    if isinstance(told, list):
        return isinstance(found, list) and all(map(_holds, found, told)) and len(found) == len(told)
    return found == told


def test_a_stream_that_breaks_off_fails_as_its_schema_says(router: Router) -> None:
    whole = STREAMED.split(b"event: response.output_text.done")[0]
    translator = router.translator({"input": "x", "stream": True})
    sent = translator.feed(whole) + translator.fail(ModelCrashed("it ended"))
    events = read(sent)
    assert [body["sequence_number"] for body in events] == list(range(len(events)))
    assert (events[-1]["type"], events[-1]["response"]["status"]) == ("response.failed", "failed")
    check_response(events[-1]["response"])
    assert events[-1]["response"]["error"] == {"code": "server_error", "message": "it ended"}
    assert events[-1]["error"] == ModelCrashed("it ended").body()["error"]  # SDKs raise it
    assert events[-1]["response"]["output"]
    with pytest.raises(NotFound):
        router.stored.find("", events[-1]["response"]["id"])


def test_before_a_response_has_begun_its_failure_is_an_error_event(router: Router) -> None:
    translator = router.translator({"input": "x", "stream": True})
    (body,) = read(translator.fail(ModelCrashed("it ended")))
    assert (body["type"], body["code"], body["sequence_number"]) == ("error", "model_crashed", 0)


ERROR = b'"error":{"code":500,"message":"Compute error.","type":"server_error"}'


@pytest.mark.parametrize(
    "ending", [b"data: {%b}\n\n" % ERROR, b'event: error\ndata: {"type":"error",%b}\n\n' % ERROR, b""]
)
def test_a_stream_that_llama_server_does_not_complete_has_failed(router: Router, ending: bytes) -> None:
    translator = router.translator({"input": "x", "stream": True})
    translator.feed(STREAMED.split(b"event: response.completed")[0] + ending)
    translator.end()
    assert isinstance(translator.failure, RouterError)
    assert (translator.failure.message == "Compute error.") == bool(ending)


MANY = [" abc" * 50_000, "\u00e9" * 100_000, "\U0001f600" * 70_000, "", '"\\' * 40_000]


def test_what_a_long_item_ends_with_is_written_in_pieces_wherever_its_end_comes(router: Router) -> None:
    """In another thread: a word of llama-server's that ends it is short."""
    translator = router.translator({"input": "x", "stream": True})
    item = {"id": "msg_1", "type": "message"}
    translator.feed(event({"type": "response.created", "response": {"id": "resp_1"}}))
    translator.feed(event({"type": "response.output_item.added", "item": item}))
    deltas = [{"type": "response.output_text.delta", "item_id": "msg_1", "delta": text} for text in MANY]
    told = read(translator.feed(b"".join(map(event, deltas))))
    assert [body["delta"] for body in told if "delta" in body] == MANY
    assert translator.waiting > MUCH_TEXT
    sent = translator.feed(event({"type": "response.completed", "response": {"id": "resp_1"}}))
    assert isinstance(sent, bytearray)
    assert translator.waiting == 0
    names = ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert [body["type"] for body in read(sent)] == [f"response.{name}" for name in names]
    assert sent.count(as_json("".join(MANY))) == len(names)


def test_a_translator_is_gone_with_its_answer(router: Router) -> None:
    """A collection comes seldom, and a circle would keep all of the text until then."""
    translator = router.translator({"input": "x", "stream": True})
    translator.feed(STREAMED)
    left = weakref.ref(translator._writer)  # type: ignore[attr-defined]
    del translator
    assert left() is None


def test_nothing_follows_the_end_of_a_response(router: Router) -> None:
    translator = router.translator({"input": "x", "stream": True})
    translator.feed(STREAMED.split(b"event: response.completed")[0])
    assert not translator.is_over
    translator.feed(b"event: response.completed" + STREAMED.split(b"event: response.completed")[1])
    assert translator.is_over
    assert translator.feed(event({"type": "response.in_progress"})) == b""
    assert translator.end() == translator.fail(ModelCrashed("late")) == b""


# --- stored responses


def test_a_conversation_goes_on_from_a_stored_response(router: Router) -> None:
    first = router.answer({"input": "a"})
    asked = router.asked({"input": "b", "previous_response_id": first["id"]})
    assert "previous_response_id" not in asked
    contents = [item["content"] for item in asked["input"]]
    assert contents == ["a", [{"type": "output_text", "annotations": [], "logprobs": [], "text": "Hi"}], "b"]
    second = router.answer(
        {"input": "b", "previous_response_id": first["id"]},
        {**PLAIN, "id": "resp_2", "output": [message("msg_2")]},
    )
    assert second["previous_response_id"] == first["id"]
    assert [i.get("content") for i in router.stored.find("", "resp_2").input_items()] == contents
    assert len(router.asked({"input": "c", "previous_response_id": "resp_2"})["input"]) == 5


def test_a_reference_stands_for_the_item(router: Router) -> None:
    router.answer({"input": "a"})
    for reference in ({"type": "item_reference", "id": "msg_1"}, {"id": "msg_1"}):
        assert router.asked({"input": [reference]})["input"] == [message()]


def test_an_item_of_an_answer_without_a_name_is_stored_under_a_new_one(router: Router) -> None:
    nameless = {name: value for name, value in message().items() if name != "id"}
    first = router.answer({"input": "a"}, {**PLAIN, "output": [nameless]})
    asked = router.asked({"input": "b", "previous_response_id": first["id"]})
    assert [item["content"] for item in asked["input"]] == ["a", message()["content"], "b"]


def test_a_stream_is_stored_too(router: Router) -> None:
    translator = router.translator({"input": "x", "stream": True})
    sent = read(translator.feed(STREAMED))
    translator.done()
    assert router.stored.find("", sent[-1]["response"]["id"]).body() == sent[-1]["response"]


def test_each_key_sees_its_own_responses_only(router: Router) -> None:
    router.answer({"input": "a"}, owner="me")
    for fields in (
        {"previous_response_id": "resp_1", "input": "x"},
        {"input": [{"type": "item_reference", "id": "msg_1"}]},
    ):
        router.ask(fields, owner="me")
        with pytest.raises(NotFound, match="not stored here for this key"):
            router.ask(fields, owner="you")


@pytest.mark.parametrize("limit", [0, OVERHEAD_BYTES])
def test_what_is_not_to_be_stored_is_not(limit: int) -> None:
    for router, fields in ((Router(limit), {}), (Router(), {"store": False})):
        answer = router.answer({"input": "a", **fields})
        assert answer["store"] == (limit > 0 and not fields)
        assert router.stored.used_bytes == 0
        with pytest.raises(NotFound):
            router.stored.find("", answer["id"])


def test_the_memory_is_bounded_and_what_was_used_last_stays() -> None:
    one = Router()
    one.answer({"input": "a" * 5000})
    size = one.stored.used_bytes
    router = Router(3 * size + 100)
    for name in "abcd":
        router.answer({"input": "a" * 5000}, {**PLAIN, "id": name, "output": [message(f"msg_{name}")]})
        router.stored.find("", "a")
    assert router.stored.used_bytes <= 3 * size + 100
    assert router.stored.item("", "msg_b") is None
    with pytest.raises(NotFound):
        router.stored.find("", "b")
    for name in "acd":
        router.stored.find("", name)
    router.stored.limit(size + 100)
    router.stored.find("", "a" if router.stored.item("", "msg_a") else "d")
    router.stored.limit(0)
    assert router.stored.used_bytes == 0


def test_a_deleted_response_is_gone(router: Router) -> None:
    router.answer({"input": "a"})
    router.stored.delete("", "resp_1")
    assert (router.stored.used_bytes, router.stored.item("", "msg_1")) == (0, None)
    with pytest.raises(NotFound):
        router.stored.delete("", "resp_1")


def test_tokens_are_counted_of_the_whole_conversation(router: Router) -> None:
    router.answer({"input": "a"})
    asked = TokensTranslation(router.stored).ask(incoming({"input": "b", "previous_response_id": "resp_1"}))
    assert (len(json.loads(asked.body)["input"]), asked.translator) == (3, None)


def test_what_is_stored_counts_in_the_memory_for_all_and_gives_way_to_requests() -> None:
    router = Router()
    memory, stored = router.memory, router.stored
    memory.reclaim_by(stored.free)
    for name in "ab":
        router.answer({"input": "a" * 5000}, {**PLAIN, "id": name, "output": [message(f"msg_{name}")]})
    assert memory.held == stored.used_bytes > 10_000
    memory.take(memory.limit - stored.used_bytes + 1)
    with pytest.raises(NotFound):
        stored.find("", "a")
    stored.find("", "b")
    stored.limit(0)
    assert stored.used_bytes == 0
    assert memory.held < memory.limit


def test_what_is_stored_anew_is_counted_once(router: Router) -> None:
    router.answer({"input": "a"})
    size = router.stored.used_bytes
    router.answer({"input": "a"})
    assert router.stored.used_bytes == router.memory.held == size


def test_a_short_request_cannot_refer_to_more_than_a_body_may_have(router: Router) -> None:
    router.answer({"input": "a"}, {**PLAIN, "output": [message(text="x" * 10_000)]})
    given = incoming({"input": [{"id": "msg_1"}] * 100})._replace(most_bytes=100_000)
    assert router.translation.size(given) > 1_000_000
    with pytest.raises(RequestTooLarge, match="refers to"):
        router.translation.ask(given)


def test_of_a_large_request_an_answer_repeats_what_is_short(router: Router) -> None:
    """60 MB of instructions went to their client three times."""
    tools = [{"type": "function", "name": "look", "parameters": {}, "strict": True, "description": None}]
    given = {"input": "x", "instructions": "a" * (MOST_ECHOED + 1), "tools": tools, "temperature": 0.5}
    answer = router.answer(given)
    assert (answer["instructions"], answer["tools"], answer["temperature"]) == (None, tools, 0.5)
    assert router.asked(given)["instructions"] == given["instructions"]
    short = {**given, "instructions": "be brief"}
    assert router.answer(short)["instructions"] == "be brief"
