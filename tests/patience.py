"""How long a test waits for others: what the machine takes for itself meanwhile does not count."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

WAIT_S = 60.0
"""For what is there in a moment, however busy the machine is: a wait that lasts as long has failed."""

STEP_S = 0.5
POLL_S = 0.02


class Patience:
    """To be asked again and again. At most `STEP_S` counts from one time to the next: the machine, or this
    program, may have stood still for longer than all of it."""

    def __init__(self, timeout_s: float = WAIT_S) -> None:
        self._left_s, self._asked = timeout_s, time.monotonic()

    @property
    def is_over(self) -> bool:
        now = time.monotonic()
        self._left_s -= min(now - self._asked, STEP_S)
        self._asked = now
        return self._left_s <= 0


def is_ever(found: Callable[[], bool], tries: int = 3) -> bool:
    """Of what takes processor time: to a virtual machine its host's pauses are time of the thread that runs.
    What is too slow is so each time."""
    return any(found() for _ in range(tries))


def exit_code(process: subprocess.Popen[bytes] | subprocess.Popen[str], timeout_s: float = WAIT_S) -> int:
    """Its exit code, when it has one."""
    patience = Patience(timeout_s)
    while (code := process.poll()) is None:
        assert not patience.is_over, f"{process.args!r} has not ended after {timeout_s} s"
        time.sleep(POLL_S)
    return code
