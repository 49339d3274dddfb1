"""Many answers of real llama-servers, each of another request, as strict typed clients read them.

The suite records a few of each API; `RECORDED_ANSWERS=200` as many as that.
"""

from __future__ import annotations

import json
import os
import random
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

import pytest

from app.proxy.dialects.sse_format import EventReader
from tests import typed_models as typed
from tests.router_process import MakeRouter, RouterProcess
from tests.streams import pieces_of
from tests.tiny_models import THINKS, calling

ANSWERS = int(os.environ.get("RECORDED_ANSWERS", "20"))
"""Of each API."""

THOUGHT = 'root ::= [a-z ]{1,20} "</think>" [a-z ]{1,20} "\U0001f600" [a-z ]{1,20}'
SURE = {"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"]}
CITY = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
TEXTS = ("Hello", "Wie geht's?", "数を数えて", "\U0001f469 and a\ttab", '{"a": [1, 2]}', "x " * 60)
TOO_LONG = "the of and to " * 1000
ENDLESS = 100_000

Body = dict[str, Any]


class Kind(Enum):
    PLAIN = "an answer with an end of its own"
    LENGTH = "ends at the most tokens that were asked for"
    TOOLS = "calls of a tool"
    JSON = "by a schema"
    REASONING = "thinks before it answers"
    REFUSED = "an error instead of an answer"
    LEFT = "cancelled by its client"
    FAILED = "its process ends"


UNTOLD = {Kind.LEFT, Kind.FAILED}
"""Not streamed, nothing of it reaches its client, or it is answered by the next process."""

MODELS = {
    Kind.LENGTH: "long",
    Kind.TOOLS: "caller",
    Kind.REASONING: "thinks",
    Kind.LEFT: "long",
    Kind.FAILED: "long",
}

CASES = [(kind, stream) for stream in (True, False) for kind in Kind if stream or kind not in UNTOLD]


class Chat:
    path = "/v1/chat/completions"
    signs: ClassVar = {
        Kind.LENGTH: '"length"',
        Kind.TOOLS: '"tool_calls"',
        Kind.REASONING: '"reasoning_content"',
    }
    answer = staticmethod(typed.check_chat)
    error = staticmethod(typed.check_error)

    def body(self, kind: Kind, most: int, chance: random.Random) -> Body:
        asked = {chance.choice(("max_tokens", "max_completion_tokens")): most, "messages": talk(chance)}
        if chance.random() < 0.5:
            asked["stream_options"] = {"include_usage": True}
        if kind is Kind.PLAIN and chance.random() < 0.5:
            asked |= {"logprobs": True, "top_logprobs": 2}
        if kind is Kind.TOOLS:
            asked["tools"] = [{"type": "function", "function": {"name": "weather", "parameters": CITY}}]
            asked["tool_choice"] = "required"
        if kind is Kind.JSON:
            schema = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SURE}}
            asked["response_format"] = chance.choice((schema, {"type": "json_object", "schema": SURE}))
        return asked

    def events(self, events: list[Body]) -> None:
        self.beginning(events)
        assert [r for body in events for c in body["choices"] if (r := c["finish_reason"])], events[-1]

    def beginning(self, events: list[Body]) -> None:
        for body in events:
            typed.check_chunk(body)

    def failed(self, events: list[Body]) -> None:
        self.beginning(events[:-1])
        typed.check_error(events[-1])


class Responses:
    path = "/v1/responses"
    signs: ClassVar = {
        Kind.LENGTH: '"max_output_tokens"',
        Kind.TOOLS: '"function_call"',
        Kind.REASONING: '"reasoning_text"',
    }
    answer = staticmethod(typed.check_response)
    error = staticmethod(typed.check_error)
    events = staticmethod(typed.check_events)
    beginning = staticmethod(typed.check_first_events)

    def body(self, kind: Kind, most: int, chance: random.Random) -> Body:
        turns = talk(chance)
        asked: Body = {"max_output_tokens": most, "input": turns if len(turns) > 1 else turns[0]["content"]}
        if chance.random() < 0.5:
            asked |= {"instructions": "Be brief.", "metadata": {"a": "b"}, "user": "ann"}
        if kind is Kind.TOOLS:
            asked["tools"] = [{"type": "function", "name": "weather", "parameters": CITY}]
            one = {"type": "function", "name": "weather"}
            asked["tool_choice"] = chance.choice(("required", one))
        if kind is Kind.JSON:
            schema = {"type": "json_schema", "name": "answer", "schema": SURE, "strict": True}
            asked["text"] = {"format": chance.choice((schema, {"type": "json_object"}))}
        if kind is Kind.REASONING:
            asked["reasoning"] = {"effort": "low", "summary": "auto"}
        return asked

    def failed(self, events: list[Body]) -> None:
        assert typed.check_events(events)["status"] == "failed"


