"""The configuration that counts now, and who takes which of its keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from app.core.config import ApiConfig, Config, SystemConfig

Apply = Callable[[Config], None]

MODELS = "models"
"""All of `models` is one key here: a model's definition is taken as a whole."""


@dataclass(frozen=True)
class _Subscription:
    keys: frozenset[str]
    apply: Apply


class Configuration:
    """A change is applied by those who take its keys. What nobody takes stays as it was until a restart.

    So `current` is always what the router does, whatever stands in the file.
    """

    def __init__(self, config: Config) -> None:
        self.current = config
        self._subscriptions: list[_Subscription] = []
        self._is_closed = False

    def subscribe(self, keys: Iterable[str], apply: Apply = lambda config: None) -> None:
        """`apply` is called when one of these keys has changed; without it they are read at each use.

        Keys are written `system.idle_timeout_sec`, `api.api_keys`, `models`. Raises `ValueError` for others.
        """
        wanted = frozenset(keys)
        if unknown := wanted - frozenset(_all_keys()):
            raise ValueError(f"no keys of the configuration: {', '.join(sorted(unknown))}")
        self._subscriptions.append(_Subscription(wanted, apply))

    def change(self, new: Config) -> list[str]:
        """Apply what differs, in the order of the subscriptions; the changed keys that nobody takes."""
        if self._is_closed:
            return []
        taken = frozenset[str]().union(*(s.keys for s in self._subscriptions))
        changed = {key for key in _all_keys() if _value(new, key) != _value(self.current, key)}
        left = sorted(changed - taken)
        self.current = _with_values_of(self.current, new, left)
        for subscription in self._subscriptions:
            if subscription.keys & changed:
                subscription.apply(self.current)
        return left

    def close(self) -> None:
        """No change any more: the router stops."""
        self._is_closed = True


def _all_keys() -> Iterator[str]:
    yield from (f"api.{name}" for name in ApiConfig.model_fields)
    yield from (f"system.{name}" for name in SystemConfig.model_fields)
    yield MODELS


def _value(config: Config, key: str) -> object:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name) if name else list(getattr(config, section).items())


def _with_values_of(old: Config, new: Config, keys: list[str]) -> Config:
    """`new`, but for these keys, which are as in `old`."""
    kept = {section: dict[str, object]() for section in ("api", "system")}
    for key in keys:
        section, _, name = key.partition(".")
        kept[section][name] = _value(old, key)
    api, system = new.api.model_copy(update=kept["api"]), new.system.model_copy(update=kept["system"])
    return new.model_copy(update={"api": api, "system": system})
