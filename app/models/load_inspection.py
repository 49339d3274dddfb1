"""Looking at a model before it is loaded: its file, its flags, and what it would take."""

from __future__ import annotations

import logging
from collections.abc import Callable

import anyio.to_thread

from app.domain.file_identity import FileIdentity
from app.domain.model_spec import ModelSpec
from app.domain.views import MemoryNeed
from app.llama.exit_reason import Failure, FailureKind
from app.llama.runner_interface import Launcher, LoadError
from app.memory.amount_to_reserve import Footprint, key, need
from app.memory.ledger.memory_ledger import MemoryLedger
from app.memory.load_history import LoadHistory
from app.memory.probes.interface import offers_gpu, resolve
from app.models.instance import ModelInstance

logger = logging.getLogger(__name__)


class Inspection:
    """What is wrong is told before anybody is asked to make room."""

    def __init__(
        self,
        launcher: Launcher,
        ledger: MemoryLedger,
        history: LoadHistory,
        inspect_file: Callable[[ModelSpec], Footprint],
        vram_multiplier: float,
    ) -> None:
        self.vram_multiplier = vram_multiplier
        self._launcher, self._ledger, self._history = launcher, ledger, history
        self._inspect_file = inspect_file

    async def read(self, instance: ModelInstance) -> None:
        """Look at the model's file. Raises `LoadError` for one that cannot be loaded."""
        instance.file_identity = await anyio.to_thread.run_sync(FileIdentity.at, instance.spec.path)
        instance.footprint = await anyio.to_thread.run_sync(self._inspect_file, instance.spec)

    async def is_another_file(self, instance: ModelInstance) -> bool:
        """Than the one that was looked at last."""
        found = await anyio.to_thread.run_sync(FileIdentity.at, instance.spec.path)
        return found is not None and found != instance.file_identity

    async def run(self, instance: ModelInstance) -> None:
        """Check all that can be known, and set its need; else the model fails."""
        try:
            await self.read(instance)
            await self._launcher.check(instance.spec)
            instance.need = self.need_of(instance)
        except LoadError as error:
            instance.check_failed(error.failure)
        except Exception as error:  # a bug of ours, or a file stranger than any we know
            logger.exception("%s: looking at its file failed", instance.alias)
            message = f"The router could not make sense of its file ({type(error).__name__}: {error})."
            instance.check_failed(Failure(FailureKind.UNKNOWN, message, None, ()))

    def need_of(self, instance: ModelInstance) -> MemoryNeed:
        """By the header of its file, and by what was learned; its `memory` is told, too."""
        spec, found, ledger, history = instance.spec, instance.footprint, self._ledger, self._history
        assert found is not None
        gpus = ledger.gpus()
        usable, has_gpu = resolve(gpus, spec.gpu_devices), offers_gpu(gpus, spec.gpu_devices)
        name = key(spec, found, history.build, has_gpu)
        takes = need(
            spec,
            found,
            usable,
            has_gpu,
            self.vram_multiplier,
            history.model(name),
            history.fixed_cost(gpu for gpu in gpus if gpu.id in usable),
        )
        instance.memory.expect(spec, name, takes)
        return takes
