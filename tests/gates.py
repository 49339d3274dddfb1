"""What holds a llama-server back until a test lets it go on, where it is `gated` or of `slow_server`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Gate:
    """Of one model; open at first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.open()

    @property
    def env(self) -> dict[str, str]:
        """Of the model."""
        return {"GATE": str(self._path)}

    def open(self) -> None:
        self._path.touch()

    @contextmanager
    def closed(self) -> Iterator[None]:
        self._path.unlink()
        try:
            yield
        finally:
            self.open()
