"""How far requests are, from what was seen of a process's slots and of the streams."""

from __future__ import annotations

from app.judgement.evidence import Evidence, Slot
from app.judgement.progress import Running, known, of_process


def seen(at: float, *slots: Slot) -> Evidence:
    evidence = Evidence(0.0)
    evidence.saw_slots(at, slots)
    return evidence


def test_slots_belong_to_requests_in_the_order_of_their_start() -> None:
    evidence = seen(20.0, Slot(9, 50, 10, 0), Slot(4, 7, 7, 300))
    assert known([(12.0, None), (11.0, None)], evidence) == (
        Running(11.0, 7, 7, 300),
        Running(12.0, 50, 10, 0),
    )


def test_what_was_seen_before_a_request_began_says_nothing_of_it() -> None:
    evidence = seen(20.0, Slot(4, 7, 7, 300))
    assert known([(21.0, None)], evidence) == (Running(21.0),)
    assert of_process(evidence, since=21.0) is None


def test_where_the_numbers_do_not_fit_only_the_process_is_told_of() -> None:
    evidence = seen(20.0, Slot(4, 7, 9, 300), Slot(5, 50, 10, 0))
    assert known([(11.0, None)], evidence) == (Running(11.0),)
    assert of_process(evidence, since=11.0) == Slot(0, 57, 17, 300)


def test_of_a_stream_what_has_come_is_newer() -> None:
    assert known([(1.0, 40)], seen(20.0)) == (Running(1.0, generated=40),)
    assert known([(1.0, 40)], seen(20.0, Slot(4, 7, 7, 30))) == (Running(1.0, 7, 7, 40),)
    assert known([(1.0, 0)], seen(20.0, Slot(4, 70, 5, 0))) == (Running(1.0, 70, 5, 0),)


def test_nobody_runs() -> None:
    assert known([], seen(20.0, Slot(4, 7, 7, 300))) == ()
    assert of_process(Evidence(0.0), since=0.0) is None
