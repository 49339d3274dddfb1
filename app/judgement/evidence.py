"""What was observed of one process, and when. Nothing here judges, waits or reads a clock.

Times are those of one monotonic clock, in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

BUSY_SHARE = 0.2
"""Of one processor; a process that waits for something uses next to nothing."""

ECHO_S = 1.0
KEPT = 8


@dataclass(frozen=True)
class Slot:
    """A slot of llama-server that works. `task` grows with each request that it is given."""

    task: int
    prompt: int = 0
    read: int = 0
    """Tokens of the prompt that have been read: known at the end of a batch only, which can be all of it."""
    generated: int = 0

    @property
    def unread(self) -> int:
        return 0 if self.generated else max(self.prompt - self.read, 0)


@dataclass
class Evidence:
    """One process, from its spawn on. Each method is one observation."""

    started: float
    is_loading: bool = True
    said_ready: bool = False
    doing: str = ""
    """What it says of its load."""
    moved_at: float = 0.0
    """The last sign that its work goes on: progress of a load, bytes of an answer, a slot that moved."""
    owed_since: float | None = None
    """Something was asked of it then, and nothing has moved since."""
    _owed_when_idle: float | None = None
    """The same, as it was when no slot was seen to work. Who had left by then is owed nothing."""

    accepted_at: float | None = None
    refused: list[float] = field(default_factory=list)
    """When its port refused, the first and the last ones, since it was open last."""
    refusals: int = 0

    asking_since: float | None = None
    """A probe is under way."""
    asks_slots: bool = False
    """It is one that tells of the work; what answers /health may stand still."""
    looked_at: float = 0.0
    """When the last one ended."""
    work_looked_at: float = 0.0
    """When the last one ended that asked for the slots, answered or not."""
    _slots_owed_since: float | None = None
    """One that asked for the slots was begun then, and none has been answered since: whatever tells of the
    work is work of the same main loop."""
    answered_at: float | None = None
    missed: list[float] = field(default_factory=list)
    """When probes were begun that got no answer, since the last sign of life."""

    slots: tuple[Slot, ...] | None = None
    """Those that worked when they were seen last."""
    slots_at: float = 0.0
    """When that was."""
    slots_before: float = 0.0
    """When they were seen before that."""
    slots_asked_at: float = 0.0
    """When the last look at them was begun, answered or not."""
    freed_at: float = 0.0
    """When its log said last that a slot is free."""
    on_freed: Callable[[], object] = int
    """Called then."""
    shows_slots: bool = True
    """It has not answered yet that it cannot tell. Where it cannot, what it logs is taken for progress."""
    slot_moved_at: dict[int, float] = field(default_factory=dict)
    """By task."""

    stopped_since: float | None = None
    """By a signal or a debugger, as far as it was looked at; None: it was not at the last look."""
    busy_since: float | None = None
    """Since then it has computed, as far as it was looked at; None: it was waiting at the last look."""
    exited_at: float | None = None
    observed: int = 0
    """How often it was looked at."""
    _cpu: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        self.moved_at = max(self.moved_at, self.started)

    # --- its port

    def port_refused(self, now: float) -> None:
        """Counts only after the port was open, or after the process said that it is ready: until then the
        process is starting, and a large build on a cold disk starts for a long time."""
        self.observed += 1
        if self.accepted_at is None and not self.said_ready:
            return
        self.refusals += 1
        self.refused = [*self.refused[:1], now]

    def port_accepted(self, now: float) -> None:
        self.accepted_at, self.refusals = now, 0
        self.refused.clear()

    # --- probes: one at a time

    def probe_begun(self, now: float, *, at_slots: bool = False) -> None:
        self.asking_since, self.asks_slots = now, at_slots
        if at_slots:
            self.slots_asked_at = now

    def probe_answered(self, now: float) -> None:
        self.port_accepted(now)
        self.observed += 1
        if self.asks_slots:
            self.work_looked_at, self._slots_owed_since = now, None
        self.asking_since, self.looked_at, self.answered_at = None, now, now
        self.missed.clear()

    def probe_missed(self, now: float, *, is_void: bool = False) -> None:
        """No answer within its time. `is_void` where that tells nothing: it could not be asked."""
        self.observed += 1
        begun, self.asking_since, self.looked_at = self.asking_since, None, now
        if is_void:
            return
        if self.asks_slots:
            self.work_looked_at = now
        if begun is None or begun < self.moved_at:
            return
        self.missed = [*self.missed, begun][-KEPT:]
        if self.asks_slots and self._slots_owed_since is None:
            self._slots_owed_since = begun

    # --- its work

    @property
    def is_stopped(self) -> bool:
        return self.stopped_since is not None

    @property
    def unanswered_since(self) -> float | None:
        """Since when nothing has moved although something is owed, to a request or to a look at the slots."""
        owed = [since for since in (self.owed_since, self._slots_owed_since) if since is not None]
        return min(owed, default=None)

    @property
    def is_doubted(self) -> bool:
        """It matters whether it has moved."""
        is_owed = self.unanswered_since is not None or self._owed_when_idle is not None
        return is_owed or bool(self.missed)

    def moved(self, now: float) -> None:
        """What it was asked for goes on. May be told late."""
        self.moved_at = max(self.moved_at, now)
        if self.owed_since is not None and self.owed_since <= now:
            self.owed_since = None
        if self._slots_owed_since is not None and self._slots_owed_since <= now:
            self._slots_owed_since = None
        self.missed = [begun for begun in self.missed if begun > now]

    def said(self, now: float) -> None:
        """It wrote to its log: that counts where no slots can be seen, but for what it writes of probes."""
        if self.asking_since is None and now - self.looked_at > ECHO_S:
            self.moved(now)

    def asked(self, since: float) -> None:
        """A request was sent then, and had got nothing when this was told or its client left."""
        if self._owed_when_idle is not None and since < self.slots_at:
            since = min(since, self._owed_when_idle)  # it stood there, and no slot worked on it
        since = max(since, self.moved_at)
        self.owed_since = since if self.owed_since is None else min(self.owed_since, since)

    def saw_slots(self, now: float, working: Sequence[Slot] | None) -> None:
        """How far those are that work; None: it cannot tell. One that is seen for the first time has moved,
        and one that has ended. Where none works, nothing is owed but to who still stands there."""
        before, self.shows_slots = {slot.task: slot for slot in self.slots or ()}, working is not None
        self.slots_before, self.slots_at = self.slots_at, now
        if working is None:
            self.slots = None
            return
        self.slots = tuple(working)
        after = {slot.task: slot for slot in working}
        self.slot_moved_at = {
            task: now if before.get(task) != slot else self.slot_moved_at.get(task, now)
            for task, slot in after.items()
        }
        if now in self.slot_moved_at.values() or before.keys() - after.keys():
            self.moved(now)
        self._owed_when_idle = None if working else self.owed_since
        if not working:
            self.owed_since = None

    def said_slot_is_free(self, now: float) -> None:
        self.freed_at = now
        self.on_freed()

    def used_processor(self, now: float, cpu_s: float, *, is_stopped: bool) -> None:
        """The processor time of all its threads so far."""
        self.observed += 1
        before, self._cpu = self._cpu, (now, cpu_s)
        if not is_stopped:
            self.stopped_since = None
        elif self.stopped_since is None:
            self.stopped_since = now
        if before is None or now <= before[0]:
            return
        if cpu_s - before[1] < BUSY_SHARE * (now - before[0]):
            self.busy_since = None
        elif self.busy_since is None:
            self.busy_since = before[0]

    # --- its life

    def ready(self, now: float) -> None:
        self.is_loading, self.looked_at = False, now
        self.moved(now)
        self.owed_since = self._owed_when_idle = self._slots_owed_since = None

    def exited(self, now: float) -> None:
        self.exited_at = now
