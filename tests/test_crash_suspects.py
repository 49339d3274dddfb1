"""Who is held to have crashed a process, and who is not."""

from __future__ import annotations

from app.domain.request_fingerprint import Fingerprint, Work
from app.models.crash_suspects import MAX_REFUSED, Suspects, Suspicion

A, B, C = (Fingerprint.of(Work("/v1/chat/completions", text)) for text in (b"a", b"bb", b"ccc"))
LATER = 700.0


def suspicions(suspects: Suspects, now: float = 101.0) -> list[Suspicion]:
    return [suspects.suspicion(who, now) for who in (A, B, C)]


def test_nobody_is_known_as_long_as_nothing_crashed() -> None:
    suspects = Suspects()
    assert not suspects.sizes
    assert suspicions(suspects) == [Suspicion.CLEAR] * 3
    assert suspects.crashed([], 100.0, LATER) is None
    assert not suspects.sizes, "it crashed while nothing ran"


def test_all_that_ran_are_suspects() -> None:
    suspects = Suspects()
    assert suspects.crashed([A, B], 100.0, LATER) is None
    assert suspicions(suspects) == [Suspicion.SUSPECT, Suspicion.SUSPECT, Suspicion.CLEAR]
    assert suspects.sizes == {A.size, B.size}


def test_the_same_body_for_another_endpoint_is_another_request() -> None:
    suspects = Suspects()
    suspects.crashed([A], 100.0, LATER)
    assert suspects.suspicion(Fingerprint.of(Work("/tokenize", b"a")), 101.0) is Suspicion.CLEAR


def test_whoever_ran_alone_at_the_second_crash_is_the_culprit() -> None:
    for first in ([A], [A, B]):
        suspects = Suspects()
        assert suspects.crashed(first, 100.0, LATER) is None
        assert suspects.crashed([A], 101.0, LATER) == A
        assert suspicions(suspects, 102.0) == [Suspicion.REFUSED, Suspicion.CLEAR, Suspicion.CLEAR]


def test_a_first_crash_alone_names_no_culprit() -> None:
    suspects = Suspects()
    suspects.crashed([B], 100.0, LATER)
    assert suspects.crashed([A], 101.0, LATER) is None
    assert suspicions(suspects) == [Suspicion.SUSPECT, Suspicion.SUSPECT, Suspicion.CLEAR]


def test_two_of_the_same_body_are_not_alone() -> None:
    """One of them might be innocent of what the other one's slot did."""
    suspects = Suspects()
    suspects.crashed([A], 100.0, LATER)
    assert suspects.crashed([A, A], 101.0, LATER) is None


def test_whoever_ran_to_its_end_is_cleared_and_the_others_are_not() -> None:
    suspects = Suspects()
    suspects.crashed([A, B], 100.0, LATER)
    assert suspects.cleared(B) == []
    assert suspicions(suspects) == [Suspicion.SUSPECT, Suspicion.CLEAR, Suspicion.CLEAR]


def test_a_crash_is_unexplained_when_all_are_cleared() -> None:
    suspects = Suspects()
    suspects.crashed([A, B], 100.0, LATER)
    suspects.crashed([C], 150.0, LATER)
    assert suspects.cleared(B) == []
    assert suspects.cleared(A) == [100.0]
    assert suspects.cleared(C) == [150.0]
    assert not suspects.sizes


def test_a_crash_that_a_culprit_explains_is_held_against_nobody_else() -> None:
    suspects = Suspects()
    suspects.crashed([A, B], 100.0, LATER)
    suspects.crashed([B, C], 110.0, LATER)
    assert suspects.crashed([A], 120.0, LATER) == A
    assert suspicions(suspects, 121.0) == [Suspicion.REFUSED, Suspicion.SUSPECT, Suspicion.SUSPECT]
    assert suspects.cleared(B) == []
    assert suspects.cleared(C) == [110.0]


def test_a_refusal_ends() -> None:
    suspects = Suspects()
    suspects.crashed([A], 100.0, LATER)
    suspects.crashed([A], 101.0, LATER)
    assert suspects.suspicion(A, LATER) is Suspicion.CLEAR
    suspects.forget(LATER, before=100.0)
    assert not suspects.sizes


def test_who_never_came_back_is_forgotten() -> None:
    suspects = Suspects()
    suspects.crashed([A], 100.0, LATER)
    suspects.crashed([B], 200.0, LATER)
    suspects.forget(now=300.0, before=100.0)
    assert suspicions(suspects) == [Suspicion.CLEAR, Suspicion.SUSPECT, Suspicion.CLEAR]


def test_only_so_many_are_remembered() -> None:
    suspects = Suspects()
    for number in range(MAX_REFUSED + 2):
        who = Fingerprint.of(Work("/x", b"%d" % number))
        suspects.crashed([who], 100.0, LATER)
        suspects.crashed([who], 101.0, LATER)
    first, last = Fingerprint.of(Work("/x", b"0")), Fingerprint.of(Work("/x", b"%d" % (MAX_REFUSED + 1)))
    assert suspects.suspicion(first, 102.0) is Suspicion.CLEAR
    assert suspects.suspicion(last, 102.0) is Suspicion.REFUSED
