"""Texts to embed are cut at so many tokens, as llama-server counts them. Pure.

It is asked once for all of them: numbers in a list of texts that it counts pass as they are, and one that is
no token stands between two texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from pydantic_core import to_json

from app.domain.errors import BadRequest, ModelCrashed, RouterError
from app.proxy.dialects.json_pieces import object_of, text_of
from app.proxy.dialects.ollama.shortening import excess_of
from app.proxy.dialects.translation_interface import Asked, Times, Translator
from app.proxy.dialects.translators import WholeTranslator

Bytes = bytes | bytearray

EMBEDDINGS, TOKENIZE = "/v1/embeddings", "/tokenize"
"""llama-server's."""

MARKS = 2
"""Tokens that Ollama leaves for begin and end of a text, whether a model has both or not."""

_BETWEEN = b"-1"
_PROBE, _PROBES = "a", 2
"""With its marks, and without them: a list of texts has those of the first only."""

_LONGEST_TOKEN = 128
"""Characters. What is behind as many as the tokens may have is not counted."""


class InputLimit:
    """Of one request. It keeps none of its texts."""

    def __init__(self, alias: str, made: Callable[[Times], Translator], *, cuts: bool) -> None:
        """`made` translates the vectors. `cuts`: what is too long is cut, else it is refused."""
        self._alias, self._made, self._cuts = alias, made, cuts

    def asked(self, texts: Sequence[str], most: int | None, size: int) -> Asked:
        """`most` tokens of each; None: as many as the model takes. `size`: bytes of the texts, about. Raises
        `BadRequest`."""
        if most is not None and any(len(text) > most - MARKS for text in texts):
            return self._counted(texts, most, size)
        return self._embedded(text_of({**self._fields, "input": texts}, size))

    @property
    def _fields(self) -> dict[str, Any]:
        return {"model": self._alias, "encoding_format": "float"}

    def _embedded(self, body: Bytes) -> Asked:
        again = self._refused if self._cuts else None
        return Asked(body, False, self._made, EMBEDDINGS, again, keeps_ttl=True)

    def _counted(self, texts: Sequence[str], most: int, size: int) -> Asked:
        if most <= MARKS:
            raise BadRequest("input after truncation exceeds maximum context length", param="input")
        content: list[str | int] = [_PROBE, int(_BETWEEN), _PROBE]
        for text in texts:
            content += [int(_BETWEEN), text[: most * _LONGEST_TOKEN]]
        body = text_of({"content": content, "add_special": True}, size)
        step = partial(_Step, partial(self._cut, most - MARKS))
        return Asked(body, False, step, TOKENIZE, keeps_ttl=True, is_step=True)

    def _cut(self, most: int, told: Bytes) -> Asked:
        """`told`: the tokens of all texts. Their numbers are not read."""
        marked, bare, *texts = _lists(told)
        begin, end = _marks(_ids(marked), _ids(bare))
        body = bytearray(to_json(self._fields)[:-1] + b',"input":[')
        for text in texts:
            tokens = _ids(text, most)
            if len(tokens) > most and not self._cuts:
                raise BadRequest("the input length exceeds the context length", param="input")
            body += b"[%b]," % b",".join([*begin, *tokens[:most], *end])
        body[-1:] = b"]}"
        return self._embedded(body)

    def _refused(self, error: RouterError, asked: Bytes) -> Asked | None:
        """The model takes no more than it says."""
        excess = excess_of(error)
        if excess is None:
            return None
        texts = object_of(asked)["input"]
        if all(isinstance(text, str) for text in texts):
            return self._counted(texts, excess.context, len(asked))
        most = excess.context - 1
        if most < MARKS or all(len(tokens) <= most for tokens in texts):
            return None
        shorter = [tokens if len(tokens) <= most else [*tokens[: most - 1], tokens[-1]] for tokens in texts]
        return self._embedded(text_of({**self._fields, "input": shorter}, len(asked)))


class _Step(WholeTranslator):
    """The answer to a question of ours, not the client's."""

    def __init__(self, next_: Callable[[Bytes], Asked], _times: Times) -> None:
        self._next = next_

    def whole(self, body: Bytes) -> Asked:
        return self._next(body)


def _lists(told: Bytes) -> list[bytes]:
    """The tokens of each text, with commas between them."""
    numbers = bytes(told[told.find(b"[") + 1 : told.rfind(b"]")]).translate(None, b" \t\r\n")
    lists = [tokens.strip(b",") for tokens in numbers.split(_BETWEEN)]
    if len(lists) < _PROBES:
        raise ModelCrashed("llama-server did not say of how many tokens the input is; send it again")
    return lists


def _ids(tokens: bytes, most: int = -1) -> list[bytes]:
    """The first ones, and behind them the rest as one."""
    return tokens.split(b",", most) if tokens else []


def _marks(marked: list[bytes], bare: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """What a model has before a text, and behind it."""
    places = range(len(marked) - len(bare) + 1)
    begin = next((at for at in places if marked[at : at + len(bare)] == bare), 0)
    return marked[:begin], marked[begin + len(bare) :]
