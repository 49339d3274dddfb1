"""Which web pages of other origins may ask: those that `api.cors_allow_origins` names."""

from __future__ import annotations

from collections.abc import Iterable

from app.access.header_lookup import Headers
from app.access.hosts import is_ours
from app.domain.addresses_and_origins import (
    ANY_ORIGIN,
    APP_ORIGINS,
    LOCAL_ORIGINS,
    is_app_origin,
    is_local_origin,
)
from app.domain.errors import OriginNotAllowed


class Origins:
    """False, as a value, where no page of another origin may ask."""

    def __init__(self, entries: Iterable[str]) -> None:
        self._entries = frozenset(entries)

    @property
    def any(self) -> bool:
        return ANY_ORIGIN in self._entries

    def allow(self, origin: str) -> bool:
        if self.any or origin in self._entries:
            return True
        if LOCAL_ORIGINS in self._entries and is_local_origin(origin):
            return True
        return APP_ORIGINS in self._entries and is_app_origin(origin)

    def check(self, headers: Headers) -> None:
        """A web page of another origin must not change anything, whether it can read our answer or not.

        Raises `OriginNotAllowed`.
        """
        if is_ours(headers):
            return
        origin = headers.get("origin")
        if origin is None:
            raise OriginNotAllowed("a page of another site may not do this; see api.cors_allow_origins")
        if not self.allow(origin):
            raise OriginNotAllowed(f"{origin[:100]} may not do this; add it to api.cors_allow_origins")

    def __bool__(self) -> bool:
        return bool(self._entries)
