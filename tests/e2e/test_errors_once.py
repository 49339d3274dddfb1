"""An error in each place reaches its caller once, with its message: SDKs as they are, with their repeats."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests.listening_proxy import ListeningProxy
from tests.router_process import MakeRouter, RouterProcess
from tests.shared_library import compile_library

KEY, LONG_S = "secret", 120
CRASH = "CRASH-BY-ABORT"
MOST = 100_000
_MESSAGE = re.compile(rb'"message":\s*("(?:[^"\\]|\\.)*")')


@pytest.fixture(scope="module")
def router(
    make_shared_router: MakeRouter,
    tiny_gguf: Path,
    tiny_long_gguf: Path,
    garbage_gguf: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> RouterProcess:
    fragile = compile_library(
        Path(__file__).parents[1] / "fragile.c", tmp_path_factory.mktemp("fragile") / "fragile.so"
    )
    crashes = {"model_path": tiny_gguf, "env": {"LD_PRELOAD": str(fragile)}}
    endless = {"params": {"n_ctx": 131072}, "extra_args": ["--ignore-eos"]}
    return make_shared_router(
        {
            "narrow": {"model_path": tiny_gguf, "params": {"n_ctx": 256}},
            **{of_its_own(ask): crashes for ask in ASKS},
            "endless": {"model_path": tiny_long_gguf, **endless},
            "broken": {"model_path": garbage_gguf},
        },
        api={"api_keys": [KEY]},
        key=KEY,
    )


@pytest.fixture
def proxy(router: RouterProcess) -> Iterator[ListeningProxy]:
    proxy = ListeningProxy(router.port)
    yield proxy
    proxy.close()


Seen = Callable[[], None]
"""Called when the first piece of a stream has come."""

Ask = Callable[[str, str, str, str, Seen], None]
"""The router's address, a key, a model, what is said to it."""


def _openai(url: str, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, timeout=LONG_S)


def _through(pieces: Iterable[object], seen: Seen) -> None:
    for number, _ in enumerate(pieces):
        if number == 0:
            seen()


def chat(url: str, key: str, model: str, text: str, seen: Seen, **more: Any) -> None:
    with _openai(url, key) as client:
        messages: Any = [{"role": "user", "content": text}]
        answer = client.chat.completions.create(model=model, messages=messages, max_tokens=MOST, **more)
        if more:
            _through(answer, seen)


def chat_stream(url: str, key: str, model: str, text: str, seen: Seen) -> None:
    chat(url, key, model, text, seen, stream=True)


def completion_stream(url: str, key: str, model: str, text: str, seen: Seen) -> None:
    with _openai(url, key) as client:
        _through(client.completions.create(model=model, prompt=text, max_tokens=MOST, stream=True), seen)


def response(url: str, key: str, model: str, text: str, seen: Seen) -> None:
    with _openai(url, key) as client:
        client.responses.create(model=model, input=text)


class Failed(Exception):
    """What this API tells as an event."""


def response_stream(url: str, key: str, model: str, text: str, seen: Seen) -> None:
    with _openai(url, key) as client:
        for event in client.responses.create(model=model, input=text, stream=True):
            if event.type == "response.output_text.delta":
                seen()
            elif event.type == "response.failed":
                assert event.response.error is not None
                raise Failed(event.response.error.message)
            elif event.type == "error":  # the response had not begun
                raise Failed(event.message)


def message(url: str, key: str, model: str, text: str, seen: Seen) -> None:
    with anthropic.Anthropic(base_url=url, api_key=key, timeout=LONG_S) as client:
        client.messages.create(model=model, messages=[{"role": "user", "content": text}], max_tokens=9)


def message_stream(url: str, key: str, model: str, text: str, seen: Seen) -> None:
    messages: Any = [{"role": "user", "content": text}]
    with (
        anthropic.Anthropic(base_url=url, api_key=key, timeout=LONG_S) as client,
        client.messages.stream(model=model, messages=messages, max_tokens=MOST) as events,
    ):
        _through(events.text_stream, seen)


STREAMS: list[Ask] = [chat_stream, completion_stream, response_stream, message_stream]
ASKS: list[Ask] = [chat, response, message, *STREAMS]
PLACES = {
    "unknown": ("nobody", "Hello", "nobody"),
    "key": ("narrow", "Hello", "API key"),
    "broken": ("broken", "Hello", "GGUF"),
    "too long": ("narrow", "the of and " * 500, "context"),
    "crash": ("fragile", CRASH, "crash"),
}
"""The model, what is said to it, and a word of what its caller is told."""


def of_its_own(ask: Ask) -> str:
    """A model that crashes is started after a delay that grows."""
    return f"fragile-{ask.__name__}"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("ask", ASKS)
def test_an_error_before_the_answer_is_told_once(proxy: ListeningProxy, ask: Ask, place: str) -> None:
    model, text, word = PLACES[place]
    model = of_its_own(ask) if place == "crash" else model
    with pytest.raises((openai.APIError, anthropic.APIError, Failed)) as raised:
        ask(proxy.url, "wrong" if place == "key" else KEY, model, text, no_stream)
    check_told_once(proxy, model, word, str(raised.value))


@pytest.mark.parametrize("ask", STREAMS)
def test_an_error_within_a_stream_is_told_once(
    proxy: ListeningProxy, router: RouterProcess, ask: Ask
) -> None:
    cut: list[str] = []

    def cut_off() -> None:
        if not cut:
            cut.append("endless")
            router.eject("endless")

    with pytest.raises((openai.APIError, anthropic.APIError, Failed)) as raised:
        ask(proxy.url, KEY, "endless", "Hello", cut_off)
    assert cut
    check_told_once(proxy, "endless", "endless", str(raised.value))


@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses", "messages", "embeddings"])
def test_a_body_that_is_no_json_is_told_once(proxy: ListeningProxy, path: str) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    body = b'{"model": "narrow"'
    answer = httpx.post(
        f"{proxy.url}/v1/{path}", content=body, headers=headers, timeout=LONG_S, trust_env=False
    )
    assert (answer.status_code, answer.headers["x-should-retry"]) == (400, "false")
    check_told_once(proxy, "narrow", "JSON", answer.text)


def no_stream() -> None:
    pytest.fail("it was answered")


def check_told_once(proxy: ListeningProxy, model: str, word: str, seen: str) -> None:
    """Asked once, answered with one error, of which its caller sees the message once."""
    proxy.wait_until_closed()
    assert proxy.asked_for == {model: 1}
    (error,) = [line for line in proxy.answered.splitlines() if _MESSAGE.search(line)]
    (told,) = {json.loads(found) for found in _MESSAGE.findall(error)}  # a response has it in two places
    assert word in told
    longest = max(re.split(r"['\"\\\n]", told), key=len)  # the rest is escaped where it is shown
    assert seen.count(longest) == 1
