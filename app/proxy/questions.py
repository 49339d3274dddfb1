"""What llama-server is asked for one request, where its API is translated: one thing after another."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from app.domain.errors import RouterError
from app.proxy.dialects.translation_interface import Asked
from app.proxy.request_body import RequestBody
from app.proxy.translated_answer import ReplyWork

Found = bytes | bytearray | Asked | None
"""What is to be asked now, or its body alone; None: nothing."""


class Questions:
    """One is asked at a time. It keeps no bodies but that of the next."""

    __slots__ = ("_asked", "next", "translator")

    def __init__(self, asked: Asked | None) -> None:
        self._asked = asked
        self.translator = None if asked is None else asked.translator
        """Makes that of the answer; None: it is passed on as it is."""
        self.next: Asked | None = None
        """llama-server has refused what it was asked, or that was a step."""

    @property
    def is_step(self) -> bool:
        return self._asked is not None and self._asked.is_step

    @property
    def may_be_changed(self) -> bool:
        """If llama-server refuses it."""
        return self._asked is not None and self._asked.again is not None

    def changed(self, refusal: RouterError, body: RequestBody, tell: Callable[[Found], None]) -> ReplyWork:
        """To find what to ask instead of what was refused. `body`: what was asked."""
        assert self._asked is not None and self._asked.again is not None
        return ReplyWork(len(body), partial(self._asked.again, refusal, body.data), tell, needs_slot=True)

    def ask(self, found: bytes | bytearray | Asked) -> None:
        assert self._asked is not None
        self.next = found if isinstance(found, Asked) else self._asked._replace(body=found)
        self._asked, self.translator = self.next._replace(body=b""), self.next.translator


AS_IT_CAME = Questions(None)
"""Of requests that are not translated: there is nothing else to be asked."""
