"""`options` of a request as llama-server has them. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from app.proxy.dialects.ollama.ollama_errors import OddRequest, wrong_type

Fields = dict[str, Any]

_NUMBERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repeat_penalty": "repeat_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}
_INTEGERS = {"top_k": "top_k", "num_keep": "n_keep"}
_OF_ITS_OWN = ("seed", "num_predict", "num_ctx")
_OF_THE_PROCESS = ("num_batch", "num_gpu", "main_gpu", "num_thread", "draft_num_predict")
"""The configuration says these; what is no number is a mistake all the same."""

_LARGEST = 2**31 - 1
"""llama-server refuses whole numbers beyond it."""

_SEEDS = 2**32


class Options(NamedTuple):
    fields: Fields
    note: str = ""
    """What was asked for and cannot be had."""
    context: int | None = None
    """`num_ctx`; None: it does not say."""


def read(given: object, context: int) -> Options:
    """`context`: tokens that prompt and answer may have together here. Raises `BadRequest`, `OddRequest`."""
    if given is None:
        return Options({})
    if not isinstance(given, dict):
        raise wrong_type("options", "an object")
    options = {name: value for name, value in given.items() if value is not None}
    fields: Fields = {to: _number(options, name) for name, to in _NUMBERS.items() if name in options}
    fields |= {to: _integer(options, name) for name, to in _INTEGERS.items() if name in options}
    for name in (*_OF_ITS_OWN, *_OF_THE_PROCESS):
        if name in options:
            _integer(options, name)
    if "use_mmap" in options and not isinstance(options["use_mmap"], bool):
        raise _wrong_type("use_mmap", "boolean")
    if "stop" in options:
        fields["stop"] = _texts(options["stop"])
    if (tokens := _integer(options, "repeat_last_n")) is not None:
        fields["repeat_last_n"] = tokens if tokens >= 0 else context
    if (seed := _integer(options, "seed", 2**63)) is not None and seed >= 0:
        fields["seed"] = seed % _SEEDS
    return _limited(options, fields, context)


def _limited(options: Mapping[str, Any], fields: Fields, context: int) -> Options:
    """A smaller context ends an answer earlier; none is made larger for one request."""
    most, told = _integer(options, "num_predict") or 0, _integer(options, "num_ctx")
    wanted = told or 0
    limits = [limit for limit in (most, wanted if wanted < context else 0) if limit > 0]
    if limits:
        fields["n_predict"] = min(limits)
    if wanted <= context:
        return Options(fields, context=told)
    return Options(
        fields,
        f"options.num_ctx is {wanted}, but this model is run with {context}: raise params.n_ctx in the "
        "router's configuration",
        told,
    )


def _number(options: Mapping[str, Any], name: str) -> float:
    value = options[name]
    if not _is_number(value):
        raise _wrong_type(name, "float32")
    number: float = value
    return number


def _integer(options: Mapping[str, Any], name: str, largest: int = _LARGEST) -> int | None:
    """Fractions are cut, and what is too large."""
    value = options.get(name)
    if value is None:
        return None
    if not _is_number(value):
        raise _wrong_type(name, "integer")
    return int(max(-largest, min(largest, value)))


def _texts(value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise _wrong_type("stop", "array")
    return value


def _is_number(value: object) -> bool:
    return type(value) is int or (type(value) is float and math.isfinite(value))


def _wrong_type(name: str, kind: str) -> OddRequest:
    return OddRequest(f'option "{name}" must be of type {kind}', param=f"options.{name}")
