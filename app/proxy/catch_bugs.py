"""A bug in one request is answered and logged there; whoever called goes on."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol, TypeVar

from app.domain.errors import InternalError


class Answering(Protocol):
    def bug(self, bug: Exception) -> None: ...


Input = TypeVar("Input", bound=Callable[..., Any])


def catch_bugs(method: Input) -> Input:
    """For each method that somebody else calls: none of them raises."""

    @wraps(method)
    def calls(self: Answering, *args: Any) -> Any:
        try:
            return method(self, *args)
        except Exception as error:  # a bug of ours: its client is told
            self.bug(error)
            return None

    return calls  # type: ignore[return-value]


def internal_error() -> InternalError:
    """What the client gets; the traceback is for the log."""
    return InternalError("the router made a mistake; its log says more")
