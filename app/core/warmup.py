"""What is done at start without being asked: model files are looked at, the preload list is loaded."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from app.core.config import Config
from app.core.manager import ModelManager
from app.llama.runner_interface import LoadError

logger = logging.getLogger(__name__)


class Preload:
    """Loads what a changed configuration adds to the list."""

    TAKES = ("system.preload_models", "models")

    def __init__(self, manager: ModelManager, config: Config) -> None:
        self._manager, self._wanted = manager, config.preload()

    def apply(self, config: Config) -> None:
        before, self._wanted = self._wanted, config.preload()
        self._manager.preload([alias for alias in self._wanted if alias not in before])


async def warm_up(manager: ModelManager, preload: Sequence[str]) -> None:
    """Preloads first, then the other headers: a broken file is reported before somebody needs it."""
    manager.preload(preload)
    for instance in tuple(manager.instances.values()):
        try:
            await manager.inspection.read(instance)
        except LoadError as error:
            logger.warning("%s: %s", instance.alias, error.failure.message)
