"""The clock that the chaos suite sets: it must really be seen, and by nobody but the one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.patience import exit_code
from tests.wall_clock import WallClock

HOUR_S = 3600.0
ASKED = """
import datetime, json, queue, subprocess, sys, time
for line in sys.stdin:
    begun = time.monotonic()
    try:
        queue.Queue().get(timeout=0.05)
    except queue.Empty:
        pass
    print(json.dumps({
        "time": time.time(),
        "datetime": datetime.datetime.now().timestamp(),
        "struct": time.mktime(time.localtime()),
        "monotonic": time.monotonic(),
        "waited": time.monotonic() - begun,
        "child": float(subprocess.check_output([sys.executable, "-c", "import time; print(time.time())"])),
    }), flush=True)
"""


def test_one_process_sees_its_wall_clock_jump_both_ways_and_its_children_do_not(tmp_path: Path) -> None:
    clock = WallClock(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-c", ASKED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **clock.env},
    )
    assert process.stdin and process.stdout
    with process:
        for offset_s in (0.0, 7 * HOUR_S, -30 * HOUR_S, 0.5, 0.0):
            clock.jump_to(offset_s)
            before, began = time.time(), time.monotonic()
            process.stdin.write("\n")
            process.stdin.flush()
            seen: dict[str, Any] = json.loads(process.stdout.readline())
            now, ended = time.time(), time.monotonic()
            for what in ("time", "datetime", "struct"):
                assert before - 2 < seen[what] - offset_s < now + 2, what  # some in whole seconds
            assert began <= seen["monotonic"] <= ended
            assert before - 2 < seen["child"] < now + 2
            assert seen["waited"] <= ended - began
        process.stdin.close()
        assert exit_code(process) == 0
