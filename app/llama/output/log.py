"""One model's output: the last of it in memory, all of it on its way to the file."""

from __future__ import annotations

from collections import deque
from queue import SimpleQueue

from app.llama.output.follower import Follower
from app.llama.output.lines import harmless, last_lines
from app.llama.output.rotating import RotatingFile

TAIL_BYTES = 64 * 1024
SHOWN_LINES = 200
QUEUE_BYTES = 1024 * 1024  # of one model, waiting for the disk


class ModelLog:
    """One model's output: the last of it in memory, all of it on its way to the file. For the loop only."""

    def __init__(self, alias: str, file: RotatingFile, jobs: SimpleQueue[Job | None]) -> None:
        self.file = file
        self.position = 0  # bytes ever fed: a mark for `tail`
        self.written = 0  # by the thread; `_queued` by the loop: two counters need no lock
        self._queued = 0
        self._dropped = 0
        self._alias = alias
        self._jobs = jobs
        self._chunks: deque[bytes] = deque()
        self._kept = 0
        self._followers: set[Follower] = set()

    def feed(self, data: bytes) -> None:
        """Take a chunk of output. Never blocks and never fails."""
        data = harmless(data)
        self._keep(data)
        self._enqueue(data)
        for follower in tuple(self._followers):
            follower.push(data)

    def release(self) -> None:
        """The process has gone: let its file be closed. Feeding again opens it again."""
        self._jobs.put((self, b""))

    def tail(self, n: int = SHOWN_LINES, *, since: int = 0) -> list[str]:
        """The last lines, at most 64 KB; only what came after the position `since`, if given."""
        data = b"".join(self._chunks)[-TAIL_BYTES:]
        first = self.position - len(data)
        if since > first:
            return last_lines(data[since - first :], n, cut=False)
        return last_lines(data, n, cut=first > 0)

    def subscribe(self) -> Follower:
        """The lines to come. Close it, or use it in a `with`, else it is fed for ever."""
        follower = Follower(self._followers.discard)
        self._followers.add(follower)
        return follower

    def end(self) -> None:
        """No more lines will come: followers end."""
        for follower in tuple(self._followers):
            follower.close()

    def _keep(self, data: bytes) -> None:
        self.position += len(data)
        self._kept += len(data)
        self._chunks.append(data)
        while self._kept - len(self._chunks[0]) >= TAIL_BYTES:
            self._kept -= len(self._chunks.popleft())

    def _enqueue(self, data: bytes) -> None:
        if self._queued - self.written + len(data) > QUEUE_BYTES:
            self._dropped += len(data)
            return
        if self._dropped:
            data = f"\n[router: {self._dropped} bytes left out, the disk was too slow]\n".encode() + data
            self._dropped = 0
        self._queued += len(data)
        self._jobs.put((self, data))


Job = tuple[ModelLog, bytes]
