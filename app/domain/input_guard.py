"""What may be called from outside raises nothing: a bug in one request is told by that request alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

Input = TypeVar("Input", bound=Callable[..., Any])


def guarded_input(method: Input) -> Input:
    """A bug is answered and logged by `bug` of the object; whoever called goes on."""

    @wraps(method)
    def guarded(self: Any, *args: Any) -> Any:
        try:
            return method(self, *args)
        except Exception as error:  # a bug of ours: its client is told
            self.bug(error)
            return None

    return guarded  # type: ignore[return-value]
