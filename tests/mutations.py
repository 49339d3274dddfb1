"""The scheduling code with one mistake in it."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from types import ModuleType

import pytest

from bench.world import Code

PLACEMENT, SWAPS, TURNS = "app.scheduling.placement", "app.scheduling.swap_cost", "app.scheduling.turns"
CLAIMS, POLICY = "app.scheduling.eviction", "app.scheduling.policy"
QUEUE, LIFECYCLE = "app.core.queue", "app.models.lifecycle"


@dataclass(frozen=True)
class Mutation:
    """In that module, this text becomes that."""

    name: str
    module: str
    old: str
    new: str


def mutated(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> Code:
    """Fresh copies of the seven modules, one of them changed; the real ones stay as they are."""
    changed = {name: _source(name) for name in (PLACEMENT, SWAPS, TURNS, CLAIMS, POLICY, QUEUE, LIFECYCLE)}
    assert changed[mutation.module].count(mutation.old) == 1, "the code has moved on: adapt the mutation"
    changed[mutation.module] = changed[mutation.module].replace(mutation.old, mutation.new)
    with monkeypatch.context() as patched:
        modules = {name: _fresh(name, source, patched) for name, source in changed.items()}
    return Code(modules[POLICY], modules[QUEUE], modules[LIFECYCLE])


def _source(name: str) -> str:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.loader is not None
    source: str = spec.loader.get_source(name)  # type: ignore[attr-defined]
    return source


def _fresh(name: str, source: str, patched: pytest.MonkeyPatch) -> ModuleType:
    """In `sys.modules` while its siblings are made, so that they import this one."""
    module = ModuleType(name)
    patched.setitem(sys.modules, name, module)
    exec(compile(source, name, "exec"), module.__dict__)
    return module
