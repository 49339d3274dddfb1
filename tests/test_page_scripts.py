"""The page's scripts without a browser."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.node import PAGE_TESTS, run_node


@pytest.mark.parametrize("tests", PAGE_TESTS, ids=lambda path: path.name)
def test_their_unit_tests_pass(tests: Path) -> None:
    run_node("--test", tests)


def test_there_are_some() -> None:
    assert {path.name for path in PAGE_TESTS} >= {"format.test.js", "store.test.js", "words.test.js"}
