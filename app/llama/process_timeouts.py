"""How long the router waits for what a process does. In seconds."""

from __future__ import annotations

from dataclasses import dataclass

from app.judgement.judge import CLOSED_S


@dataclass(frozen=True)
class ProcessTimes:
    """`check_timeout_s`: for a disk that may hang, before a load.
    `read_pause_s`: between two reads of the output of a process that serves.
    `last_output_s`: for the pipe to run dry after an exit; a grandchild may hold it open for ever.
    `kill_wait_s`: a process inside a driver call can outlive SIGKILL for a while.
    `port_closed_s`: a port that was open and refuses for this long while the model loads has been closed.
    """

    check_timeout_s: float = 2.0
    read_pause_s: float = 0.05
    last_output_s: float = 0.5
    kill_wait_s: float = 10.0
    port_closed_s: float = CLOSED_S


USUAL = ProcessTimes()
