"""What a llama-server tells about itself while it loads: progress, memory, layers."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from app.domain.units import MIB

_STATE = "cmd_child_to_router:state:"
_PROJECTED = re.compile(r"projected to use (\d+) MiB of (device|host) memory")
_BUFFER = re.compile(r"(\S+) +(model|KV|RS|compute|output) buffer size += +([\d.]+) MiB")
_REFUSED = re.compile(r"failed to allocate (\S+) buffer of size (\d+)")
_OFFLOADED = re.compile(r"offloaded (\d+)/(\d+) layers to GPU")
_JSON = json.JSONDecoder()
_STAGES = {
    "loading model tensors": "weights",
    "constructing llama_context": "context",
    "warming up the model": "warm-up",
}
"""What a llama-server says that does not tell its progress."""


SHORTEST = 12  # no line that says something is shorter
MAX_LINE = 1 << 16
READ_BYTES = 1 << 15
"""Of one piece of output, at its beginning and at its end: who writes more at once says nothing of use."""


@dataclass(frozen=True)
class Buffer:
    """Memory that was allocated; `device` as llama.cpp names it, `kind` model, kv, rs, compute or output."""

    device: str
    kind: str
    mib: float


class LoadLog:
    """Fed line by line. What was not said stays None or empty: progress is never made up."""

    def __init__(self) -> None:
        self.state: str | None = None
        self.stage: str | None = None
        self.progress: float | None = None
        self.projected_mb: dict[str, int] = {}
        self.buffers: list[Buffer] = []
        self.refused: Buffer | None = None  # for which there was no memory
        self.n_layers: int | None = None
        self.offloaded: int | None = None

    def feed(self, line: str) -> bool:
        """True when the state, the progress, the stage or the projection changed."""
        if self.state is None and self._begins_stage(line):
            return True
        # Anywhere in the line: stdout and stderr share one pipe.
        at = line.find(_STATE)
        if at >= 0:
            return self._told(line[at + len(_STATE) :])
        if " MiB" in line:
            return self._memory(line)
        if found := _REFUSED.search(line):
            self.refused = Buffer(found[1], "", int(found[2]) / MIB)
        elif found := _OFFLOADED.search(line):
            self.offloaded, self.n_layers = int(found[1]), int(found[2])
        return False

    def measured(self, share: float) -> bool:
        """The part of the model's file that was seen to be read. Counts where llama-server tells nothing."""
        if self.state is not None or share <= (self.progress or 0.0):
            return False
        self.progress = share
        return True

    def _begins_stage(self, line: str) -> bool:
        found = next((stage for words, stage in _STAGES.items() if words in line), None)
        changed = found is not None and found != self.stage
        self.stage = found or self.stage
        return changed

    def _memory(self, line: str) -> bool:
        if found := _PROJECTED.search(line):
            self.projected_mb[found[2]] = int(found[1])
            return True
        if found := _BUFFER.search(line):
            self.buffers.append(Buffer(found[1], found[2].lower(), float(found[3])))
        return False

    def _told(self, text: str) -> bool:
        """One message of the child protocol, internal to llama.cpp: what is not understood is ignored."""
        try:
            message, _ = _JSON.raw_decode(text)
        except ValueError:
            return False
        if not isinstance(message, dict):
            return False
        before = (self.state, self.progress, self.stage)
        if self.state is None:
            self.progress = self.stage = None  # from now on it speaks for itself
        state, payload = message.get("state"), message.get("payload")
        self.state = state if isinstance(state, str) else self.state
        if self.state == "loading" and isinstance(payload, dict):
            self._progressed(payload)
        elif self.state == "ready":
            self.progress = 1.0
        return (self.state, self.progress, self.stage) != before

    def _progressed(self, payload: dict[str, object]) -> None:
        stages, current, value = payload.get("stages"), payload.get("current"), payload.get("value")
        if not isinstance(value, (int, float)) or not isinstance(stages, list) or current not in stages:
            return
        done = (stages.index(current) + min(max(float(value), 0.0), 1.0)) / len(stages)
        self.stage = str(current)
        self.progress = max(done, self.progress or 0.0)  # never backwards


class LoadReader:
    """Bytes as they come, into a `LoadLog`. Costs no more for a flood than for a page."""

    def __init__(self, log: LoadLog) -> None:
        self._log, self._partial = log, b""

    def feed(self, data: bytes) -> bool:
        """True when something changed that is shown."""
        if len(data) <= 2 * READ_BYTES:
            return self._feed(data)
        changed = self._feed(data[:READ_BYTES])
        self._partial = b""  # a line is not continued by one that follows what was left out
        tail = data[-READ_BYTES:]
        return self._feed(tail[tail.find(b"\n") + 1 :]) or changed

    def _feed(self, data: bytes) -> bool:
        *lines, self._partial = (self._partial + data).split(b"\n")
        self._partial = self._partial[-MAX_LINE:]
        changed = False
        for line in lines:
            if len(line) >= SHORTEST:
                changed |= self._log.feed(line.decode("utf-8", "replace"))
        return changed
