"""What is left of a configuration without its mistakes, so that one look finds what else is wrong."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from app.core.config import Config

_ROUNDS = 10
_GONE = object()


def without_mistakes(tree: Mapping[str, Any]) -> Config | None:
    """The values that are wrong are left out; a model without what it needs, as a whole."""
    left = copy.deepcopy(dict(tree))
    for _ in range(_ROUNDS):  # what is left out may have been needed
        try:
            return Config.model_validate(left)
        except ValidationError as error:
            for detail in error.errors():
                _leave_out(left, detail["loc"][:-1] if detail["type"] == "missing" else detail["loc"])
            _sweep(left)
    return None


def _leave_out(tree: dict[str, Any], place: tuple[int | str, ...]) -> None:
    """What stands at the place, as far as there is such a place: some of pydantic's steps are none of the
    file's."""
    holder: Any = tree
    for step, after in zip(place, (*place[1:], _GONE), strict=True):
        value = _at(holder, step)
        if value is _GONE:
            return
        if _at(value, after) is _GONE:
            holder[step] = _GONE
            return
        holder = value


def _at(holder: Any, step: Any) -> Any:
    if isinstance(holder, dict):
        return holder.get(step, _GONE)
    if isinstance(holder, list) and isinstance(step, int) and 0 <= step < len(holder):
        return holder[step]
    return _GONE


def _sweep(value: Any) -> None:
    """Only now: the places of a list's other mistakes have to stay where they were."""
    if isinstance(value, dict):
        for key in [key for key, child in value.items() if child is _GONE]:
            del value[key]
        for child in value.values():
            _sweep(child)
    elif isinstance(value, list):
        value[:] = [child for child in value if child is not _GONE]
        for child in value:
            _sweep(child)
