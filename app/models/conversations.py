"""One model's kept conversations, around the life of its process."""

from __future__ import annotations

from pathlib import Path

from app.domain.event_bus import EventBus
from app.domain.events import CacheMoved, MoveDirection, MoveResult
from app.domain.model_spec import ModelSpec
from app.llama.runner_interface import Runner
from app.models.kv_cache import KvCache, Moved


class Conversations:
    """Without a `KvCache` it keeps nothing."""

    def __init__(self, alias: str, kv_cache: KvCache | None, bus: EventBus) -> None:
        self.kept: Moved | None = None  # the last that was saved or brought back
        self.save_s = 0.0
        self._alias, self._kv_cache, self._bus = alias, kv_cache, bus

    async def open(self, spec: ModelSpec) -> Path | None:
        """Where the process that is about to start may save its slots; None: it runs without."""
        return None if self._kv_cache is None else await self._kv_cache.open(spec)

    def close(self, spec: ModelSpec) -> None:
        """Its process is gone."""
        if self._kv_cache is not None:
            self._kv_cache.close(spec)

    async def restore(self, spec: ModelSpec, runner: Runner) -> None:
        """Before the first request. Raises `LoadError` if the process has died of a bad file."""
        if self._kv_cache is None:
            return
        moved = await self._kv_cache.restore(spec, runner)
        self._told(moved, MoveDirection.RESTORED)
        if moved is not None and moved.result is not MoveResult.SUCCESS:
            await runner.ready()  # a load that a bad file has killed is tried again, without the file

    async def save(self, spec: ModelSpec, runner: Runner, slot_bytes: int) -> None:
        """Before its stop; it must serve nobody any more. A full slot takes `slot_bytes`."""
        if self._kv_cache is None:
            return
        moved = await self._kv_cache.save(spec, runner, slot_bytes)
        if moved is not None:
            self.save_s = moved.seconds
        self._told(moved, MoveDirection.SAVED)

    def _told(self, moved: Moved | None, direction: MoveDirection) -> None:
        if moved is None:
            return
        self.kept = moved
        self._bus.publish(
            CacheMoved(self._alias, direction, moved.result, moved.tokens, moved.size, moved.seconds)
        )
