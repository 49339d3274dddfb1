"""Any traffic and any trouble, in virtual time: the rules hold at each step, and everything ends.

SCHEDULING_EXAMPLES=2000 looks longer.
"""

from __future__ import annotations

import os

from app.domain.priority import Priority
from app.scheduling.actions import Limits
from bench.world import Spec
from tests.scheduling_machine import AGING, Scheduling, run_machine
from tests.scheduling_rules import CheckedWorld

EXAMPLES = int(os.environ.get("SCHEDULING_EXAMPLES", "400"))


def test_the_rules_hold_whatever_happens() -> None:
    run_machine(Scheduling, EXAMPLES)


def test_what_drains_for_a_newcomer_is_enough_although_another_model_might_go_by_now() -> None:
    """The promise was due when it was told to go. Later the other one has only less urgent requests left."""
    specs = [Spec("drains", 4000, load_s=1.0), Spec("serves", 4000, load_s=5.0), Spec("newcomer", 4000)]
    world = CheckedWorld(specs, [16_000], Limits(2, 10.0, AGING))
    world.arrive("drains", Priority.HIGH, service_s=100.0)  # from 1 s on; due at 11 s
    for priority in (Priority.HIGH, Priority.HIGH, Priority.NORMAL):  # from 5, 9 and 13 s on
        last = world.arrive("serves", priority, service_s=4.0)
    newcomer = world.arrive("newcomer", Priority.HIGH)
    world.run()
    assert last.granted == 13.0
    assert newcomer.granted > 101.0
