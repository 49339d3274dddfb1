"""The configured models, by alias and by every other name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from app.domain.errors import MissingModel, ModelNotFound
from app.domain.model_names import MAX_NAME, folded, nearest_first, possible_names
from app.domain.model_spec import ModelSpec
from app.domain.status import ModelKind
from app.domain.views import ModelView
from app.models.instance import ModelInstance
from app.models.restarts import RestartLimits

SHOWN_NAMES = 20


class Fleet:
    """A model that is no longer configured stays until its process is gone, without a name."""

    def __init__(self, make: Callable[[ModelSpec, RestartLimits], ModelInstance]) -> None:
        self.instances: dict[str, ModelInstance] = {}
        self.names: dict[str, ModelInstance] = {}
        self._folded: dict[str, ModelInstance] = {}
        self._default: ModelInstance | None = None
        self._make = make

    def define(
        self,
        specs: Mapping[str, ModelSpec],
        limits: RestartLimits,
        max_waiting: int,
        default: str | None = None,
    ) -> None:
        """By difference: a model whose definition is the same keeps its process. `default`: one of the names.

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
        self._folded = {folded(name): i for name, i in reversed(self.names.items())}  # the first one counts
        self._default = self.names.get(default) if default is not None else None

    def forget_removed(self) -> list[str]:
        """Those whose process is gone now."""
        gone = [a for a, i in self.instances.items() if i.removed and i.process is None]
        for alias in gone:
            del self.instances[alias]
        return gone

    def like(self, name: str) -> ModelInstance | None:
        """Whose name a client means that does not write it as it is configured."""
        return next((found for name in possible_names(name) if (found := self._folded.get(name))), None)

    def find(self, name: str) -> ModelInstance:
        """By alias or other name. Raises `ModelNotFound` with the known ones, nearest first."""
        instance = self.names.get(name) or self.like(name)
        if instance is None:
            raise ModelNotFound(self._not_found(name), param="model")
        return instance

    def serving(self, name: str | None, kinds: Collection[ModelKind]) -> ModelInstance:
        """Who answers a request that needs one of these kinds, whatever model it names, or None.

        Raises `ModelNotFound`, and `MissingModel` for a request without a name.
        """
        if name is not None and (found := self.names.get(name) or self.like(name)) is not None:
            return found
        if self._default is not None and self._default.spec.kind in kinds:
            return self._default
        if name is not None:
            return self.find(name)
        return self._only_one(kinds)

    def views(self) -> list[ModelView]:
        return [instance.view() for instance in self.instances.values()]

    def _only_one(self, kinds: Collection[ModelKind]) -> ModelInstance:
        able = {i.alias: i for i in self.names.values() if i.spec.kind in kinds}
        if len(able) != 1:
            known = ", ".join(list(able)[:SHOWN_NAMES]) or "none for this; GET /v1/models lists all"
            raise MissingModel(
                f"name a model in the field 'model' ({known}), or set system.default_model", param="model"
            )
        return next(iter(able.values()))

    def _not_found(self, name: str) -> str:
        names = [n for alias, i in self.instances.items() for n in (alias, *i.spec.aliases)]
        known = ", ".join(nearest_first(name, names)[:SHOWN_NAMES]) or "none: add one to the configuration"
        return f"model {name[:MAX_NAME]!r} not found; known models: {known}"
