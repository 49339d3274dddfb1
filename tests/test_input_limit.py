"""Texts to embed are cut at tokens that llama-server counts: what it is asked, step by step. No sockets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.domain.errors import BadRequest, ModelCrashed, RouterError
from app.llama.llama_server_errors import read_error
from app.proxy.dialects.ollama.answer_lines import ConstantTranslator
from app.proxy.dialects.ollama.input_limit import InputLimit
from app.proxy.dialects.translation_interface import Asked, Times

TIMES = Times(lambda: 0.0, 0.0, 0.0)
BEGIN, END = 2, 3


def limited(*, cuts: bool = True) -> InputLimit:
    return InputLimit("m", lambda times: ConstantTranslator(lambda told, _: told, times), cuts=cuts)


def body_of(asked: Asked | bytes | bytearray | None) -> Any:
    assert isinstance(asked, Asked)
    return json.loads(asked.body)


def counted(asked: Asked, *, begin: bool = True, end: bool = True) -> Asked:
    """What is asked when llama-server has counted: a letter is a token, its code; a blank is none."""
    assert (asked.path, asked.is_step, asked.stream) == ("/tokenize", True, False)
    body = json.loads(asked.body)
    assert body["add_special"] is True
    first, *rest = body["content"]
    tokens = [BEGIN] * begin + [ord(first)] + [END] * end
    for part in rest:
        tokens += [part] if isinstance(part, int) else map(ord, part.replace(" ", ""))
    assert asked.translator is not None
    found = asked.translator(TIMES).whole(json.dumps({"tokens": tokens}).encode())
    assert isinstance(found, Asked)
    assert (found.path, found.is_step) == ("/v1/embeddings", False)
    return found


def refusal(tokens: int, context: int) -> RouterError:
    told = {"code": 400, "message": "too long", "type": "exceed_context_size_error"}
    told |= {"n_prompt_tokens": tokens, "n_ctx": context}
    return read_error(json.dumps({"error": told}).encode(), 400)


def codes(text: str, begin: int | None = BEGIN, end: int | None = END) -> list[int]:
    return [*filter(None, [begin]), *map(ord, text), *filter(None, [end])]


def test_what_cannot_be_too_long_is_not_counted() -> None:
    for texts, most in ((["abcdef"], None), (["abc", ""], 5)):
        asked = limited().asked(texts, most, 10)
        assert asked.path == "/v1/embeddings"
        assert body_of(asked) == {"model": "m", "input": texts, "encoding_format": "float"}


def test_what_may_be_too_long_is_counted_and_cut_with_room_for_begin_and_end() -> None:
    found = counted(limited().asked(["abcdef", "xy", ""], 5, 10))
    assert body_of(found) == {
        "model": "m",
        "input": [codes("abc"), codes("xy"), codes("")],
        "encoding_format": "float",
    }


@pytest.mark.parametrize(("begin", "end"), [(True, True), (True, False), (False, True), (False, False)])
def test_each_text_has_the_marks_that_its_model_has(begin: bool, end: bool) -> None:
    found = counted(limited().asked(["abcdef"], 5, 10), begin=begin, end=end)
    assert body_of(found)["input"] == [codes("abc", BEGIN if begin else None, END if end else None)]


def test_what_is_too_long_and_shall_not_be_cut_is_refused() -> None:
    asked = limited(cuts=False).asked(["abcdef"], 5, 10)
    with pytest.raises(BadRequest, match="the input length exceeds the context length"):
        counted(asked)
    found = counted(limited(cuts=False).asked(["ab cdef"], 8, 10), begin=False)
    assert body_of(found)["input"] == [codes("abcdef", None)]


def test_a_context_without_room_for_a_text_is_refused() -> None:
    for most in (-1, 0, 1, 2):
        for cuts in (True, False):
            with pytest.raises(BadRequest, match="exceeds maximum context length"):
                limited(cuts=cuts).asked(["a"], most, 10)


def test_what_llama_server_refuses_is_counted_then() -> None:
    inputs = limited()
    asked = inputs.asked(["abcdef", "b"], None, 10)
    assert asked.again is not None
    again = asked.again(refusal(8, 6), asked.body)
    assert isinstance(again, Asked)
    found = counted(again)
    assert body_of(found)["input"] == [codes("abcd"), codes("b")]
    assert found.again is not None
    shorter = found.again(refusal(6, 6), found.body)  # it wants one more to be free
    assert body_of(shorter)["input"] == [codes("abc"), codes("b")]
    assert isinstance(shorter, Asked)
    assert shorter.again is not None
    assert shorter.again(refusal(6, 6), shorter.body) is None


def test_other_refusals_stand_and_so_do_all_where_nothing_shall_be_cut() -> None:
    asked = limited().asked(["a"], None, 10)
    assert asked.again is not None
    assert asked.again(BadRequest("no"), asked.body) is None
    assert limited(cuts=False).asked(["a"], None, 10).again is None


def test_of_a_text_no_more_is_counted_than_its_tokens_may_have() -> None:
    asked = limited().asked(["a" * 10_000_000], 5, 10)
    assert len(asked.body) < 1000


def test_an_answer_that_counts_nothing_is_a_failure_of_llama_server() -> None:
    asked = limited().asked(["abcdef"], 5, 10)
    assert asked.translator is not None
    for told in (b"", b"{}", b'{"tokens":[1]}'):
        with pytest.raises(ModelCrashed):
            asked.translator(TIMES).whole(told)
