"""The heap of tickets: its order, its bound, and that nobody who leaves is left behind."""

from __future__ import annotations

import asyncio

import pytest

from app.core.queue import RequestQueue, Ticket, TicketState
from app.domain.errors import QueueFull, RouterError, ShuttingDown
from app.domain.priority import Priority
from app.domain.request_fingerprint import Work
from app.domain.views import QueueHead

HIGH, NORMAL, LOW = Priority.HIGH, Priority.NORMAL, Priority.LOW
AGING = 30.0


def ticket(priority: Priority = NORMAL, arrived: float = 0.0) -> Ticket:
    return Ticket(priority, arrived, AGING)


def queue(*tickets: Ticket, slots: int = 1, max_waiting: int = 500) -> RequestQueue:
    made = RequestQueue(slots, max_waiting)
    for one in tickets:
        made.push(one)
    return made


def served(waiting: RequestQueue, service_s: float = 0.0) -> list[Ticket]:
    """Serve one after the other until nobody waits."""
    done: list[Ticket] = []
    while (granted := waiting.grant(now=0.0)) is not None:
        waiting.finish(granted, now=service_s)
        done.append(granted)
    return done


# --- order


def test_equal_requests_are_served_in_order_of_arrival() -> None:
    tickets = [ticket() for _ in range(20)]
    assert served(queue(*tickets)) == tickets


def test_a_high_request_is_the_next_after_200_low_ones_of_the_last_minute() -> None:
    low = [ticket(LOW, arrived=i * 0.1) for i in range(200)]
    high = ticket(HIGH, arrived=2 * AGING - 0.1)
    assert served(queue(*low, high))[0] is high


def test_a_request_that_waited_twice_the_aging_time_goes_before_any_high_one() -> None:
    low, high = ticket(LOW, arrived=0.0), ticket(HIGH, arrived=2 * AGING + 0.1)
    assert served(queue(high, low)) == [low, high]


def test_one_level_is_worth_one_aging_time() -> None:
    assert [ticket(p, arrived=5.0).key for p in (HIGH, NORMAL, LOW)] == [5.0, 35.0, 65.0]


def test_the_head_is_who_is_served_next() -> None:
    late, early = ticket(HIGH, arrived=1.0), ticket(HIGH, arrived=0.5)
    waiting = queue(late, early)
    assert waiting.head == QueueHead(0.5, HIGH, 0.5, early.order)
    waiting.finish(early, now=2.0)
    assert waiting.head == QueueHead(1.0, HIGH, 1.0, late.order)
    waiting.finish(late, now=2.0)
    assert waiting.head is None


def test_asking_who_waits_changes_nothing() -> None:
    tickets = [ticket(arrived=float(i)) for i in range(6)]
    waiting = queue(*tickets)
    for leaver in (*tickets[2:4], *tickets[:2]):
        waiting.finish(leaver, now=9.0)
    before = list(waiting._heap)
    assert (waiting.has_waiting, waiting.peek()) == (True, tickets[4])
    assert waiting.head == QueueHead(tickets[4].key, NORMAL, 4.0, tickets[4].order)
    assert waiting._heap == before


def test_a_queue_that_all_have_left_is_empty() -> None:
    tickets = [ticket(arrived=float(i)) for i in range(6)]
    waiting = queue(*tickets)
    for leaver in reversed(tickets):
        waiting.finish(leaver, now=9.0)
    assert (waiting.has_waiting, waiting.head) == (False, None)
    assert waiting.try_grant(ticket(), now=9.0), "nobody is passed over"


def test_the_position_counts_those_who_are_served_before() -> None:
    first, second, urgent = ticket(), ticket(), ticket(HIGH)
    waiting = queue(first, second, urgent)
    assert [waiting.position(t) for t in (urgent, first, second)] == [1, 2, 3]
    waiting.finish(first, now=0.0)
    assert waiting.position(second) == 2


# --- slots


def test_no_more_are_granted_than_there_are_slots() -> None:
    waiting = queue(*(ticket() for _ in range(5)), slots=2)
    granted = [waiting.grant(0.0), waiting.grant(0.0)]
    assert waiting.grant(0.0) is None
    assert (waiting.in_flight, waiting.waiting) == (2, 3)
    waiting.finish(granted[0] or ticket(), now=1.0)
    assert waiting.grant(1.0) is not None


