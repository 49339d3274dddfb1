"""The configured models, by alias and by every other name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from app.domain.errors import ModelNotFound
from app.domain.names import MAX_NAME, nearest_first
from app.domain.spec import ModelSpec
from app.domain.views import ModelView
from app.models.instance import ModelInstance
from app.models.restarts import RestartLimits

SHOWN_NAMES = 20


class Fleet:
    """A model that is no longer configured stays until its process is gone, without a name."""

    def __init__(self, make: Callable[[ModelSpec, RestartLimits], ModelInstance]) -> None:
        self.instances: dict[str, ModelInstance] = {}
        self.names: dict[str, ModelInstance] = {}
        self._make = make

    def define(self, specs: Mapping[str, ModelSpec], limits: RestartLimits, max_waiting: int) -> None:
        """By difference: a model whose definition is the same keeps its process.

        A changed one finishes its running requests and is then what the new definition says; a removed one
        finishes them and goes.
        """
        for alias, spec in specs.items():
            if alias not in self.instances:
                self.instances[alias] = self._make(spec, limits)
            self.instances[alias].redefine(spec, limits, max_waiting)
        for alias, instance in self.instances.items():
            if alias not in specs:
                instance.remove(ModelNotFound(f"{alias} was removed from the configuration", param="model"))
        self.names = {n: self.instances[a] for a, spec in specs.items() for n in (a, *spec.aliases)}

    def forget_removed(self) -> list[str]:
        """Those whose process is gone now."""
        gone = [a for a, i in self.instances.items() if i.removed and i.process is None]
        for alias in gone:
            del self.instances[alias]
        return gone

    def find(self, name: str) -> ModelInstance:
        """By alias or other name. Raises `ModelNotFound` with the known ones, nearest first."""
        instance = self.names.get(name)
        if instance is None:
            raise ModelNotFound(self._not_found(name), param="model")
        return instance

    def views(self) -> list[ModelView]:
        return [instance.view() for instance in self.instances.values()]

    def _not_found(self, name: str) -> str:
        names = [n for alias, i in self.instances.items() for n in (alias, *i.spec.aliases)]
        known = ", ".join(nearest_first(name, names)[:SHOWN_NAMES]) or "none: add one to the configuration"
        return f"there is no model {name[:MAX_NAME]!r}; known models: {known}"
