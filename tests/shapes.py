"""What a JSON value looks like, where its content is another one each time: fields and their types."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeAlias

Shape: TypeAlias = Any
"""A type, a pattern of the whole text, a test that says yes or no, a list with the shape of its entries, an
object with all of its fields, or the value itself."""


class Least(dict[str, Shape]):
    """An object that may have more fields."""


class Or:
    """Any of these."""

    def __init__(self, *shapes: Shape) -> None:
        self.shapes = shapes


def positive(value: object) -> bool:
    return type(value) is int and value > 0


def number(value: object) -> bool:
    return type(value) in (int, float)


def differences(found: object, shape: Shape, where: str = "answer") -> list[str]:
    """In words; none where it has that shape."""
    if isinstance(shape, dict):
        return _of_object(found, shape, where)
    if isinstance(shape, list):
        if not isinstance(found, list):
            return [f"{where} is no list: {found!r:.80}"]
        return [d for at, entry in enumerate(found) for d in differences(entry, shape[0], f"{where}[{at}]")]
    return [] if _fits(found, shape) else [f"{where} is {found!r:.200}, not {shape!r}"]


def _fits(found: object, shape: Shape) -> bool:
    if isinstance(shape, Or):
        return any(not differences(found, one) for one in shape.shapes)
    if isinstance(shape, type):
        return type(found) is shape
    if isinstance(shape, re.Pattern):
        return isinstance(found, str) and shape.fullmatch(found) is not None
    if isinstance(shape, Callable):  # type: ignore[arg-type]
        return bool(shape(found))
    return type(found) is type(shape) and found == shape


def _of_object(found: object, shape: dict[str, Shape], where: str) -> list[str]:
    if not isinstance(found, dict):
        return [f"{where} is no object: {found!r:.200}"]
    lacks = [f"{where}.{name} is missing" for name in shape if name not in found]
    if not isinstance(shape, Least):
        lacks += [f"{where}.{name} is new" for name in found if name not in shape]
    both = [name for name in shape if name in found]
    return lacks + [d for name in both for d in differences(found[name], shape[name], f"{where}.{name}")]
