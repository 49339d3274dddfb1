"""The status of models and router, for the routes and for the stream."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from app.api.model_json import model_status
from app.api.progress_json import progress
from app.configuration.reloadable_keys import Configuration
from app.core.manager import ModelManager
from app.domain.status import Status
from app.domain.views import NEVER_USED, ModelView
from app.models.instance import ModelInstance

_NO_PROCESS: dict[str, Any] = {"port": None, "pid": None, "vram_mb": None, "devices": [], "health": None}


class StatusView:
    def __init__(self, manager: ModelManager, configuration: Configuration, started_at: float) -> None:
        self._manager, self._configuration, self._started_at = manager, configuration, started_at

    def full(self) -> dict[str, Any]:
        """Of everything."""
        views = self._manager.views()
        summary: dict[str, int] = {}
        for view in views:
            summary[view.status.public] = summary.get(view.status.public, 0) + 1
        return {
            "server": self.server(),
            "models": {view.alias: self._of(view) for view in views},
            "summary": summary,
        }

    def server(self) -> dict[str, Any]:
        state = "stopping" if self._manager.closing else "ready"
        if state == "ready" and any(map(_preloads, self._to_preload())):
            state = "starting"
        return {"status": state, "uptime_seconds": round(time.monotonic() - self._started_at, 1)}

    def model(self, alias: str) -> dict[str, Any] | None:
        """One model in the status stream; None when it is not configured any more."""
        instance = self._manager.instances.get(alias)
        return None if instance is None else {"alias": alias, **self.whole(instance.view())}

    def whole(self, view: ModelView) -> dict[str, Any]:
        """With every field, null without a process: for those who keep one model's last status."""
        return {**_NO_PROCESS, **self._of(view)}

    def _of(self, view: ModelView) -> dict[str, Any]:
        wait = self._manager.scheduler.waits.get(view.alias)
        return model_status(view, wait) | progress(self._manager.instances[view.alias])

    def _to_preload(self) -> Iterable[ModelInstance]:
        instances = self._manager.instances
        return [instances[alias] for alias in self._configuration.current.preload() if alias in instances]


def _preloads(instance: ModelInstance) -> bool:
    """It waits for its first load, or is in it."""
    loads = instance.status in (Status.STARTING, Status.LOADING)
    return instance.lifecycle.preload or (loads and instance.lifecycle.last_used == NEVER_USED)
