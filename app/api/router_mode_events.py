"""What becomes of models, as events in the shape of llama-server's router mode."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from app.api.model_json import router_mode_status
from app.api.sse_broadcast import Broadcast
from app.domain.event_bus import EventBus
from app.domain.events import Event, ModelChanged, StatusChanged
from app.models.instance import ModelInstance


class PeerFeed:
    """Listens to the bus and serves `/models/sse`. Tells what is another thing than last time."""

    def __init__(self, bus: EventBus, models: Mapping[str, ModelInstance]) -> None:
        self._models, self._bus = models, bus
        self._channel = Broadcast(self._snapshot, heartbeat_s=None)
        self._told: dict[str, dict[str, Any]] = {}
        self._unsubscribe: Callable[[], None] | None = None

    async def stream(self) -> AsyncIterator[bytes]:
        """It listens only while somebody reads: events come with every request."""
        if self._unsubscribe is None:
            self._unsubscribe = self._bus.subscribe(self._on_event, StatusChanged, ModelChanged)
        events = self._channel.stream()
        try:
            async for event in events:
                yield event
        finally:
            await events.aclose()
            if not self._channel.readers and self._unsubscribe is not None:
                self._unsubscribe()
                self._unsubscribe = None

    def disconnect_all(self) -> None:
        self._channel.disconnect_all()

    def close(self) -> None:
        self._channel.close()

    def _snapshot(self) -> tuple[str, dict[str, Any]]:
        """Whoever comes, or fell behind, asks for the list of models."""
        self._told = {alias: _status(instance) for alias, instance in self._models.items()}
        return "", _event("*", "models_reload", {})

    def _on_event(self, event: Event) -> None:
        assert isinstance(event, (StatusChanged, ModelChanged))
        instance = self._models.get(event.alias)
        if instance is None:
            return
        data = _status(instance)
        if self._told.get(event.alias) != data:
            self._told[event.alias] = data
            self._channel.tell("", json.dumps(_event(event.alias, "model_status", data)))


def _status(instance: ModelInstance) -> dict[str, Any]:
    told = router_mode_status(instance)
    data: dict[str, Any] = {"status": told["value"]}
    data |= {key: told[key] for key in ("failed", "exit_code") if key in told}
    process = instance.view().process
    if data["status"] == "loading" and process is not None and process.load_progress is not None:
        stage = process.load_stage or "text_model"
        data["progress"] = {"stages": [stage], "current": stage, "value": round(process.load_progress, 3)}
    return data


def _event(model: str, name: str, data: dict[str, Any]) -> dict[str, Any]:
    return {"model": model, "event": name, "data": data}