class Messages:
    path = "/v1/messages"
    signs: ClassVar = {Kind.LENGTH: '"max_tokens"', Kind.TOOLS: '"tool_use"', Kind.REASONING: '"thinking"'}
    answer = staticmethod(typed.check_message)
    error = staticmethod(typed.check_message_error)
    events = staticmethod(typed.check_message_events)
    beginning = staticmethod(typed.check_first_message_events)

    def body(self, kind: Kind, most: int, chance: random.Random) -> Body:
        asked: Body = {"max_tokens": most, "messages": talk(chance)}
        if chance.random() < 0.5:
            asked["system"] = [{"type": "text", "text": "Be brief."}]
        if kind is Kind.PLAIN and chance.random() < 0.5:
            asked["stop_sequences"] = ["a"]
        if kind is Kind.TOOLS:
            asked["tools"] = [{"name": "weather", "input_schema": CITY}]
            one = {"type": "tool", "name": "weather"}
            asked["tool_choice"] = chance.choice(({"type": "any"}, one))
        if kind is Kind.JSON:
            asked["output_config"] = {"format": {"type": "json_schema", "schema": SURE}}
        if kind is Kind.REASONING:
            asked["thinking"] = {"type": "enabled", "budget_tokens": 1024}
        return asked

    def failed(self, events: list[Body]) -> None:
        self.beginning(events[:-1])
        typed.check_message_error(events[-1])


Api = Chat | Responses | Messages
APIS = (Chat(), Responses(), Messages())


def talk(chance: random.Random) -> list[Body]:
    first = {"role": "user", "content": chance.choice(TEXTS)}
    turn = [{"role": "assistant", "content": chance.choice(TEXTS)}, {"role": "user", "content": "Again."}]
    return [first, *turn] if chance.random() < 0.3 else [first]


def request(api: Api, kind: Kind, chance: random.Random) -> Body:
    most = {Kind.LENGTH: chance.randint(1, 30), Kind.LEFT: ENDLESS, Kind.FAILED: ENDLESS}.get(kind, 100)
    model = chance.choice(("tiny", "tiny", "smollm2")) if kind is Kind.PLAIN else MODELS.get(kind, "tiny")
    temperature = chance.choice((0, 0.7, 1.3))
    # sampled from a whole vocabulary, some texts cannot be parsed by llama-server: its 500, not ours
    sampling = {
        "seed": chance.randrange(1000),
        "temperature": 0 if model == "smollm2" else temperature,
    }
    asked = {"model": model, **sampling, **api.body(kind, most, chance)}
    return asked | chance.choice(mistakes(api)) if kind is Kind.REFUSED else asked


def mistakes(api: Api) -> list[Body]:
    talk = "input" if isinstance(api, Responses) else "messages"
    return [
        {"model": "nobody"},
        {"model": "broken"},
        {talk: [{"role": "user", "content": TOO_LONG}]},
        {talk: [5]},
        {"temperature": "warm"},
    ]


@pytest.fixture(scope="module")
def router(
    make_shared_router: MakeRouter, tiny_gguf: Path, tiny_long_gguf: Path, smollm2: Path, garbage_gguf: Path
) -> RouterProcess:
    small: Body = {"params": {"n_ctx": 1024}}
    return make_shared_router(
        {
            "tiny": {"model_path": tiny_gguf, **small},
            "caller": {"model_path": tiny_gguf, **small, "extra_args": calling()},
            "thinks": {
                "model_path": tiny_gguf,
                "params": {"n_ctx": 1024, "chat_template": THINKS},
                "extra_args": ["--grammar", THOUGHT],
            },
            "smollm2": {"model_path": smollm2, **small},
            "long": {
                "model_path": tiny_long_gguf,
                "params": {"n_ctx": 131072},
                "extra_args": ["--ignore-eos"],
            },
            "broken": {"model_path": garbage_gguf},
        },
        system={"max_concurrent_models": 5},
    )


@pytest.mark.parametrize("number", range(ANSWERS))
@pytest.mark.parametrize("api", APIS, ids=lambda api: type(api).__name__)
async def test_a_recorded_answer_has_no_missing_and_no_wrong_field(
    router: RouterProcess, api: Api, number: int
) -> None:
    kind, stream = CASES[number % len(CASES)]
    body = request(api, kind, random.Random(f"{api.path} {number}"))
    status, text = await record(router, api.path, {**body, "stream": stream}, kind)
    said = f"{kind.name} {body}"[:2000] + f"\n{status} {text[-2000:]}"
    assert (status >= 400) == (kind is Kind.REFUSED), said
    assert api.signs.get(kind, "") in text, said
    if kind is Kind.REFUSED:
        api.error(json.loads(text))
    elif not stream:
        api.answer(json.loads(text))
    else:
        events = [read for e in EventReader().feed(text.encode()) if (read := e.json()) is not None]
        {Kind.LEFT: api.beginning, Kind.FAILED: api.failed}.get(kind, api.events)(events)


async def record(router: RouterProcess, path: str, body: Body, kind: Kind) -> tuple[int, str]:
    """As much as its client reads."""
    text = ""
    async with router.open_client() as http, http.stream("POST", path, json=body) as answer:
        async for piece in pieces_of(answer):
            if kind is Kind.FAILED and not text:
                router.eject("long")
            text += piece
            if kind is Kind.LEFT and len(text) > 3000:
                break
    return answer.status_code, text
