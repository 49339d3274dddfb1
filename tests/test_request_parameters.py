"""What a request asks for, read from its target."""

from __future__ import annotations

from typing import Any

import pytest

from app.domain.errors import ModelNotFound
from app.domain.model_names import MAX_NAME
from app.proxy.request_parameters import read_tunnel


class CountingFleet:
    """Knows no model."""

    names: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.looked_up = 0

    def like(self, name: str) -> None:
        self.looked_up += 1

    def find(self, name: str) -> Any:
        raise ModelNotFound(name, param="model")


@pytest.mark.parametrize("part", [b"/", b"a/", b"%2f", b"%2f/", b"//a"])
def test_of_a_long_target_no_more_is_looked_up_than_a_name_may_be(part: bytes) -> None:
    """Eight thousand slashes were eight thousand names, 20 ms of the event loop."""
    fleet: Any = CountingFleet()
    meta: Any = None
    with pytest.raises(ModelNotFound):
        read_tunnel(fleet, meta, "id", "POST", b"/upstream/" + part * (8000 // len(part)))
    assert fleet.looked_up <= MAX_NAME + 1
