"""How every soak ends."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path


def ended(wrong: Sequence[str], folder: Path, otherwise: str) -> int:
    """Tells what went wrong, and keeps the logs for it; else tells that. The exit code."""
    if wrong:
        print("\n".join(wrong), f"\nthe logs are in {folder}")
        return 1
    shutil.rmtree(folder)
    print(otherwise)
    return 0