def test_the_best_priority_in_flight_is_known() -> None:
    low, high = ticket(LOW), ticket(HIGH)
    waiting = queue(low, high, slots=2)
    assert waiting.best_in_flight is None
    waiting.grant(0.0)
    waiting.grant(0.0)
    assert waiting.best_in_flight is HIGH
    waiting.finish(high, now=1.0)
    assert waiting.best_in_flight is LOW


def test_finishing_twice_frees_one_slot() -> None:
    a, b = ticket(), ticket()
    waiting = queue(a, b, slots=2)
    waiting.grant(0.0)
    waiting.grant(0.0)
    assert waiting.finish(a, now=1.0) is True
    assert waiting.finish(a, now=1.0) is False
    assert waiting.in_flight == 1


def test_finishing_a_waiting_ticket_twice_counts_once() -> None:
    a, b = ticket(), ticket()
    waiting = queue(a, b)
    assert waiting.finish(a, now=1.0) is False
    assert waiting.finish(a, now=1.0) is False
    assert (waiting.waiting, waiting.waiting_by_level) == (1, [0, 1, 0])


def test_a_ticket_that_never_entered_is_not_counted_out() -> None:
    early = ticket()
    waiting = queue(ticket())
    assert waiting.finish(early, now=1.0) is False
    assert (early.state, waiting.waiting) == (TicketState.DONE, 1)


def test_a_free_slot_is_taken_without_a_wait() -> None:
    waiting = queue(slots=2)
    one, other, late = ticket(LOW), ticket(HIGH), ticket()
    assert waiting.try_grant(one, now=3.0)
    assert waiting.try_grant(other, now=4.0)
    assert (one.state, one.granted_at) == (TicketState.GRANTED, 3.0)
    assert (waiting.in_flight, waiting.waiting, waiting.best_in_flight) == (2, 0, HIGH)
    assert not waiting.try_grant(late, now=5.0)
    assert (late.state, waiting.in_flight, waiting.waiting) == (TicketState.NEW, 2, 0)
    assert waiting.finish(one, now=5.0)
    assert waiting.try_grant(late, now=5.0)


def test_a_slot_is_not_taken_before_somebody_who_waits() -> None:
    first, urgent = ticket(LOW), ticket(HIGH)
    waiting = queue(first)
    assert not waiting.try_grant(urgent, now=0.0)
    waiting.push(urgent)
    assert waiting.grant(0.0) is urgent


# --- leaving


def test_who_has_left_is_never_granted() -> None:
    tickets = [ticket() for _ in range(10)]
    waiting = queue(*tickets)
    for gone in tickets[::2]:
        waiting.finish(gone, now=0.0)
    assert served(waiting) == tickets[1::2]


def test_a_heap_of_the_dead_is_swept() -> None:
    tickets = [ticket() for _ in range(1000)]
    waiting = queue(*tickets, max_waiting=1000)
    for gone in tickets[1:]:
        waiting.finish(gone, now=0.0)
    assert len(waiting._heap) <= 64
    assert waiting.peek() is tickets[0]


def test_many_that_come_and_go_behind_one_that_waits_take_no_memory() -> None:
    waiting = queue(ticket())
    for _ in range(5000):
        late = ticket(LOW)
        waiting.push(late)
        waiting.finish(late, now=0.0)
    assert len(waiting._heap) <= 66


def test_counts_by_level_follow_everybody() -> None:
    tickets = [ticket(p) for p in (HIGH, LOW, LOW, NORMAL)]
    waiting = queue(*tickets)
    assert (waiting.waiting, waiting.waiting_by_level) == (4, [1, 1, 2])
    waiting.grant(0.0)
    waiting.finish(tickets[1], now=0.0)
    assert (waiting.waiting, waiting.waiting_by_level) == (2, [0, 1, 1])


def test_the_oldest_arrival_is_that_of_somebody_who_still_waits() -> None:
    old, new = ticket(LOW, arrived=1.0), ticket(HIGH, arrived=2.0)
    waiting = queue(old, new)
    assert waiting.oldest_arrival() == 1.0
    waiting.finish(old, now=3.0)
    assert waiting.oldest_arrival() == 2.0
    waiting.finish(new, now=3.0)
    assert waiting.oldest_arrival() is None


# --- the bound


