"""Who hears of what happened."""

from __future__ import annotations

import logging
from collections.abc import Callable

from app.domain.alarm import Alarm, Timers
from app.domain.events import BatchPublished, Event, ModelChanged, RequestFinished

logger = logging.getLogger(__name__)

Subscriber = Callable[[Event], None]


BATCH_S = 0.25
BATCH_SIZE = 128
"""A larger batch would hold the event loop for longer than a few milliseconds."""


class EventBus:
    """Calls every subscriber at once, in order. One that fails is logged and harms nobody else."""

    def __init__(self, batch_s: float | None = None, timers: Timers | None = None) -> None:
        """Records and touches are put off for `batch_s` seconds; without it nothing is."""
        self._batch_s, self._batch = batch_s, Alarm(self.flush, timers)
        self._full_batch = Alarm(self._publish_finished, timers)
        self._finished: list[Callable[[], RequestFinished]] = []
        self._touched: set[str] = set()
        self._subscriptions: list[tuple[Subscriber, tuple[type[Event], ...]]] = []
        self._by_kind: dict[type[Event], tuple[Subscriber, ...]] = {}

    def subscribe(self, subscriber: Subscriber, *kinds: type[Event]) -> Callable[[], None]:
        """To these kinds of events, to all if none is named. Returns the function that ends it."""
        subscription = (subscriber, kinds)
        self._subscriptions.append(subscription)
        self._by_kind.clear()

        def end() -> None:
            self._subscriptions.remove(subscription)
            self._by_kind.clear()

        return end

    def publish(self, event: Event) -> None:
        subscribers = self._by_kind.get(type(event))
        if subscribers is None:
            subscribers = self._by_kind[type(event)] = self._interested_in(type(event))
        for subscriber in subscribers:
            try:
                subscriber(event)
            except Exception:  # whoever only watches must not stop what happens
                logger.exception("a subscriber failed on %s", event)

    def finished(self, record: Callable[[], RequestFinished]) -> None:
        """A request's record, made and published within the batch's time, with `BATCH_SIZE` others, or by
        `flush`.

        Records in a batch cost a third of what they cost one by one: a request ends every few milliseconds,
        and by then the processor's caches have forgotten all about logging, parsing and histograms.
        """
        self._finished.append(record)
        if self._batch.at is None:
            self._put_off()
        elif len(self._finished) == BATCH_SIZE:
            self._full_batch.set_within(0.0)

    def model_changed(self, alias: str) -> None:
        """`ModelChanged`, once for all the touches of a batch."""
        self._touched.add(alias)
        if self._batch.at is None:
            self._put_off()

    def _put_off(self) -> None:
        if self._batch_s is None:
            self.flush()
        else:
            self._batch.set_within(self._batch_s)

    def flush(self) -> None:
        """Publish the records of all requests that have ended: whoever shows totals calls this first."""
        self._publish_finished()
        touched, self._touched = self._touched, set()
        for alias in touched:
            self.publish(ModelChanged(alias))

    def _publish_finished(self) -> None:
        records, self._finished = self._finished, []
        for record in records:
            try:
                event = record()
            except Exception:  # as above, and the other records count
                logger.exception("a request's record failed")
            else:
                self.publish(event)
        self.publish(BatchPublished())

    def _interested_in(self, kind: type[Event]) -> tuple[Subscriber, ...]:
        return tuple(subscriber for subscriber, kinds in self._subscriptions if not kinds or kind in kinds)
