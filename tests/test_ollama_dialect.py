"""Ollama's API in llama-server's words, and llama-server's answers in Ollama's. No sockets."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from app.domain.config_types import Heartbeats
from app.domain.errors import BadRequest, RouterError
from app.domain.model_spec import ModelSpec
from app.gguf.model_card import ModelCard
from app.llama.llama_server_errors import read_error
from app.proxy.dialects.ollama.chat_and_generate import ChatTranslation, GenerateTranslation
from app.proxy.dialects.ollama.embeddings import EmbeddingsTranslation, EmbedTranslation
from app.proxy.dialects.ollama.keep_alive_field import keep_alive
from app.proxy.dialects.ollama.ollama_errors import OLLAMA
from app.proxy.dialects.sse_format import event
from app.proxy.dialects.translation_interface import Asked, Incoming, Times, Told, Translator
from tests.fakes import World

Body = dict[str, Any]
NOW = 1_764_256_509.0
TIMINGS = {"cache_n": 3, "prompt_n": 9, "prompt_ms": 40.0, "predicted_n": 5, "predicted_ms": 100.0}
SPEC = World({"m": 1}).manager.fleet.find("m").spec
PNG = "iVBORw0KGgo="
CARD = ModelCard(
    architecture="llama", vocab_type=2, n_vocab=500, n_ctx_train=4096, n_embd=2, n_params=9, size=9,
    ftype=None, tags=(), tools=False, thinking=False, infill=False, vision=False, audio=False, file_size=9,
)  # fmt: skip


class Api:
    """One endpoint for a model that can do everything, unless `card` says otherwise."""

    def __init__(self, kind: Any, **card: bool) -> None:
        able = {"tools": True, "thinking": True, "infill": True, **card}
        self.card: ModelCard = replace(CARD, **able)  # type: ignore[arg-type]
        takes_card = issubclass(kind, (ChatTranslation, GenerateTranslation))
        self.translation = kind(lambda _: self.card) if takes_card else kind()

    def ask(self, body: Mapping[str, Any], *, spec: ModelSpec = SPEC, **more: Any) -> Asked | Told:
        fields = self.translation.fields({"model": "M:latest", **body})
        incoming = Incoming(fields, b"", "", spec, fields["stream"], NOW, **more)
        found: Asked | Told = self.translation.ask(incoming)
        return found

    def asked(self, body: Mapping[str, Any]) -> Body:
        """What llama-server gets."""
        found = self.ask(body)
        assert isinstance(found, Asked)
        fields: Body = json.loads(bytes(found.body))
        return fields

    def translator(self, body: Mapping[str, Any]) -> Translator:
        found = self.ask(body)
        assert isinstance(found, Asked)
        assert found.translator is not None
        return found.translator(Times(lambda: 107.0, 100.0, 102.5))

    def answer(self, body: Mapping[str, Any], told: Body) -> Body:
        """What a client without a stream gets."""
        whole = self.translator(body).whole(json.dumps(told).encode())
        assert not isinstance(whole, Asked)
        found: Body = json.loads(whole)
        return found

    def lines(self, body: Mapping[str, Any], *events: Body) -> list[Body]:
        """What a client with a stream gets, however its pieces were cut."""
        text = b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events)
        translator = self.translator(body)
        found = b"".join(translator.feed(text[at : at + 7]) for at in range(0, len(text), 7))
        found += translator.end()
        if translator.failure is not None:
            found += translator.fail(translator.failure)
        return [json.loads(line) for line in found.splitlines()]


CHAT, GENERATE = Api(ChatTranslation), Api(GenerateTranslation)
EMBED, EMBEDDINGS = Api(EmbedTranslation), Api(EmbeddingsTranslation)
HI = {"messages": [{"role": "user", "content": "Hi"}]}
PROMPT = {"prompt": "Hi"}


def delta(reason: str | None = None, **message: Any) -> Body:
    event: Body = {"choices": [{"index": 0, "delta": message, "finish_reason": reason}]}
    return event | ({} if reason is None else {"timings": TIMINGS})


def test_a_stream_is_over_with_its_line_that_is_done() -> None:
    translator = CHAT.translator(HI)
    translator.feed(event(delta(content="Hi")))
    assert not translator.is_over
    assert b'"done":true' in translator.feed(event(delta("stop")))
    assert translator.is_over


# --- what is asked


def test_a_chat_is_asked_in_openais_words() -> None:
    asked = CHAT.asked({"messages": [{"role": "User", "content": "Hi", "images": [PNG]}, {"role": "system"}]})
    assert (asked["model"], asked["stream"]) == ("m", True)
    first, second = asked["messages"]
    assert first["role"] == "user"
    assert first["content"] == [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
        {"type": "text", "text": "Hi"},
    ]
    assert second == {"role": "system", "content": ""}


def test_fields_are_found_in_any_case_and_null_is_nothing() -> None:
    asked = CHAT.asked({"Messages": [{"Role": "user", "CONTENT": "Hi"}], "STREAM": False, "think": None})
    assert asked == {"model": "m", "stream": False, "messages": [{"role": "user", "content": "Hi"}]}


def test_options_have_llama_servers_names() -> None:
    options = {
        "temperature": 0.5, "top_k": 40.9, "top_p": 1, "min_p": 0.1, "typical_p": 0.2, "repeat_last_n": 3,
        "repeat_penalty": 1.1, "presence_penalty": 0.3, "frequency_penalty": 0.4, "seed": 7, "stop": ["a"],
        "num_keep": 4, "num_predict": 5, "num_gpu": 1, "mirostat": 2, "use_mmap": True, "num_batch": None,
    }  # fmt: skip
    asked = CHAT.asked(HI | {"options": options})
    assert {name: value for name, value in asked.items() if name not in ("model", "messages", "stream")} == {
        "temperature": 0.5, "top_k": 40, "top_p": 1, "min_p": 0.1, "typical_p": 0.2, "repeat_last_n": 3,
        "repeat_penalty": 1.1, "presence_penalty": 0.3, "frequency_penalty": 0.4, "seed": 7, "stop": ["a"],
        "n_keep": 4, "n_predict": 5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({"repeat_last_n": -1}, {"repeat_last_n": SPEC.params.n_ctx}),
        ({"repeat_last_n": 0}, {"repeat_last_n": 0}),
        ({"top_k": 2**40, "num_keep": -(10**400)}, {"top_k": 2**31 - 1, "n_keep": 1 - 2**31}),
        ({"num_predict": 1e300}, {"n_predict": 2**31 - 1}),
        ({"seed": 2**32 + 7}, {"seed": 7}),
        ({"seed": -7}, {}),
    ],
)
def test_numbers_that_llama_server_would_refuse_are_told_as_it_has_them(given: Body, asked: Body) -> None:
    body = CHAT.asked(HI | {"options": given})
    assert {name: body[name] for name in body.keys() - {"model", "messages", "stream"}} == asked


@pytest.mark.parametrize("nothing", [0, -1, -2])
def test_a_limit_of_nothing_is_none(nothing: int) -> None:
    assert "n_predict" not in CHAT.asked(HI | {"options": {"num_predict": nothing, "seed": -1}})


@pytest.mark.parametrize(
    ("options", "limit", "is_told"),
    [({"num_ctx": 100}, 100, False), ({"num_ctx": 100, "num_predict": 50}, 50, False),
     ({"num_ctx": 4096}, None, False), ({"num_ctx": 8192}, None, True)],
)  # fmt: skip
def test_a_smaller_context_ends_the_answer_and_a_larger_one_cannot_be_had(
    options: Body, limit: int | None, is_told: bool
) -> None:
    body = HI | {"options": options}
    assert CHAT.asked(body).get("n_predict") == limit
    assert ("num_ctx" in CHAT.lines(body, delta("stop"))[-1].get("note", "")) is is_told


@pytest.mark.parametrize(
    ("given", "asked"),
    [("json", {"type": "object"}), ({"type": "array"}, {"type": "array"}), ({}, {}), ("", None)],
)
def test_a_format_is_obeyed(given: Any, asked: Any) -> None:
    found = CHAT.asked(HI | {"format": given}).get("response_format")
    assert found == (None if asked is None else {"type": "json_schema", "json_schema": {"schema": asked}})
    assert GENERATE.asked(PROMPT | {"format": given, "raw": True}).get("json_schema") == asked


@pytest.mark.parametrize(
    ("think", "asked"),
    [(True, {"enable_thinking": True}), (False, {"enable_thinking": False}), (None, None),
     ("low", {"enable_thinking": True, "reasoning_effort": "low"}),
     ("max", {"enable_thinking": True, "reasoning_effort": "high"})],
)  # fmt: skip
def test_thinking_is_switched_as_templates_know_it(think: object, asked: Body | None) -> None:
    assert CHAT.asked(HI | {"think": think}).get("chat_template_kwargs") == asked


def test_tools_and_what_they_answered_are_told() -> None:
    call = {"function": {"name": "f", "arguments": {"a": 1}}}
    asked = CHAT.asked({
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "messages": [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [call, {**call, "id": "x"}]},
            {"role": "tool", "tool_name": "f", "content": "22"},
            {"role": "tool", "content": "23", "tool_call_id": "y"},
        ],
    })  # fmt: skip
    _, said, answer, other = asked["messages"]
    assert said["reasoning_content"] == "hm"
    assert [c["function"] for c in said["tool_calls"]] == [{"name": "f", "arguments": '{"a":1}'}] * 2
    assert said["tool_calls"][1]["id"] == "x"
    assert answer == {"role": "tool", "content": "22", "tool_call_id": "x", "name": "f"}
    assert other["tool_call_id"] == "y"
    assert asked["tools"] == [{"type": "function", "function": {"name": "f"}}]
    assert CHAT.asked(HI | {"tools": [{"function": {"name": "f"}}]})["tools"] == asked["tools"]
    assert "tools" not in CHAT.asked(HI | {"tools": []})


def test_a_prompt_is_a_turn_of_a_chat_unless_it_is_raw() -> None:
    turn = GENERATE.ask(PROMPT | {"system": "Be kind."})
    assert isinstance(turn, Asked)
    assert turn.path == "/v1/chat/completions"
    assert json.loads(turn.body)["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
    ]
    raw = GENERATE.ask(PROMPT | {"raw": True})
    assert isinstance(raw, Asked)
    assert (raw.path, json.loads(raw.body)["prompt"]) == ("/completion", "Hi")
    infill = GENERATE.ask(PROMPT | {"suffix": "!"})
    assert isinstance(infill, Asked)
    assert (infill.path, json.loads(infill.body)["input_suffix"]) == ("/infill", "!")


def test_a_context_goes_on_where_an_answer_ended() -> None:
    answer = {"choices": [{"message": {"content": "Hello, Bob 🙂"}, "finish_reason": "stop"}]}
    first = GENERATE.answer({"prompt": "I am Bob.", "stream": False}, answer)
    assert all(type(number) is int and 0 <= number < 2**31 for number in first["context"])
    asked = GENERATE.asked({"prompt": "Who am I?", "context": first["context"]})
    assert [m["content"] for m in asked["messages"]] == ["I am Bob.", "Hello, Bob 🙂", "Who am I?"]
    for foreign in ([1, 4093, 198], [], [first["context"][0], 5, -1], first["context"][:3],
                    [5, *first["context"][1:]]):  # fmt: skip
        assert len(GENERATE.asked({"prompt": "?", "context": foreign})["messages"]) == 1


def test_a_context_has_all_of_an_answer_of_many_short_pieces() -> None:
    translator = GENERATE.translator({"prompt": "hi"})
    pieces = b"".join(b'data: {"choices":[{"delta":{"content":"%d "}}]}\n\n' % n for n in range(10_000))
    last = translator.feed(pieces + b'data: {"choices":[{"finish_reason":"stop","delta":{}}]}\n\n')
    context = json.loads(last.splitlines()[-1])["context"]
    messages = GENERATE.asked({"prompt": "on", "context": context})["messages"]
    assert messages[1]["content"] == "".join(f"{n} " for n in range(10_000))


def test_a_very_long_conversation_has_no_context() -> None:
    answer = {"choices": [{"message": {"content": "a" * 400_000}, "finish_reason": "stop"}]}
    assert "context" not in GENERATE.answer(PROMPT, answer)
    short = {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]}
    assert "context" not in GENERATE.answer({"prompt": "a" * 400_000}, short)
    assert len(GENERATE.asked(PROMPT | {"context": [1] * 300_000})["messages"]) == 1


# --- loads and ends of loads


@pytest.mark.parametrize(
    ("api", "fields"), [(CHAT, {"messages": []}), (CHAT, {}), (GENERATE, {"prompt": ""})]
)
def test_who_asks_for_nothing_has_the_model_loaded_or_let_go(api: Api, fields: Body) -> None:
    coming = api.ask(fields)
    assert isinstance(coming, Asked)
    assert (coming.path, coming.stream) == ("/tokenize", False)
    assert api.answer(fields, {"tokens": []})["done_reason"] == "load"
    for more, reason in (({"is_loaded": True}, "load"), ({"ttl_s": 0.0}, "unload")):
        told = api.ask(fields, **more)
        assert isinstance(told, Told)
        answer = json.loads(told.body)
        assert (answer["model"], answer["done"], answer["done_reason"]) == ("M:latest", True, reason)
        assert answer.get("message", {"content": ""})["content"] == answer.get("response", "")


def test_a_request_that_says_nothing_of_it_leaves_the_time_a_model_stays_as_it_is() -> None:
    for api, body in (
        (CHAT, HI), (CHAT, {}), (CHAT, HI | {"_debug_render_only": True}), (GENERATE, PROMPT),
        (GENERATE, PROMPT | {"raw": True}), (EMBED, {"input": "a"}), (EMBEDDINGS, PROMPT),
    ):  # fmt: skip
        found = api.ask(body)
        assert isinstance(found, Asked)
        assert found.keeps_ttl


@pytest.mark.parametrize(
    ("given", "seconds"),
    [(None, None), (5, 5.0), (1.5, 1.5), (-1, -1.0), ("0", 0.0), ("0s", 0.0), ("-0", 0.0), ("10m", 600.0),
     ("1h30m", 5400.0), ("-1s", -1.0), ("+5m", 300.0), (".5s", 0.5), ("1.h", 3600.0), ("500ms", 0.5),
     ("2us", 2e-6), ("3\u00b5s", 3e-6), ("4ns", 4e-9)],
)  # fmt: skip
def test_durations_are_read_as_go_reads_them(given: object, seconds: float | None) -> None:
    assert keep_alive(given) == seconds
    assert CHAT.ask(HI | {"keep_alive": given})


@pytest.mark.parametrize(
    ("given", "text"),
    [("", 'invalid duration ""'), ("abc", 'invalid duration "abc"'), ("30", 'missing unit in duration "30"'),
     ("1h30", 'missing unit in duration "1h30"'), ("1d", 'unknown unit "d" in duration "1d"'),
     (" 5m", 'invalid duration " 5m"'), ("5m ", 'unknown unit "m " in'), ("-", "invalid duration"),
     ("\u0661s", "invalid duration"), ("1" * 65 + "s", "invalid duration"), (True, "Unsupported type"),
     ([], "Unsupported type"), ({}, "Unsupported type")],
)  # fmt: skip
def test_what_go_would_not_read_is_refused(given: object, text: str) -> None:
    with pytest.raises(BadRequest, match=re.escape(text)):
        CHAT.ask(HI | {"keep_alive": given})


# --- answers


def test_an_answer_comes_in_lines_and_the_last_one_counts() -> None:
    lines = CHAT.lines(
        HI, delta(role="assistant", content=None), delta(content="Hel"), delta(content="lo"), delta("length")
    )
    assert [line["message"] for line in lines] == [
        {"role": "assistant", "content": "Hel"},
        {"role": "assistant", "content": "lo"},
        {"role": "assistant", "content": ""},
    ]
    assert [line["done"] for line in lines] == [False, False, True]
    assert {line["model"] for line in lines} == {"M:latest"}
    last = lines[-1]
    assert last.pop("created_at") == "2025-11-27T15:15:16.000000000Z"
    assert {name: value for name, value in last.items() if name not in ("model", "message", "done")} == {
        "done_reason": "length",
        "total_duration": 7_000_000_000,
        "load_duration": 2_500_000_000,
        "prompt_eval_count": 12,
        "prompt_eval_duration": 40_000_000,
        "eval_count": 5,
        "eval_duration": 100_000_000,
    }


def test_what_a_model_thinks_stands_apart() -> None:
    lines = CHAT.lines(HI, delta(reasoning_content="hm"), delta(content="Yes"), delta("stop"))
    assert lines[0]["message"] == {"role": "assistant", "content": "", "thinking": "hm"}
    assert "thinking" not in lines[1]["message"]
    lines = GENERATE.lines(PROMPT, delta(reasoning_content="hm"), delta("stop"))
    assert (lines[0]["response"], lines[0]["thinking"]) == ("", "hm")


def part(index: int, arguments: str, **more: str) -> Body:
    name = {"name": more.pop("name")} if "name" in more else {}
    return {"index": index, "function": {**name, "arguments": arguments}, **more}


def test_parts_of_a_call_may_lack_anything() -> None:
    """Of its function, its name and its arguments llama-server sends in a part what there is."""
    lines = CHAT.lines(
        HI,
        delta(tool_calls=[{"index": 0, "id": "a", "function": {"name": "f", "arguments": None}}]),
        delta(tool_calls=[{"index": 0}]),
        delta(tool_calls=[{"index": 0, "id": None, "function": {"name": None, "arguments": '{"x":1}'}}]),
        delta("tool_calls"),
    )
    call = {"id": "a", "function": {"index": 0, "name": "f", "arguments": {"x": 1}}}
    assert [line["message"].get("tool_calls") for line in lines] == [[call], None]


def test_calls_come_whole_with_their_arguments_as_an_object() -> None:
    lines = CHAT.lines(
        HI,
        delta(tool_calls=[part(0, "", name="f", id="a")]),
        delta(tool_calls=[part(0, '{"city":')]),
        delta(tool_calls=[part(0, '"Rome"}')]),
        delta(tool_calls=[part(1, "{}", name="g", id="b")]),
        delta("tool_calls"),
    )
    assert [line["message"].get("tool_calls") for line in lines] == [
        [{"id": "a", "function": {"index": 0, "name": "f", "arguments": {"city": "Rome"}}}],
        [{"id": "b", "function": {"index": 1, "name": "g", "arguments": {}}}],
        None,
    ]
    assert (lines[-1]["done"], lines[-1]["done_reason"]) == (True, "stop")
    cut = CHAT.lines(HI, delta(tool_calls=[part(0, '{"city":', name="f", id="a")]), delta("length"))
    assert cut[0]["message"]["tool_calls"][0]["function"]["arguments"] == {}
    calls = [{"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}]
    answer = CHAT.answer(
        HI, {"choices": [{"message": {"content": None, "tool_calls": calls}, "finish_reason": "tool_calls"}]}
    )
    assert answer["message"]["tool_calls"][0]["function"]["arguments"] == {"x": 1}
    several = [{**calls[0], "id": id_} for id_ in "abc"]
    answer = CHAT.answer(
        HI, {"choices": [{"message": {"tool_calls": several}, "finish_reason": "tool_calls"}]}
    )
    assert [call["id"] for call in answer["message"]["tool_calls"]] == ["a", "b", "c"]
    assert (answer["message"]["content"], answer["done_reason"]) == ("", "stop")


def test_plain_text_is_told_by_its_own_events() -> None:
    raw = PROMPT | {"raw": True}
    ended = {"content": "", "stop": True, "stop_type": "limit", "timings": TIMINGS}
    lines = GENERATE.lines(raw, {"content": "a", "stop": False}, {"content": "b", "stop": False}, ended)
    assert [line["response"] for line in lines] == ["a", "b", ""]
    assert (lines[-1]["done_reason"], lines[-1]["eval_count"]) == ("length", 5)
    assert "context" not in lines[-1]
    assert GENERATE.answer(raw, {"content": "ab", "stop": True, "stop_type": "eos"})["done_reason"] == "stop"


def test_probabilities_stand_beside_their_tokens() -> None:
    token = {"id": 5, "token": "a", "bytes": [97], "logprob": -0.1, "top_logprobs": [{"id": 5, "token": "a"}]}
    asked = CHAT.asked(HI | {"logprobs": True, "top_logprobs": 2})
    assert (asked["logprobs"], asked["top_logprobs"]) == (True, 2)
    event = delta(content="a")
    event["choices"][0]["logprobs"] = {"content": [token]}
    expected = [{"token": "a", "bytes": [97], "logprob": -0.1, "top_logprobs": [{"token": "a"}]}]
    wanted = HI | {"logprobs": True}
    assert CHAT.lines(wanted | {"top_logprobs": 2}, event, delta("stop"))[0]["logprobs"] == expected
    alone = CHAT.lines(wanted, event, delta("stop"))[0]["logprobs"]
    assert alone == [{"token": "a", "bytes": [97], "logprob": -0.1}]
    assert CHAT.asked(wanted)["top_logprobs"] == 1, "for none llama-server tells no probabilities at all"


def test_an_error_in_a_stream_is_a_line_and_there_is_no_last_one() -> None:
    lines = CHAT.lines(HI, delta(content="a"), {"error": {"code": 500, "message": "Compute error."}})
    assert lines[-1] == {"error": "Compute error."}
    assert [line.get("done") for line in lines] == [False, None]


def test_a_stream_that_ends_too_early_says_so() -> None:
    assert "error" in CHAT.lines(HI, delta(content="a"))[-1]


def test_nothing_is_sent_while_one_waits() -> None:
    assert [OLLAMA.heartbeat(kind, "loading") for kind in Heartbeats] == [b""] * len(Heartbeats)
    assert OLLAMA.last_event(RouterError("no")) == b'{"error":"no"}\n'


# --- vectors


def test_vectors_come_in_their_order_with_the_count_of_tokens() -> None:
    asked = EMBED.asked({"input": ["a", "b"], "stream": True})
    assert (asked["input"], asked["encoding_format"]) == (["a", "b"], "float")
    told = {"data": [{"index": 1, "embedding": [0.0, 1.0]}, {"index": 0, "embedding": [0.6, 0.8]}],
            "usage": {"prompt_tokens": 4}}  # fmt: skip
    answer = EMBED.answer({"input": ["a", "b"]}, told)
    assert answer["embeddings"] == [[0.6, 0.8], [0.0, 1.0]]
    assert (answer["model"], answer["prompt_eval_count"]) == ("M:latest", 4)
    assert answer["total_duration"] > answer["load_duration"] > 0
    assert EMBED.answer({"input": "a", "dimensions": 1}, told)["embeddings"] == [[1.0], [0.0]]
    assert EMBED.answer({"input": "a", "dimensions": 9}, told)["embeddings"] == [[0.6, 0.8], [0.0, 1.0]]
    assert EMBEDDINGS.answer(PROMPT, told) == {"embedding": [0.6, 0.8]}


def test_nothing_to_embed_loads_the_model() -> None:
    nothing: Body
    for nothing in ({}, {"input": ""}, {"input": []}):
        assert EMBED.answer(nothing, {}) == {"model": "M:latest", "embeddings": []}
    assert EMBEDDINGS.answer({"prompt": ""}, {}) == {"embedding": []}


# --- what is wrong with a request


@pytest.mark.parametrize(
    ("api", "body", "status", "text"),
    [
        (CHAT, {"model": ""}, 400, "model is required"),
        (GENERATE, {"model": ""}, 404, "model '' not found"),
        (CHAT, {"model": 5}, 400, "model"),
        (CHAT, {"messages": "x"}, 400, "messages"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            400,
            r"messages\[0\].content",
        ),
        (
            CHAT,
            {"messages": [{"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]},
            400,
            "object",
        ),
        (CHAT, HI | {"options": {"temperature": "hot"}}, 500, 'option "temperature" must be of type float32'),
        (CHAT, HI | {"options": {"num_ctx": True}}, 500, 'option "num_ctx" must be of type integer'),
        (CHAT, HI | {"options": {"stop": "x"}}, 500, 'option "stop" must be of type array'),
        (CHAT, HI | {"options": {"use_mmap": 1}}, 500, "boolean"),
        (CHAT, HI | {"options": {"top_p": math.inf}}, 500, 'option "top_p" must be of type float32'),
        (CHAT, HI | {"options": {"num_ctx": -math.inf}}, 500, 'option "num_ctx" must be of type integer'),
        (CHAT, HI | {"format": "xml"}, 500, 'invalid format: "xml"'),
        (CHAT, HI | {"format": []}, 500, "invalid format"),
        (CHAT, HI | {"format": True}, 500, "invalid format: true"),
        (CHAT, HI | {"options": []}, 400, "'options' must be an object"),
        (CHAT, HI | {"tools": {}}, 400, "'tools' must be a list"),
        (CHAT, HI | {"truncate": "x"}, 400, "'truncate' must be true or false"),
        (GENERATE, PROMPT | {"raw": 1}, 400, "'raw' must be true or false"),
        (EMBED, {"input": "a", "truncate": 1}, 400, "'truncate' must be true or false"),
        (CHAT, HI | {"think": "huge"}, 400, 'invalid think value: "huge"'),
        (CHAT, HI | {"think": []}, 400, r"invalid think value: \[\]"),
        (CHAT, HI | {"top_logprobs": 21}, 400, "between 0 and 20"),
        (CHAT, HI | {"keep_alive": "-1"}, 400, 'missing unit in duration "-1"'),
        (GENERATE, PROMPT | {"template": "{{ x }}"}, 400, "template"),
        (GENERATE, PROMPT | {"raw": True, "system": "x"}, 400, "raw mode does not support"),
        (GENERATE, PROMPT | {"images": ["AA*A"]}, 400, "illegal base64 data at input byte 2"),
        (GENERATE, PROMPT | {"images": [PNG], "raw": True}, 400, "images"),
        (GENERATE, PROMPT | {"images": [PNG], "suffix": "x"}, 400, "images"),
        (GENERATE, PROMPT | {"think": "huge", "raw": True}, 400, "invalid think value"),
        (GENERATE, PROMPT | {"context": ["a"]}, 400, "context"),
        (EMBED, {"input": 5}, 400, "invalid input type"),
        (EMBED, {"input": "a", "dimensions": "x"}, 400, "dimensions"),
    ],
)
def test_a_mistake_has_the_status_that_clients_know(api: Api, body: Body, status: int, text: str) -> None:
    with pytest.raises(RouterError, match=text) as found:
        api.ask(body)
    assert (found.value.status, found.value.retryable) == (status, False)


def test_what_a_model_cannot_do_is_refused_before_it_is_loaded() -> None:
    chat = Api(ChatTranslation, tools=False, thinking=False)
    body: Body
    for body in ({"tools": [{}]}, {"think": True}, {"think": "low"}):
        with pytest.raises(BadRequest, match='"M:latest" does not support'):
            chat.ask(HI | body)
    chat.ask(HI | {"think": False, "tools": []})
    with pytest.raises(BadRequest, match="does not support insert"):
        Api(GenerateTranslation, infill=False).ask(PROMPT | {"suffix": "x"})
    for more in ({"raw": True}, {"suffix": "x"}):
        with pytest.raises(BadRequest, match="does not support thinking"):
            Api(GenerateTranslation, thinking=False).ask(PROMPT | {"think": True} | more)


# --- prompts that are too long


def too_long(tokens: int, context: int) -> RouterError:
    told = {"code": 400, "message": "too long", "type": "exceed_context_size_error"}
    return read_error(
        json.dumps({"error": {**told, "n_prompt_tokens": tokens, "n_ctx": context}}).encode(), 400
    )


def shortened(api: Api, body: Body, tokens: int, context: int) -> Body | None:
    asked = api.ask(body)
    assert isinstance(asked, Asked)
    assert asked.again is not None
    again = asked.again(too_long(tokens, context), asked.body)
    assert not isinstance(again, Asked)
    return None if again is None else json.loads(again)


def talk(*sizes: int) -> list[Body]:
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": f"{n}" * size} for n, size in enumerate(sizes)]


def test_the_oldest_messages_go_until_there_is_room_and_a_user_begins() -> None:
    body = {"messages": [{"role": "system", "content": "s"}, *talk(400, 400, 400, 400, 100)]}
    found = shortened(CHAT, body, 480, 500)
    assert found is not None
    assert [m["content"][0] for m in found["messages"]] == ["s", "2", "3", "4"]
    found = shortened(CHAT, body, 2000, 200)
    assert found is not None
    assert [m["content"][0] for m in found["messages"]] == ["s", "4"]


def test_of_the_last_message_the_end_stays() -> None:
    text = "".join(chr(97 + n % 26) for n in range(1000))
    found = shortened(CHAT, {"messages": [{"role": "user", "content": text}]}, 1010, 512)
    assert found is not None
    kept = found["messages"][0]["content"]
    assert text.endswith(kept)
    assert 240 < len(kept) < 270
    found = shortened(GENERATE, {"prompt": text, "raw": True}, 1010, 512)
    assert found is not None
    assert text.endswith(found["prompt"])


def test_it_is_not_tried_for_ever_and_not_for_other_errors() -> None:
    asked = CHAT.ask({"messages": [{"role": "user", "content": "a" * 100_000}]})
    assert isinstance(asked, Asked)
    assert asked.again is not None
    tries = 0
    while asked.again(too_long(10_000, 9_999), asked.body) is not None:
        tries += 1
    assert tries == 8
    other = CHAT.ask(HI)
    assert isinstance(other, Asked)
    assert other.again is not None
    assert other.again(BadRequest("no"), other.body) is None
    unwanted = CHAT.ask(HI | {"truncate": False})
    assert isinstance(unwanted, Asked)
    assert unwanted.again is None


def test_that_a_text_to_embed_is_too_long_is_read_from_what_llama_server_says() -> None:
    said = "input (600 tokens) is too large to process. increase the physical batch size "
    said += "(current batch size: 512)"
    error = read_error(
        json.dumps({"error": {"code": 500, "message": said, "type": "server_error"}}).encode(), 500
    )
    assert (error.status, error.code) == (400, "context_length_exceeded")
    assert (error.details["n_prompt_tokens"], error.details["n_ctx"]) == (600, 512)