def test_a_full_queue_refuses_the_next_one() -> None:
    waiting = queue(ticket(), ticket(), max_waiting=2)
    with pytest.raises(QueueFull):
        waiting.push(ticket())
    assert waiting.waiting == 2


def test_who_leaves_or_is_granted_makes_room_in_the_queue() -> None:
    a, b = ticket(), ticket()
    waiting = queue(a, b, max_waiting=2)
    waiting.finish(a, now=0.0)
    waiting.push(ticket())
    waiting.grant(0.0)
    waiting.push(ticket())
    assert waiting.waiting == 2


def test_retry_after_follows_the_service_that_was_seen() -> None:
    waiting = queue(*(ticket() for _ in range(20)), slots=2)
    served(waiting, service_s=4.0)
    for _ in range(9):
        waiting.push(ticket())
    assert waiting.expected_wait_s() == 20.0  # ten requests of 4 s in two slots
    waiting.max_waiting = 9
    with pytest.raises(QueueFull) as refused:
        waiting.push(ticket())
    assert refused.value.retry_after_s == 20.0


@pytest.mark.parametrize(("service_s", "expected"), [(0.001, 1.0), (9999.0, 300.0)])
def test_retry_after_is_neither_nothing_nor_for_ever(service_s: float, expected: float) -> None:
    waiting = queue(ticket())
    served(waiting, service_s)
    assert waiting.expected_wait_s() == expected


def test_retry_after_has_a_guess_before_anybody_was_served() -> None:
    assert queue(*(ticket() for _ in range(4))).expected_wait_s() == 5.0


# --- the replay


def test_a_replay_keeps_its_place() -> None:
    first, second = ticket(), ticket()
    waiting = queue(first, second)
    waiting.finish(waiting.grant(0.0) or second, now=1.0)
    replay = first.for_replay()
    waiting.push(replay)
    assert (replay.key, replay.order, replay.arrived) == (first.key, first.order, first.arrived)
    assert waiting.peek() is replay


def test_a_replay_is_not_refused_by_a_queue_that_has_filled_meanwhile() -> None:
    first = ticket()
    waiting = queue(first, max_waiting=1)
    waiting.grant(0.0)
    waiting.push(ticket())
    waiting.finish(first, now=1.0)
    waiting.push(first.for_replay())
    assert waiting.waiting == 2


# --- waiting


async def test_a_grant_ends_the_wait() -> None:
    waiting = queue(one := ticket())
    task = asyncio.create_task(one.wait(timeout_s=60))
    await asyncio.sleep(0)
    waiting.grant(0.0)
    assert await task is True


async def test_a_grant_before_the_wait_is_not_missed() -> None:
    waiting = queue(one := ticket())
    waiting.grant(0.0)
    assert await one.wait(timeout_s=60) is True


async def test_a_wait_ends_in_time_and_may_be_continued() -> None:
    waiting = queue(one := ticket())
    assert await one.wait(timeout_s=0) is False
    waiting.grant(0.0)
    assert await one.wait(timeout_s=0) is True


async def test_an_error_ends_every_wait() -> None:
    waiting = queue(a := ticket(), b := ticket())
    task = asyncio.create_task(a.wait(timeout_s=60))
    await asyncio.sleep(0)
    assert waiting.fail_waiting(ShuttingDown("over")) == 2
    with pytest.raises(ShuttingDown):
        await task
    with pytest.raises(ShuttingDown):
        await b.wait(timeout_s=60)
    assert (waiting.waiting, waiting.waiting_by_level, waiting.head) == (0, [0, 0, 0], None)


async def test_an_error_for_those_who_wait_does_not_touch_those_who_run() -> None:
    running, one = ticket(), ticket()
    waiting = queue(running, one)
    waiting.grant(0.0)
    assert waiting.fail_waiting(ShuttingDown("over")) == 1
    assert (running.state, waiting.in_flight) == (TicketState.GRANTED, 1)
    waiting.finish(one, now=1.0)  # its client leaves after it was told
    assert waiting.waiting == 0


class Owner:
    """Keeps what it is told, and the states that it saw."""

    quiet_since: float | None = None
    generated: int | None = None

    def __init__(self, held: Ticket) -> None:
        self.ticket, self.told = held, list[object]()
        held.owner = self

    def granted(self) -> None:
        self.told.append(self.ticket.state)

    def refused(self, error: RouterError) -> None:
        self.told.append((self.ticket.state, error))

    def cut(self) -> None:
        self.told.append("cut")

    def asks_for(self) -> Work | None:
        return None


