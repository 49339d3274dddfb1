"""What is not ours to say, on its way to a page, a message, a log or a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.domain.printable_text import one_line
from app.llama.output.lines import harmless, text
from app.llama.output.writer import LogServer

CLEAR_SCREEN = b"\x1b[2J\x1b]0;title\x07"


@pytest.mark.parametrize("said", ["a\x1b[2J", "a\rb", "a\x00", "a\u2028b", "a\x9bb", "a\u202eb"])
def test_control_characters_are_made_visible(said: str) -> None:
    assert one_line(said).isprintable()
    assert text(said.encode()).isprintable()


@pytest.mark.parametrize("said", ["plain", "\u00e9\u4e2d\U0001f600", "a\tb"])
def test_text_stays_as_it_is(said: str) -> None:
    assert text(said.encode()) == said


def test_no_escape_sequence_reaches_the_file_or_its_readers(tmp_path: Path) -> None:
    server = LogServer(tmp_path)
    assert server.start() is None
    log = server.open("m")
    with log.subscribe() as follower:
        log.feed(b"before\n" + CLEAR_SCREEN + b"\tafter\r\n")
        assert all("\x1b" not in line for line in [*log.tail(), *follower._lines])
    server.close()
    assert (tmp_path / "m.log").read_bytes() == b"before\n?[2J?]0;title?\tafter\r\n"


def test_only_controls_are_replaced() -> None:
    every = bytes(range(256))
    assert {b for b in every if harmless(bytes([b])) != bytes([b])} == {
        *range(9),
        11,
        12,
        *range(14, 32),
        127,
    }
