"""What tells one request's work from another's, without its text."""

from __future__ import annotations

import hashlib
from typing import NamedTuple


class Fingerprint(NamedTuple):
    """`target` is llama-server's path; `sha256` is that of the body as it is sent there."""

    target: str
    size: int
    sha256: str

    @classmethod
    def of(cls, target: str, body: bytes) -> Fingerprint:
        return cls(target, len(body), hashlib.sha256(body).hexdigest())

    def __str__(self) -> str:
        return f"POST {self.target}, {self.size} bytes, sha256 {self.sha256}"
