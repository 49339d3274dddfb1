"""Reading a model's files before its load, on real files."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import anyio
import pytest

from app.llama import readahead
from app.llama.readahead import CHUNK, cached_share, read_ahead
from tests.patience import WAIT_S

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what it has cached")
SIZE = 4 * CHUNK


@pytest.fixture
def cold(tmp_path: Path) -> Path:
    """A file that is on the disk only."""
    path = tmp_path / "model.gguf"
    with path.open("wb") as file:
        file.write(os.urandom(SIZE))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if share(path) > 0.5:
        pytest.skip("this file system keeps its files in memory")
    return path


def share(path: Path) -> float:
    with path.open("rb") as file:
        return cached_share(file.fileno(), path.stat().st_size)


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else is in this machine's memory."""
    monkeypatch.setattr(readahead, "_room", lambda: 2 * SIZE)


@pytest.mark.usefixtures("room")
async def test_a_file_is_in_the_cache_afterwards(cold: Path) -> None:
    assert share(cold) < 0.5
    await read_ahead([cold])
    assert share(cold) == 1


@pytest.mark.usefixtures("room")
async def test_what_is_cached_is_not_read_again(cold: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await read_ahead([cold])
    asked: list[int] = []

    def asked_room() -> int:
        asked.append(2 * SIZE)
        return asked[-1]

    monkeypatch.setattr(readahead, "_room", asked_room)
    await read_ahead([cold])
    assert asked == []


async def test_nobody_loses_memory_to_it(cold: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readahead, "_room", lambda: SIZE - 1)
    await read_ahead([cold])
    assert share(cold) < 0.5


def test_mapped_files_are_not_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are the weights of models that compute."""
    told = tmp_path / "meminfo"
    figures = {"MemTotal": 9, "MemFree": 3000000, "Cached": 5000000, "Mapped": 4000000, "Shmem": 7}
    told.write_text("".join(f"{name}: {kib} kB\n" for name, kib in figures.items()))
    monkeypatch.setattr(readahead, "_MEMINFO", told)
    assert readahead._room() == (3000000 + 5000000 - 4000000 - 7) * 1024 - readahead.SPARE_BYTES
    monkeypatch.setattr(readahead, "_MEMINFO", tmp_path / "missing")
    assert readahead._room() == 0


@pytest.mark.usefixtures("room")
async def test_a_missing_file_does_not_keep_the_others_from_being_read(cold: Path) -> None:
    await read_ahead([cold.with_name("missing.gguf"), cold])
    assert share(cold) == 1


async def test_cancelling_it_ends_the_reading(cold: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[threading.Event] = []
    begun, may_go_on = threading.Event(), threading.Event()

    def read(files: object, stop: threading.Event) -> None:
        stopped.append(stop)
        begun.set()
        may_go_on.wait(WAIT_S)

    monkeypatch.setattr(readahead, "_read", read)
    async with anyio.create_task_group() as group:
        group.start_soon(read_ahead, [cold])
        assert await anyio.to_thread.run_sync(begun.wait, WAIT_S)
        group.cancel_scope.cancel()
    assert stopped[0].is_set()
    may_go_on.set()


def test_a_stopped_reading_reads_no_further(cold: Path) -> None:
    stop = threading.Event()
    stop.set()
    readahead._read([cold], stop)
    assert share(cold) < 0.5
