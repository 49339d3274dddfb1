"""What `bench.real_crowd` makes of its evenings; the evenings themselves take minutes, and are no test."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.domain.priority import Priority
from bench.crowd import Evening, Question
from bench.real_crowd import OURS, Run, _kept, show, together

FIRST = Evening(60.0, 3, [Question("a", Priority.HIGH, 1.0, 0.5), Question("b", Priority.NORMAL, 2.0, 4.0)])
SECOND = Evening(60.0, 1, [Question("b", Priority.NORMAL, 1.0, 2.0)])


def test_evenings_are_kept_as_they_were(tmp_path: Path) -> None:
    runs = [Run("6,4,2 users", OURS, FIRST), Run("6,4,2 users", "router mode", SECOND)]
    kept = tmp_path / "evenings"
    kept.write_text("".join(run.as_json() + "\n" for run in runs))
    assert _kept(kept) == runs
    assert _kept(tmp_path / "none") == _kept(None) == []


def test_several_evenings_are_counted_as_one() -> None:
    both = together([FIRST, SECOND])
    assert (both.length_s, both.loads, both.answers_per_min) == (120.0, 4, 1.5)
    assert both.waits() == [0.5, 2.0, 4.0]


def test_a_router_that_loses_answers_is_not_called_the_best(capsys: pytest.CaptureFixture[str]) -> None:
    lossy = Evening(60.0, 1, [*SECOND.questions, Question("a", Priority.NORMAL, 1.0, float("nan"))])
    show(
        [
            Run("x", OURS, FIRST),
            Run("x", "quick", lossy),
            Run("x", "sound", Evening(60.0, 6, FIRST.questions)),
        ]
    )
    assert "| loads/h | 180.00 | 360.00 | 0.50 |" in capsys.readouterr().out
