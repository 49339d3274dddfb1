"""What the operating system tells of a process that reads a large file, and of its own lacks."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.llama import os_calls
from app.llama.os_calls import SMALL_FILE, share_read

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells it")

MAP = "pages = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ); sum(pages[:size // 2:4096])"
READ = "[file.read(1 << 20) for _ in range(size // 2 >> 20)]"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A large file that takes no room."""
    path = tmp_path_factory.mktemp("files") / "a model (1).gguf"
    with path.open("wb") as file:
        file.truncate(2 * SMALL_FILE)
    return path


@contextmanager
def reader(path: Path, how: str) -> Iterator[int]:
    """The pid of a process that has read half of a file, and holds it."""
    code = (
        f"import mmap, sys; file = open({str(path)!r}, 'rb', 0); size = {path.stat().st_size}\n"
        f"{how}\nprint('done', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"done\n"
        yield process.pid
        process.kill()


@pytest.mark.parametrize("how", [MAP, READ])
def test_half_of_a_file_is_seen_as_half(model: Path, how: str) -> None:
    with reader(model, how) as pid:
        assert share_read(pid, [model]) == pytest.approx(0.5, abs=0.05)


def test_all_parts_count_by_whatever_name_they_are_called(model: Path, tmp_path: Path) -> None:
    link, other = tmp_path / "link.gguf", tmp_path / "other.gguf"
    link.symlink_to(model)
    with other.open("wb") as file:
        file.truncate(2 * SMALL_FILE)
    with reader(link, MAP) as pid:
        assert share_read(pid, [link, other]) == pytest.approx(0.25, abs=0.03)


def test_other_files_in_memory_do_not_count(model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    with other.open("wb") as file:
        file.truncate(2 * SMALL_FILE)
    with reader(model, MAP) as pid:
        share = share_read(pid, [other])
    assert share is not None
    assert share < 0.02


def test_what_cannot_be_told_is_not_guessed(model: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.gguf"
    small.write_bytes(b"x" * 1000)
    assert share_read(os.getpid(), [small]) is None
    assert share_read(os.getpid(), [tmp_path / "missing.gguf"]) is None
    assert share_read(os.getpid(), []) is None
    with reader(model, READ) as pid:
        pass
    assert share_read(pid, [model]) is None


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.EADDRNOTAVAIL])
def test_a_lack_of_files_is_seen_behind_what_a_library_makes_of_it(number: int) -> None:
    try:
        try:
            raise OSError(number, os.strerror(number))
        except OSError as cause:
            raise RuntimeError("all connection attempts failed") from cause
    except RuntimeError as error:
        assert os_calls.out_of_files(error)


@pytest.mark.parametrize(
    "error", [OSError(errno.ECONNREFUSED, "refused"), OSError(-1, "?"), ValueError("no")]
)
def test_other_errors_are_no_lack_of_files(error: Exception) -> None:
    assert not os_calls.out_of_files(error)


def test_where_uvloop_tells_no_reason_files_are_opened_to_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os_calls, "files_left", lambda: False)
    assert os_calls.out_of_files(OSError(-1, "Unknown error -1"))
