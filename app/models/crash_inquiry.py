"""After a crash: which of the requests that ran are run alone, which is refused, and whose fault it was."""

from __future__ import annotations

import logging
from collections.abc import Callable

from app.core.queue import RequestQueue, Ticket
from app.domain.errors import RequestCrashesModel
from app.domain.request_fingerprint import Fingerprint, Work
from app.llama.exit_reason import Failure
from app.models.crash_suspects import Suspects, Suspicion
from app.models.lifecycle_effects import Blame
from app.models.restarts import Restarts

logger = logging.getLogger(__name__)

KEPT_BYTES = 65536
"""Bodies of running streams up to this size are kept, to be recognised."""


class CrashInquiry:
    """Between one model's queue and its `Suspects`."""

    def __init__(
        self, alias: str, queue: RequestQueue, restarts: Restarts, clock: Callable[[], float]
    ) -> None:
        self._suspects, self._crashed_at = Suspects(), float("-inf")
        self._alias, self._queue, self._restarts, self._clock = alias, queue, restarts, clock

    @property
    def is_open(self) -> bool:
        """Requests have to be looked at: a process crashed while some ran, not long ago."""
        return bool(self._suspects.sizes)

    def process_ended(self, failure: Failure | None) -> Blame:
        """What ran in it is still in the queue's slots; what was given up leaves them here."""
        given_up = self._queue.free(len(self._queue.given_up))
        if failure is None or not failure.is_crash:
            return Blame.MODEL
        running, limits, now = tuple(self._queue.running), self._restarts.limits, self._clock()
        for ticket in running:
            ticket.lost_in_crash = True
        self._crashed_at = now
        known = [Fingerprint.of(work) for ticket in running if (work := _work_of(ticket)) is not None]
        known += [entry.fingerprint for entry in given_up if entry.fingerprint is not None]
        if not known:
            return Blame.MODEL
        self._suspects.forget(now, before=now - limits.window_s)
        culprit = self._suspects.crashed(known, now, now + limits.refuse_s)
        if culprit is not None:
            self._tell(culprit, limits.refuse_s)
        self._judge_waiting()
        return Blame.PERHAPS_REQUEST if culprit is None else Blame.REQUEST

    def judge(self, ticket: Ticket) -> None:
        """One that is about to queue. Raises `RequestCrashesModel`."""
        suspicion = self._suspicion(ticket)
        if suspicion is Suspicion.REFUSED:
            raise self._refusal()
        if suspicion is Suspicion.SUSPECT:
            ticket.set_apart(self._clock())

    def answered(self, ticket: Ticket, work: Work | None) -> None:
        """It ran to its end, and its process goes on."""
        self._restarts.answered()
        if ticket.runs_alone and work is not None:
            self._restarts.unexplained(self._suspects.cleared(Fingerprint.of(work)))

    def may_forget(self, size: int) -> bool:
        """Whether a body that cannot be sent once more may go: a stream that ran at a crash is a suspect too.

        A large one goes unless there was a crash lately; so a first crash may remain unexplained.
        """
        crashed_lately = self._clock() - self._crashed_at < self._restarts.limits.window_s
        return size > KEPT_BYTES and not crashed_lately

    # --- inside

    def _suspicion(self, ticket: Ticket) -> Suspicion:
        work = _work_of(ticket)
        if work is None or len(work.body) not in self._suspects.sizes:
            return Suspicion.CLEAR
        now = self._clock()
        self._suspects.forget(now, before=now - self._restarts.limits.window_s)
        return self._suspects.suspicion(Fingerprint.of(work), now)

    def _judge_waiting(self) -> None:
        """The same body may wait more than once."""
        found = {ticket: self._suspicion(ticket) for ticket in self._queue.waiting_tickets()}
        suspects = [ticket for ticket, suspicion in found.items() if suspicion is Suspicion.SUSPECT]
        self._queue.set_apart([ticket for ticket in suspects if not ticket.runs_alone], self._clock())
        refused = [ticket for ticket, suspicion in found.items() if suspicion is Suspicion.REFUSED]
        if refused:
            self._queue.fail(refused, self._refusal())

    def _refusal(self) -> RequestCrashesModel:
        return RequestCrashesModel(
            f"this request crashed llama-server for {self._alias} twice, the second time with nothing else "
            f"running; it is not sent there again for {self._restarts.limits.refuse_s:.0f} s. Change it, or "
            "update llama-server; the router's log says how to reproduce it"
        )

    def _tell(self, culprit: Fingerprint, refuse_s: float) -> None:
        logger.warning(
            "%s: a request crashed llama-server twice and is refused for %.0f s: %s. To reproduce it, send "
            "the body with this digest to a llama-server that has nothing else to do",
            self._alias,
            refuse_s,
            culprit,
        )


def _work_of(ticket: Ticket) -> Work | None:
    return ticket.owner.asks_for() if ticket.owner is not None else None
