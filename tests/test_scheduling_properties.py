"""Any traffic and any trouble, in virtual time: the rules hold at each step, and everything ends.

SCHEDULING_EXAMPLES=2000 looks longer.
"""

from __future__ import annotations

import os

from tests.scheduling_machine import Scheduling, run_machine

EXAMPLES = int(os.environ.get("SCHEDULING_EXAMPLES", "400"))


def test_the_rules_hold_whatever_happens() -> None:
    run_machine(Scheduling, EXAMPLES)
