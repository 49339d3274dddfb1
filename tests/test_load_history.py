"""What was learned survives restarts; what cannot be read does no harm."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from app.memory import load_history as module
from app.memory.load_history import FILE_NAME, LoadHistory, LoadRecord
from app.memory.probes.fixed_cost import FixedCost
from app.memory.probes.interface import Reading

CARD = Reading("0", "", "Card", 8000, 0, 8000, driver="570", cost=FixedCost(600, 20))
OTHER = replace(CARD, id="1", name="Other")


def load(folder: Path, build: str = "b1") -> LoadHistory:
    history = LoadHistory(folder / FILE_NAME, build)
    history.load()
    return history


async def test_what_was_learned_survives_a_restart(tmp_path: Path) -> None:
    before = load(tmp_path / "logs")
    before.put("a", device_mb=4000, host_mb=120)
    before.put("a", measured_mb=4300, load_ms=1500)
    before.saw_fixed_cost(CARD.kind, 300)
    before.saw_fixed_cost(CARD.kind, 250)
    await before.save()
    after = load(tmp_path / "logs")
    assert after.model("a") == LoadRecord(device_mb=4000, host_mb=120, measured_mb=4300, load_ms=1500)
    assert after.fixed_cost([CARD]) == FixedCost(250, 50, is_known=True)
    assert after.model("b") == LoadRecord()
    assert [f.name for f in (tmp_path / "logs").iterdir()] == [FILE_NAME]


async def test_a_fixed_cost_belongs_to_a_gpu_a_driver_and_a_build(tmp_path: Path) -> None:
    history = load(tmp_path)
    history.saw_fixed_cost(CARD.kind, 300)
    history.saw_fixed_cost(OTHER.kind, 500)
    await history.save()
    newer, strange = replace(CARD, driver="580"), replace(CARD, name="New")
    assert history.fixed_cost([newer]) == newer.cost
    assert history.fixed_cost([CARD, OTHER]) == FixedCost(500, 20, is_known=True)
    assert history.fixed_cost([CARD, strange]) == strange.cost, "one of them is not known, and may take more"
    assert history.fixed_cost([]).total_mb == 0
    assert load(tmp_path, "b2").fixed_cost([CARD]) == CARD.cost


def test_the_least_that_was_seen_has_not_grown_yet(tmp_path: Path) -> None:
    history = load(tmp_path)
    card = replace(CARD, cost=FixedCost(600, 128))
    history.saw_fixed_cost(card.kind, 598)
    assert history.fixed_cost([card]).total_mb == 598 + 128
    history.saw_fixed_cost(card.kind, 716)
    assert history.fixed_cost([card]).total_mb == 598 + 128
    history.saw_fixed_cost(card.kind, 800)
    assert history.fixed_cost([card]).total_mb == 800


def test_a_file_of_an_earlier_version_kept_the_largest_only(tmp_path: Path) -> None:
    tree = {"version": 1, "overheads": {"Card / 570 / b1": 300}, "models": {}}
    (tmp_path / FILE_NAME).write_text(json.dumps(tree))
    assert load(tmp_path).fixed_cost([CARD]) == FixedCost(300, 20, is_known=True)


async def test_only_a_change_is_written(tmp_path: Path) -> None:
    changes: list[int] = []
    history = load(tmp_path)
    history.subscribe(lambda: changes.append(1))
    history.put("a", device_mb=1)
    history.put("a", device_mb=1)
    assert len(changes) == 1
    await history.save()
    (tmp_path / FILE_NAME).unlink()
    await history.save()
    assert not (tmp_path / FILE_NAME).exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"version": 2, "models": {}, "overheads": {}}',
        b'{"version": 1, "models": {"a": {"device_mb": "much"}}, "overheads": {}}',
        b'{"version": 1, "models": {"a": {"device_mb": -1}}, "overheads": {}}',
        b'{"version": 1, "models": {"a": {"unknown": 1}}, "overheads": {}}',
        b'{"version": 1, "models": {"a": 3}, "overheads": {}}',
        b'{"version": 1, "models": {}, "overheads": {"x": true}}',
        b'{"version": 1, "models": {}, "overheads": 7}',
        b"[" * 100_000,
    ],
)
async def test_a_damaged_file_is_left_out_with_a_warning_and_replaced(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        history = load(tmp_path)
    assert "cannot be used" in caplog.text
    history.put("a", device_mb=1)
    await history.save()
    assert json.loads(path.read_text())["models"]["a"]["device_mb"] == 1


async def test_a_folder_that_cannot_be_written_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    history = load(tmp_path / "file")
    history.put("a", device_mb=1)
    await history.save()
    assert "cannot be written" in caplog.text
    assert history.model("a").device_mb == 1


async def test_the_file_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_MODELS", 3)
    history = load(tmp_path)
    for name in "abcd":
        history.put(name, device_mb=1)
        history.put("a", device_mb=ord(name))
    assert history.model("b") == LoadRecord()
    assert history.model("a").device_mb == ord("d") and history.model("d").device_mb == 1
