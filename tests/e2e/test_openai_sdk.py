"""The real OpenAI SDK against the router: what its users see, errors included."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.router_process import MakeRouter, RouterProcess

ASKED = "Which city is the capital of France?"
QUESTION: list[Any] = [{"role": "user", "content": ASKED}]
ANEW = {"cache_prompt": False}
"""What was cached comes out of other kernels than what is computed, and may tip a greedy choice."""


@pytest.fixture(scope="module")
def router(
    make_shared_router: MakeRouter, smollm2: Path, tiny_gguf: Path, garbage_gguf: Path
) -> RouterProcess:
    embedding = {"n_ctx": 512, "embedding": True, "pooling": "mean"}
    return make_shared_router(
        {
            "smollm2": {"model_path": smollm2, "aliases": ["gpt-4o-mini"], "params": {"n_ctx": 1024}},
            "smollm2-embed": {"model_path": smollm2, "params": embedding},
            "org/tiny:latest": {"model_path": tiny_gguf},
            "garbage": {"model_path": garbage_gguf},
        }
    )


@pytest.fixture(scope="module")
def sdk(router: RouterProcess) -> Iterator[openai.OpenAI]:
    with client(router) as sdk:
        yield sdk


@pytest.fixture
def past_the_router(router: RouterProcess) -> Iterator[openai.OpenAI]:
    """The same SDK on the llama-server itself: what it says there is the right answer, on any machine."""
    router.load("smollm2")
    url, key = router.past_the_router("smollm2")
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60) as sdk:
        yield sdk


def client(router: RouterProcess, key: str = "unused") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{router.url}/v1", api_key=key, max_retries=0, timeout=60)


def assert_a_sentence(text: str | None) -> None:
    assert text and len(re.findall(r"[A-Za-z]+", text)) >= 4, text


def test_smollm2_answers_with_its_own_sentence(sdk: openai.OpenAI, past_the_router: openai.OpenAI) -> None:
    answer, own = (
        asked.chat.completions.create(
            model="smollm2", messages=QUESTION, max_tokens=20, temperature=0, extra_body=ANEW
        )
        for asked in (sdk, past_the_router)
    )

    assert_a_sentence(answer.choices[0].message.content)
    assert answer.choices[0].message.content == own.choices[0].message.content
    assert answer.model == "smollm2"
    assert answer.usage is not None and answer.usage.completion_tokens > 1
    assert answer.usage == own.usage


def test_a_streamed_answer_is_the_same_sentence_in_pieces(sdk: openai.OpenAI) -> None:
    whole = sdk.chat.completions.create(
        model="smollm2", messages=QUESTION, max_tokens=20, temperature=0, extra_body=ANEW
    )
    stream = sdk.chat.completions.create(
        model="smollm2",
        messages=QUESTION,
        max_tokens=20,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=ANEW,
    )

    chunks = list(stream)
    pieces = [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]
    assert "".join(pieces) == whole.choices[0].message.content
    assert len(pieces) > 5
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens >= len(pieces)


def test_embeddings_as_floats_and_as_base64_are_the_same_numbers(sdk: openai.OpenAI) -> None:
    texts = ["Hello", "The capital of France"]
    floats = sdk.embeddings.create(model="smollm2-embed", input=texts, encoding_format="float")
    # Without a format the SDK asks for base64 and decodes it.
    decoded = sdk.embeddings.create(model="smollm2-embed", input=texts)
    raw = sdk.embeddings.create(model="smollm2-embed", input=texts, encoding_format="base64")

    assert [item.index for item in floats.data] == [0, 1]
    for one, other in zip(floats.data, decoded.data, strict=True):
        assert len(one.embedding) == 576
        assert other.embedding == pytest.approx(one.embedding, abs=1e-6)
        assert math.hypot(*one.embedding) == pytest.approx(1, abs=1e-3)
    assert all(isinstance(item.embedding, str) for item in raw.data)


def test_the_responses_api_answers(sdk: openai.OpenAI, past_the_router: openai.OpenAI) -> None:
    answer, own = (
        asked.responses.create(
            model="smollm2", input=ASKED, max_output_tokens=20, temperature=0, extra_body=ANEW
        )
        for asked in (sdk, past_the_router)
    )

    assert_a_sentence(answer.output_text)
    assert answer.output_text == own.output_text
    assert answer.usage is not None
    assert own.usage is not None
    for count in ("input_tokens", "output_tokens", "total_tokens"):
        assert getattr(answer.usage, count) == getattr(own.usage, count)


def test_models_are_listed_and_retrieved(sdk: openai.OpenAI) -> None:
    listed = {model.id: model for model in sdk.models.list()}

    assert list(listed) == ["smollm2", "gpt-4o-mini", "smollm2-embed", "org/tiny:latest", "garbage"]
    assert listed["smollm2"].owned_by == "user"
    assert sdk.models.retrieve("smollm2").id == "smollm2"
    assert sdk.models.retrieve("gpt-4o-mini").id == "gpt-4o-mini"
    assert sdk.models.retrieve("org/tiny:latest").id == "org/tiny:latest"


def test_another_name_of_a_model_reaches_it(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(model="gpt-4o-mini", messages=QUESTION, max_tokens=2)

    assert answer.model in ("smollm2", "gpt-4o-mini")


def test_an_unknown_model_raises_not_found(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.chat.completions.create(model="smollm3", messages=QUESTION)

    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    assert "smollm2" in caught.value.message
    with pytest.raises(openai.NotFoundError):
        sdk.models.retrieve("smollm3")


def test_a_wrong_request_raises_bad_request(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.embeddings.create(model="smollm2", input="Hello")

    assert caught.value.code == "wrong_model_kind"
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.create(
            model="smollm2", messages=QUESTION, extra_headers={"X-Request-Priority": "urgent"}
        )
    assert caught.value.code == "invalid_priority"


def test_a_prompt_that_is_too_long_raises_llama_servers_own_error(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.create(
            model="smollm2", messages=[{"role": "user", "content": "hello " * 2000}], max_tokens=1
        )

    assert caught.value.type == "exceed_context_size_error"


def test_a_model_that_cannot_be_loaded_is_told_once_although_the_sdk_would_retry(
    router: RouterProcess,
) -> None:
    """A broken file stays broken: `x-should-retry: false` keeps the SDK from asking again."""
    before = router.metric("router_requests_total", model="garbage")
    with client(router) as patient, pytest.raises(openai.APIStatusError) as caught:
        patient.with_options(max_retries=3).chat.completions.create(model="garbage", messages=QUESTION)

    assert (caught.value.status_code, caught.value.type) == (424, "api_error")
    assert caught.value.code in ("load_failed", "model_failed")
    assert router.metric("router_requests_total", model="garbage") == before + 1


def test_a_wrong_key_raises_authentication_error(make_shared_router: MakeRouter, tiny_gguf: Path) -> None:
    router = make_shared_router(
        {"tiny": {"model_path": tiny_gguf}}, api={"api_keys": ["secret"]}, key="secret"
    )

    with client(router, "wrong") as stranger, pytest.raises(openai.AuthenticationError) as caught:
        stranger.models.list()
    assert caught.value.code == "invalid_api_key"
    with client(router, "secret") as friend:
        assert [model.id for model in friend.models.list()] == ["tiny"]
