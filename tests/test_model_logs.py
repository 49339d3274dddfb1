"""The models' log files, their tails and their followers."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from pathlib import Path

import anyio
import pytest

from app.llama.output import folder as log_folder
from app.llama.output.folder import file_name, why_not_writable
from app.llama.output.follower import FOLLOWER_LINES
from app.llama.output.log import QUEUE_BYTES, TAIL_BYTES
from app.llama.output.writer import LogServer
from tests.patience import WAIT_S


def written(logs: LogServer, folder: Path, alias: str) -> bytes:
    """What is in the file when everything queued has been written."""
    logs.close()
    return (folder / "logs" / file_name(alias)).read_bytes()


# --- files


def test_every_byte_reaches_the_file(logs: LogServer, tmp_path: Path) -> None:
    log = logs.open("m")
    for n in range(100):
        log.feed(b"line %d\n" % n)
    log.feed(b"no newline \xff")
    expected = b"".join(b"line %d\n" % n for n in range(100)) + b"no newline \xff"
    assert written(logs, tmp_path, "m") == expected


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX")
def test_folder_and_files_are_for_their_owner_only(logs: LogServer, tmp_path: Path) -> None:
    logs.open("m").feed(b"secret\n")
    written(logs, tmp_path, "m")
    assert (tmp_path / "logs").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "logs" / "m.log").stat().st_mode & 0o777 == 0o600


def test_a_second_start_of_a_model_appends(logs: LogServer, tmp_path: Path) -> None:
    logs.open("m").feed(b"first\n")
    logs.open("m").release()
    logs.open("m").feed(b"second\n")
    assert written(logs, tmp_path, "m") == b"first\nsecond\n"


def test_files_rotate_between_lines_and_the_oldest_go(tmp_path: Path) -> None:
    logs = LogServer(tmp_path / "logs", max_bytes=100, backups=2)
    logs.start()
    log = logs.open("m")
    lines = [b"%03d" % n + b"x" * 26 + b"\n" for n in range(20)]
    for line in lines:
        log.feed(line[:10])
        log.feed(line[10:])
    logs.close()
    names = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert names == ["m.log", "m.log.1", "m.log.2"]
    kept = b"".join((tmp_path / "logs" / name).read_bytes() for name in reversed(names))
    assert b"".join(lines).endswith(kept)
    assert all((tmp_path / "logs" / name).read_bytes().endswith(b"\n") for name in names)


def test_aliases_never_share_a_file_name() -> None:
    long = "a/" * 60
    aliases = ["a/b", "a:b", "a%2Fb", "a_b", "a.b", "A/b", f"{long}x", f"{long}y", ".hidden", "a@b+c"]
    names = [file_name(alias) for alias in aliases]
    assert len(set(names)) == len(aliases)
    assert all("/" not in name and ":" not in name and len(name) < 200 for name in names)
    assert file_name("Qwen3-8B.Q4_K_M") == "Qwen3-8B.Q4_K_M.log"


def test_where_case_is_folded_names_still_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_folder, "_FOLDS_CASE", True)
    assert file_name("Model").lower() != file_name("model").lower()


def test_a_folder_that_cannot_be_made_is_reported_and_harmless(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    logs = LogServer(tmp_path / "file" / "logs")
    error = logs.start()
    assert error is not None and "logs" in error
    log = logs.open("m")
    log.feed(b"still in memory\n")
    logs.close()
    assert log.tail(5) == ["still in memory"]


def test_a_file_that_cannot_be_written_is_complained_about_once(
    logs: LogServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "logs" / "m.log").mkdir()
    other = logs.open("other")
    for _ in range(10):
        logs.open("m").feed(b"x\n")
        other.feed(b"y\n")
    assert written(logs, tmp_path, "other") == b"y\n" * 10
    assert len([r for r in caplog.records if "cannot be written" in r.message]) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_survived(logs: LogServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "logs" / "m.log").symlink_to("/dev/full")  # our own link: it is followed
    logs.open("m").feed(b"x\n")
    logs.close()
    assert "No space left" in caplog.text


def test_a_slow_disk_blocks_nobody_and_the_gap_is_told(tmp_path: Path) -> None:
    logs = LogServer(tmp_path / "logs")
    assert logs.start() is None
    fifo = tmp_path / "logs" / "slow.log"
    os.mkfifo(fifo)  # the thread hangs in open() until somebody reads
    log = logs.open("slow")
    for _ in range(2 * QUEUE_BYTES // 1024):
        log.feed(b"x" * 1023 + b"\n")
    assert log.tail(1) == ["x" * 1023]
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(fifo.read_bytes()))
    reader.start()
    while log.position and log.written < QUEUE_BYTES:  # the reader empties the queue
        threading.Event().wait(0.001)
    log.feed(b"after\n")
    logs.close()
    reader.join(WAIT_S)
    assert b"bytes left out" in got[0]
    assert got[0].endswith(b"after\n")


# --- tails


def test_the_tail_is_the_last_lines(logs: LogServer) -> None:
    log = logs.open("m")
    log.feed(b"one\ntw")
    log.feed(b"o\r\nthr\xc3")
    log.feed(b"\xa9e")
    assert log.tail() == ["one", "two", "thrée"]
    assert log.tail(1) == ["thrée"]
    assert log.tail(0) == []


def test_the_tail_keeps_no_more_than_it_must(logs: LogServer) -> None:
    log = logs.open("m")
    for n in range(20_000):
        log.feed(b"line %06d\n" % n)
    lines = log.tail(10**6)
    assert lines[-1] == "line 019999"
    assert TAIL_BYTES * 0.9 < sum(len(line) + 1 for line in lines) <= TAIL_BYTES
    assert all(len(line) == 11 for line in lines)


def test_one_huge_chunk_is_cut(logs: LogServer) -> None:
    log = logs.open("m")
    log.feed(b"x" * 10 * TAIL_BYTES + b"\nlast\n")
    assert log.tail() == ["last"]


def test_a_tail_since_a_mark_leaves_the_earlier_run_out(logs: LogServer) -> None:
    log = logs.open("m")
    log.feed(b"earlier\n")
    mark = log.position
    assert log.tail(since=mark) == []
    log.feed(b"later\n")
    assert log.tail(since=mark) == ["later"]
    assert log.tail() == ["earlier", "later"]


def test_the_tail_of_a_file_survives_a_restart(logs: LogServer, tmp_path: Path) -> None:
    for n in range(20_000):
        logs.open("org/m").feed(b"line %d\n" % n)
    logs.close()
    again = LogServer(tmp_path / "logs")
    assert again.read_tail("org/m", 3) == ["line 19997", "line 19998", "line 19999"]
    assert len(again.read_tail("org/m", 500)) == 500
    assert again.read_tail("nobody", 3) == []


# --- followers


async def test_a_follower_gets_whole_lines_as_they_come(logs: LogServer) -> None:
    log = logs.open("m")
    log.feed(b"before\n")
    with log.subscribe() as lines:
        log.feed(b"on")
        log.feed(b"e\ntwo\n")
        with anyio.fail_after(WAIT_S):
            assert [await lines.__anext__(), await lines.__anext__()] == ["one", "two"]
        waiting = asyncio.ensure_future(lines.__anext__())
        await asyncio.sleep(0)
        log.feed(b"three\n")
        with anyio.fail_after(WAIT_S):
            assert await waiting == "three"


async def test_a_slow_follower_is_told_what_it_missed(logs: LogServer) -> None:
    log = logs.open("m")
    with log.subscribe() as lines:
        for n in range(FOLLOWER_LINES + 5):
            log.feed(b"%d\n" % n)
        assert "5 lines left out" in await lines.__anext__()
        assert await lines.__anext__() == "5"


async def test_a_line_without_end_does_not_grow_a_follower(logs: LogServer) -> None:
    log = logs.open("m")
    with log.subscribe() as lines:
        for _ in range(100):
            log.feed(b"x" * 1000)
        assert len(await lines.__anext__()) < 20_000


async def test_followers_end_with_the_server(logs: LogServer) -> None:
    lines = logs.open("m").subscribe()
    logs.open("m").feed(b"last\n")
    logs.close()
    with anyio.fail_after(WAIT_S):
        assert [line async for line in lines] == ["last"]


async def test_a_closed_follower_is_fed_no_more(logs: LogServer) -> None:
    log = logs.open("m")
    with log.subscribe() as lines:
        pass
    log.feed(b"x\n")
    lines.close()
    with anyio.fail_after(WAIT_S):
        assert [line async for line in lines] == []


def test_closing_ends_the_thread(logs: LogServer) -> None:
    logs.close()
    assert "model-logs" not in [thread.name for thread in threading.enumerate()]


def test_a_log_that_cannot_be_opened_is_told_with_the_reason(tmp_path: Path) -> None:
    logs = LogServer(tmp_path / "logs")
    assert logs.check("m") is None
    (tmp_path / "logs" / "taken.log").mkdir()
    assert logs.check("taken") == f"{tmp_path}/logs/taken.log cannot be written: Is a directory"
    os.mkfifo(tmp_path / "logs" / "pipe.log")
    assert "cannot be written" in (logs.check("pipe") or ""), "and it is not waited for its reader"


def test_a_full_disk_is_no_reason_not_to_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    logs = LogServer(tmp_path / "logs")
    monkeypatch.setattr(os, "open", full)
    assert logs.check("m") is None
    told = logs.start()
    logs.close()
    assert told is not None and told.endswith("logs are kept in memory only")


def test_what_stands_against_a_log_folder_is_seen_without_making_it(tmp_path: Path) -> None:
    assert why_not_writable(tmp_path / "a" / "b") is None
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "logs"):
        assert why_not_writable(folder) == f"{tmp_path}/file is no folder"
    if os.geteuid():  # root may write everywhere
        tmp_path.chmod(0o500)
        assert why_not_writable(tmp_path / "logs") == f"no permission to write to {tmp_path}"
        tmp_path.chmod(0o700)
