"""Ollama's API row by row before real llama-servers; models that call functions, think and fill in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.gguf.header import Pooling
from tests.ggufs import make_tiny
from tests.ollama_rows import GENERATED, HI, JSON, LINES, ROWS, Row, Stream
from tests.router_process import MakeRouter, RouterProcess
from tests.shapes import Or, differences
from tests.tiny_models import make_encoder, make_fill_in

CALL_MARK = 261
"""The token that begins a call; the model never chooses it by itself."""

PLAIN = "{% for m in messages %}{{ m.role }} {{ m.content }}\n{% endfor %}assistant "
THINKS = """{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
<think>{% if enable_thinking is false %}</think>{% endif %}{% endif %}"""
THOUGHT = 'root ::= "Must think" "</think>" "Hello"'


@pytest.fixture(scope="module")
def router(
    make_shared_router: MakeRouter, tiny_gguf: Path, truncated_gguf: Path, garbage_gguf: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> RouterProcess:  # fmt: skip
    folder = tmp_path_factory.mktemp("models")
    plain = make_tiny(folder / "plain.gguf", chat_template=PLAIN)
    thinks = make_tiny(folder / "thinks.gguf", chat_template=THINKS)
    encoder = make_encoder(folder / "encoder.gguf", Pooling.MEAN, context=256)
    models: dict[str, dict[str, Any]] = {
        "one": {"model_path": tiny_gguf, "aliases": ["Two:7b"]},
        "plain": {"model_path": plain},
        "thinks": {"model_path": thinks, "extra_args": ["--grammar", THOUGHT]},
        "calls": {"model_path": tiny_gguf, "extra_args": ["--logit-bias", f"{CALL_MARK}+100"]},
        "embed": {"model_path": encoder, "params": {"embedding": True, "n_ctx": 256}},
        "fill": {"model_path": make_fill_in(folder / "fill.gguf")},
        "gone": {"model_path": folder / "gone.gguf"},
        "cut": {"model_path": truncated_gguf},
        "garbage": {"model_path": garbage_gguf},
    }  # fmt: skip
    api = {"cors_allow_origins": ["apps", "localhost"]}
    return make_shared_router(models, api=api, system={"max_concurrent_models": 4})


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_request_is_answered_as_by_a_real_ollama(router: RouterProcess, row: Row) -> None:
    content = row.body if isinstance(row.body, bytes) or row.body is None else json.dumps(row.body)
    answer = router.client.request(row.method, row.path, content=content, headers=row.headers)
    assert answer.status_code == (row.here or row.status), answer.text
    if row.path.startswith("/v1"):
        assert answer.headers["content-type"].startswith("application/json")
    else:
        assert answer.headers["content-type"] == row.type
    assert {name: answer.headers.get(name) for name in row.gives} == row.gives
    assert not told_wrong(row, answer)


def told_wrong(row: Row, answer: httpx.Response) -> list[str]:
    """How the body differs."""
    if isinstance(row.answer, str):
        return differences(answer.text, row.answer)
    if not isinstance(row.answer, Stream):
        return differences(answer.json(), row.answer)
    assert answer.text.endswith("\n")
    *lines, last = (json.loads(line) for line in answer.text.splitlines())
    assert lines
    return differences(lines, [row.answer.line]) + differences(last, row.answer.last)


# --- what models can do


def test_a_model_that_thinks_says_so_apart_unless_it_shall_not(router: RouterProcess) -> None:
    for path, fields in (("chat", HI), ("generate", {"prompt": "Hi"})):
        for think in (True, "low", None):
            told = ask(router, path, model="thinks", think=think, stream=False, **fields)
            assert parts(told) == ("Must think", "Hello"), (path, think)
    lines = ask_for_lines(router, "chat", model="thinks", think=True, **HI)
    assert "".join(line["message"].get("thinking", "") for line in lines) == "Must think"
    assert "".join(line["message"]["content"] for line in lines) == "Hello"
    assert all(line["message"]["content"] == "" for line in lines if "thinking" in line["message"])
    told = ask(router, "generate", model="thinks", prompt="Hi", think=False, _debug_render_only=True)
    assert told["_debug_info"]["rendered_template"].endswith("</think>")


def parts(told: dict[str, Any]) -> tuple[str, str]:
    """What it thought, and what it said."""
    message = told.get("message", told)
    return message.get("thinking", ""), message.get("content", message.get("response"))


def test_a_call_of_a_function_comes_in_a_line_of_its_own(router: RouterProcess) -> None:
    city = {"type": "object", "properties": {"city": {"enum": ["Rome"]}}, "required": ["city"]}
    tools = [{"type": "function", "function": {"name": "weather", "description": "d", "parameters": city}}]
    asked = {"model": "calls", "tools": tools, **HI, "options": {"num_predict": 60, "temperature": 0}}
    call = {"id": str, "function": {"index": int, "name": "weather", "arguments": Or({"city": "Rome"}, {})}}
    *lines, last = ask_for_lines(router, "chat", **asked)
    assert not differences([c for line in lines for c in line["message"].get("tool_calls", [])], [call])
    assert any("tool_calls" in line["message"] for line in lines)
    assert "tool_calls" not in last["message"]
    whole = ask(router, "chat", **{**asked, "stream": False})
    assert not differences(whole["message"]["tool_calls"], [call])


def test_a_model_with_marks_of_infill_in_its_vocabulary_fills_in(router: RouterProcess) -> None:
    assert "insert" in ask(router, "show", model="fill")["capabilities"]
    body = {"model": "fill", "prompt": "the of", "suffix": "and to", "options": {"num_predict": 4}}
    told = ask(router, "generate", stream=False, **body)
    assert not differences(told, GENERATED)
    direct = router.client.post(
        "/infill", json={"model": "fill", "input_prefix": "the of", "input_suffix": "and to", "n_predict": 4}
    )
    assert told["prompt_eval_count"] == direct.json()["tokens_evaluated"]


def test_what_is_too_long_to_embed_is_cut_at_its_tokens(router: RouterProcess) -> None:
    """Its vector is that of the text which it is cut to, whether its request or its model has the limit."""
    for path, field in (("embed", "input"), ("embeddings", "prompt")):
        for pairs, options in ((4, {"num_ctx": 10}), (127, None)):
            cut = ask(router, path, model="embed", options=options, **{field: "of the " * 300})
            short = ask(router, path, model="embed", **{field: "of the " * pairs})
            assert vectors(cut) == pytest.approx(vectors(short), abs=1e-5), (path, pairs)


def vectors(told: dict[str, Any]) -> list[float]:
    return [*told["embedding"]] if "embedding" in told else [*told["embeddings"][0]]


def ask(router: RouterProcess, path: str, **body: Any) -> Any:
    answer = router.client.post(f"/api/{path}", json=body)
    assert (answer.status_code, answer.headers["content-type"]) == (200, JSON), answer.text
    return answer.json()


def ask_for_lines(router: RouterProcess, path: str, **body: Any) -> list[dict[str, Any]]:
    answer = router.client.post(f"/api/{path}", json=body)
    assert (answer.status_code, answer.headers["content-type"]) == (200, LINES), answer.text
    return [json.loads(line) for line in answer.text.splitlines()]
