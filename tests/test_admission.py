"""The queue as an exchange enters it, with a real manager behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from app.core.queue import Ticket
from app.domain.errors import RouterError
from app.domain.events import RequestFinished
from app.domain.priority import Priority
from app.domain.request_fingerprint import Work
from app.llama.exit_reason import Failure, FailureKind
from app.models.instance import ModelInstance
from app.proxy.admission import Admission
from app.proxy.request_record import RequestRecord, RoutedRequest
from tests.fakes import World
from tests.serving import soon


class Asker:
    """What `Admission` knows of an exchange."""

    quiet_since: float | None = None
    generated: int | None = None

    def __init__(self, instance: ModelInstance, ticket: Ticket) -> None:
        self.instance, self.ticket = instance, ticket
        self.record = cast(RequestRecord, self)
        self.request = cast(RoutedRequest, self)
        self.only_reads = False
        self.event = cast(RequestFinished, None)
        self.error: RouterError | None = None
        self.has_slot = False

    def granted(self) -> None:
        self.has_slot = True

    def refused(self, error: RouterError) -> None:
        self.error = error

    def cut(self) -> None: ...

    def process_gone(self, error: RouterError | None) -> None: ...

    def asks_for(self) -> Work | None:
        return None

    def bug(self, bug: Exception) -> None:
        raise bug


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World({"a": 1000})
    await world.settle()
    yield world
    await world.close()


async def test_who_leaves_while_the_file_of_a_failed_model_is_looked_at_was_never_counted(
    world: World,
) -> None:
    """It would be counted out without having been counted in: one fewer would seem to wait than do."""
    instance = world.manager.instances["a"]
    instance.check_failed(Failure(FailureKind.UNKNOWN, "it broke", None, ()))
    looked = asyncio.Event()

    async def is_another_file(_: ModelInstance) -> bool:
        looked.set()
        return await asyncio.Future[bool]()

    world.manager.inspection.is_another_file = is_another_file  # type: ignore[method-assign, assignment]
    admission = Admission(world.manager, cast(Any, None), world.bus)
    asker = Asker(instance, world.manager.ticket(Priority.NORMAL))
    pending = admission.enter(asker)
    assert pending is not None
    await soon(looked.wait())
    pending.cancel()
    admission.leave(asker)
    assert instance.queue.waiting == 0
    assert instance.queue.waiting_by_level == [0, 0, 0]