def test_an_owner_is_told_once_what_becomes_of_its_ticket() -> None:
    waiting = queue(one := ticket(), other := ticket())
    first, second, error = Owner(one), Owner(other), ShuttingDown("over")
    waiting.grant(0.0)
    assert (first.told, second.told) == ([TicketState.GRANTED], [])
    waiting.fail_waiting(error)
    assert second.told == [(TicketState.DONE, error)]
    waiting.finish(one, now=1.0)
    waiting.finish(other, now=1.0)
    assert (len(first.told), len(second.told)) == (1, 1)
    assert (waiting.in_flight, waiting.waiting) == (0, 0)


def test_an_owner_that_leaves_when_it_is_refused_disturbs_nobody() -> None:
    """Its slot of the heap is free at once; whoever is granted meanwhile is not refused after all."""
    waiting = queue(one := ticket(), other := ticket(), slots=2)
    second, error = Owner(other), ShuttingDown("over")

    class Leaver(Owner):
        def refused(self, error: RouterError) -> None:
            waiting.finish(self.ticket, now=0.0)
            assert waiting.grant(0.0) is None

    Leaver(one)
    assert waiting.fail_waiting(error) == 2
    assert second.told == [(TicketState.DONE, error)]
    assert (waiting.in_flight, waiting.waiting) == (0, 0)


def test_a_ticket_that_is_seated_tells_its_owner_too() -> None:
    waiting, one = queue(), ticket()
    owner = Owner(one)
    assert waiting.try_grant(one, 0.0)
    assert owner.told == [TicketState.GRANTED]


async def test_who_waits_is_told_the_error_however_late_it_asks() -> None:
    waiting = queue(one := ticket())
    task = asyncio.create_task(one.wait(timeout_s=60))
    await asyncio.sleep(0)
    waiting.fail_waiting(ShuttingDown("over"))
    with pytest.raises(ShuttingDown):
        await task
    with pytest.raises(ShuttingDown):
        await one.wait(timeout_s=0)


async def test_a_ticket_that_is_granted_while_its_client_leaves_gives_its_slot_back() -> None:
    waiting = queue(one := ticket(), other := ticket())
    task = asyncio.create_task(one.wait(timeout_s=60))
    await asyncio.sleep(0)
    waiting.grant(0.0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert waiting.finish(one, now=0.0) is True
    assert waiting.grant(0.0) is other


# --- alone


def alone(arrived: float = 0.0, now: float = 0.0) -> Ticket:
    made = ticket(arrived=arrived)
    made.set_apart(now)
    return made


def test_who_runs_alone_waits_until_nothing_runs() -> None:
    waiting = queue(one := ticket(arrived=1), other := alone(2, now=2), third := ticket(arrived=3), slots=3)
    assert waiting.grant(0.0) is one
    assert waiting.grant(0.0) is None, "nor may the third go past it"
    waiting.finish(one, 0.0)
    assert waiting.grant(0.0) is other
    assert waiting.grant(0.0) is None
    assert not waiting.try_grant(ticket(), 0.0)
    waiting.finish(other, 0.0)
    assert waiting.grant(0.0) is third
    assert not waiting.has_waiting


def test_who_runs_alone_never_takes_a_seat_at_once() -> None:
    waiting = queue(slots=2)
    assert not waiting.try_grant(alone(), 0.0)
    assert waiting.try_grant(ticket(), 0.0)


def test_who_is_set_apart_goes_after_all_that_waited_then() -> None:
    first, second = ticket(arrived=1), ticket(arrived=2)
    waiting = queue(first, second, slots=3)
    waiting.set_apart([first], now=10)
    waiting.push(third := ticket(arrived=11))
    assert served(waiting) == [second, first, third]
    again = first.for_replay()
    again.set_apart(20)
    assert again.key == 20 + NORMAL * AGING


def test_some_of_those_who_wait_can_be_refused() -> None:
    first, second = ticket(arrived=1), ticket(LOW, arrived=2)
    waiting = queue(first, second)
    owner = Owner(second)
    waiting.fail([second], error := ShuttingDown("x"))
    assert owner.told == [(TicketState.DONE, error)]
    assert waiting.waiting_by_level == [0, 1, 0]
    assert served(waiting) == [first]
