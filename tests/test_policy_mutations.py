"""The property tests are worth something: each of these mistakes in the scheduling code makes them fail."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from bench.world import Code
from tests.mutations import CLAIMS, LIFECYCLE, PLACEMENT, POLICY, QUEUE, SWAPS, TURNS, Mutation, mutated
from tests.scheduling_machine import Scheduling, run_machine

EXAMPLES = 2000
MUTATIONS = [
    Mutation(
        "the busy check is dropped",
        TURNS,
        "    if victim.model.pinned or victim.process.status not in _TAKEABLE:\n",
        "    return now\n    if victim.model.pinned or victim.process.status not in _TAKEABLE:\n",
    ),
    Mutation(
        "requests do not age",
        QUEUE,
        "self._handicap_s = waiting_handicap_s(priority, aging_s)",
        "self._handicap_s = priority * 1e9",
    ),
    Mutation(
        "priorities are ignored",
        QUEUE,
        "self._handicap_s = waiting_handicap_s(priority, aging_s)",
        "self._handicap_s = 0.0",
    ),
    Mutation(
        "the reservation is forgotten",
        PLACEMENT,
        "return self._with({d: mb - taken.get(d, 0) for d, mb in self.free.items()}, self.places - 1)",
        "return self",
    ),
    Mutation(
        "the hold has no end",
        TURNS,
        "hold_end = _held_since(victim, newcomer) + promise_s(newcomer.model, limits)",
        "hold_end = NEVER",
    ),
    Mutation(
        "there is no hold",
        TURNS,
        "hold_end = _held_since(victim, newcomer) + promise_s(newcomer.model, limits)",
        "hold_end = now",
    ),
    Mutation(
        "a high priority waits for the hold",
        TURNS,
        "return now if head.level < rival_level else max(now, hold_end)",
        "return max(now, hold_end)",
    ),
    Mutation(
        "victims are chosen without a check that it helps",
        CLAIMS,
        "    else:\n        return ()\n",
        "",
    ),
    Mutation(
        "more victims are named than needed",
        CLAIMS,
        "for victim in reversed(chosen[:-1]):",
        "for victim in ():",
    ),
    Mutation(
        "a model need not serve before it goes",
        TURNS,
        "    if victim.model.head and not victim.process.served:\n",
        "    if False:\n",
    ),
    Mutation(
        "busy models go before idle ones",
        SWAPS,
        "return missed(model) + model.in_flight + model.waiting",
        "return missed(model) - model.in_flight - model.waiting",
    ),
    Mutation(
        "the memory of others is not asked for in turn",
        POLICY,
        "key=lambda m: turn(m, limits))",
        "key=lambda m: m.alias)",
    ),
    Mutation(
        "draining models are never resumed",
        POLICY,
        "    step.resume_what_nobody_claims()\n",
        "",
    ),
    Mutation(
        "nobody is told when to look again",
        POLICY,
        "        self.wake_at = min(self.wake_at, when)\n",
        "        pass\n",
    ),
    Mutation(
        "what can never fit is not refused",
        POLICY,
        "        elif refusal := self._claims.refusal(model):\n"
        "            self._refuse_in_time(model, refusal)\n",
        "",
    ),
    Mutation(
        "a request that leaves is forgotten in the count",
        QUEUE,
        "        elif ticket.state is TicketState.WAITING:\n",
        "        elif False:\n",
    ),
    Mutation(
        "what has drained is not stopped",
        LIFECYCLE,
        "        return self.stop(self.stop_reason or StopReason.MANUAL, now=now)\n",
        "        return []\n",
    ),
    Mutation(
        "what drains is stopped with requests in flight",
        LIFECYCLE,
        "return [move] if in_flight else [move, *self.drained(now)]",
        "return [move, *self.drained(now)]",
    ),
    Mutation(
        "those who wait for a model that has failed are not told",
        LIFECYCLE,
        "return [self._move(Status.FAILED, failure.message, now), RejectWaiting(failure)]",
        "return [self._move(Status.FAILED, failure.message, now)]",
    ),
]


def machine_with(code: Code) -> type[Scheduling]:
    fields: Mapping[str, object] = {"code": code}
    return type("Mutated", (Scheduling,), dict(fields))


@pytest.mark.timeout(900)  # to find nothing takes minutes on a busy machine
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name.replace(" ", "-"))
def test_a_mistake_is_caught(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = machine_with(mutated(mutation, monkeypatch))
    with pytest.raises(AssertionError):
        run_machine(machine, EXAMPLES)


def test_the_unchanged_code_passes_in_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    same = Mutation("nothing", TURNS, "\n_TAKEABLE = ", "\n_TAKEABLE = ")
    run_machine(machine_with(mutated(same, monkeypatch)), EXAMPLES // 50)
