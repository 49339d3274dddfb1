"""What tells one request's work from another's, without its text."""

from __future__ import annotations

import hashlib
from typing import NamedTuple


class Work(NamedTuple):
    """What llama-server is asked for: its path, and the body as it is sent there."""

    target: str
    body: bytes | bytearray


class Fingerprint(NamedTuple):
    target: str
    size: int
    sha256: str

    @classmethod
    def of(cls, work: Work) -> Fingerprint:
        return cls(work.target, len(work.body), hashlib.sha256(work.body).hexdigest())

    def __str__(self) -> str:
        return f"POST {self.target}, {self.size} bytes, sha256 {self.sha256}"
