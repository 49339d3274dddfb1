"""What people read in a stream that waits: its place in the queue, or how far its model is loaded."""

from __future__ import annotations

from app.core.queue import Ticket
from app.domain.status import Status
from app.models.instance import ModelInstance


def heartbeat_text(instance: ModelInstance, ticket: Ticket, reason: str | None) -> str:
    """`reason`: why its model is not loaded yet, if it is not being loaded."""
    view = instance.view()
    if view.status not in (Status.STARTING, Status.LOADING):
        position = f"queued position={instance.queue.position(ticket)}"
        return position if reason is None else f'{position} reason="{reason}"'
    progress = view.process.load_progress if view.process is not None else None
    return "loading" if progress is None else f"loading progress={progress:.2f}"
