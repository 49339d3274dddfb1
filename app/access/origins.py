"""Which origins of web pages `api.cors_allow_origins` names."""

from __future__ import annotations

from collections.abc import Iterable

from app.domain.addresses_and_origins import (
    ANY_ORIGIN,
    APP_ORIGINS,
    LOCAL_ORIGINS,
    is_app_origin,
    is_local_origin,
)


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

    def __bool__(self) -> bool:
        return bool(self._entries)
