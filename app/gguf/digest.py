"""What tells one model's content from another's, without reading all of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

BLOCK_BYTES = 64 << 10
BLOCKS = 32


def digest(parts: Sequence[Path]) -> str:
    """Of the sizes and of blocks all over the files: all of 40 GB would take minutes, and drive what is in
    use out of the page cache. Raises `OSError`."""
    found = hashlib.sha256()
    for part in parts:
        with part.open("rb") as file:
            size = file.seek(0, 2)
            found.update(b"%d:" % size)
            for place in range(BLOCKS):
                file.seek(max(0, size - BLOCK_BYTES) * place // (BLOCKS - 1))
                found.update(file.read(BLOCK_BYTES))
    return found.hexdigest()
