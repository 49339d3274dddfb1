"""Where a model goes: one device, the fewest, whole layers, and what stays on the host."""

from __future__ import annotations

from typing import Any

import pytest

from app.domain.units import MIB
from app.domain.views import HOST, Layout, MemoryNeed
from app.scheduling.placement import Capacity, fit

BOTH = ("0", "1")
MIXED = {"0": 24_000, "1": 8000}


def room(free: dict[str, int], places: int = 1, **sizes: int) -> Capacity:
    return Capacity(free, places, {**free, **{name.strip("_"): mb for name, mb in sizes.items()}})


def need(mb: int, layers: int = 32, each_mb: int = 800, **rest: Any) -> MemoryNeed:
    """A model of equal layers, whose processes take `each_mb` on each device beside them."""
    size = (mb - each_mb) * MIB // layers
    overhead_mb = each_mb - 100
    return MemoryNeed(mb, BOTH, overhead_mb=overhead_mb, scratch_mb=100, layers=(size,) * layers, **rest)


@pytest.mark.parametrize(("mb", "devices"), [(6000, ["1"]), (20_000, ["0"]), (28_000, ["0", "1"])])
def test_on_cards_of_different_sizes_each_model_takes_as_little_as_it_can(
    mb: int, devices: list[str]
) -> None:
    found = fit(need(mb), room(MIXED))
    assert found is not None and list(found) == devices
    assert all(found[d] <= MIXED[d] for d in found)


def test_the_three_fit_one_after_another_without_moving_any() -> None:
    free = room(MIXED, places=3)
    for mb in (6000, 20_000):
        found = fit(need(mb), free)
        assert found is not None and len(found) == 1
        free = free.minus(found)
    assert fit(need(28_000), free) is None


def test_a_split_is_told_in_whole_layers_and_no_device_gets_more_than_it_has() -> None:
    model = need(28_000)
    found = fit(model, room(MIXED))
    assert found is not None and sum(found.layers) == len(model.layers)
    layer_mb = (28_000 - 800) / 32
    for (device, mb), count in zip(found.items(), found.layers, strict=True):
        assert 800 + count * layer_mb <= mb <= MIXED[device]
    shares = [count * layer_mb / (MIXED[d] - 800) for d, count in zip(found, found.layers, strict=True)]
    assert max(shares) - min(shares) < 0.2, "each is filled to about the same share"


def test_layers_that_are_too_large_for_the_smaller_card_are_not_cut() -> None:
    assert fit(need(28_000, layers=3), room(MIXED)) is None
    assert fit(MemoryNeed(28_000, BOTH), room(MIXED)) is not None, "of a declared need no layers are known"


def test_the_largest_layer_decides_where_the_cut_is() -> None:
    """The output tensors come last and may be as large as several layers."""
    layers = (*([500 * MIB] * 40), 4000 * MIB)
    model = MemoryNeed(24_000 + 800, BOTH, overhead_mb=800, layers=layers)
    found = fit(model, room({"0": 23_000, "1": 6500}))
    assert found is not None
    small = found.layers[1] - 1  # beside the output
    assert found == {"0": 800 + (40 - small) * 500, "1": 800 + small * 500 + 4000} and found["1"] <= 6500


def test_three_cards_are_used_only_where_two_are_not_enough() -> None:
    free = room({"0": 10_000, "1": 10_000, "2": 10_000})
    model = need(18_000)
    three = MemoryNeed(**{**model.__dict__, "devices": ("0", "1", "2")})
    found = fit(three, free)
    assert found is not None and len(found) == 2


def test_what_stays_on_the_host_is_a_part_of_the_placement() -> None:
    model = need(6000, host_mb=700)
    assert fit(model, room({**MIXED, HOST: 1000})) == {"1": 6000, HOST: 700}
    assert fit(model, room({**MIXED, HOST: 600})) is None


def test_a_prompt_cache_takes_what_can_be_spared() -> None:
    model = need(6000, host_mb=700, cache_mb=1024)
    wide, narrow = fit(model, room({**MIXED, HOST: 9000})), fit(model, room({**MIXED, HOST: 1100}))
    assert isinstance(wide, Layout) and (wide[HOST], wide.cache_mb) == (700 + 1024, 1024)
    assert isinstance(narrow, Layout) and (narrow[HOST], narrow.cache_mb) == (800, 100)
