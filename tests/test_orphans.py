"""The pid file with real processes: orphans go, strangers never."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from app.llama.orphans import Known, PidFile, reap_orphans
from app.llama.os_calls import start_mark
from tests.patience import exit_code
from tests.router_process import until_now

Spawn = Callable[..., subprocess.Popen[bytes]]

SLEEP = ("-c", "import time; print(flush=True); time.sleep(60)", "--port", "1234")


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Starts a process in a group of its own, as the launcher does."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, *(arguments or SLEEP)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
        assert process.stdout is not None
        process.stdout.readline()  # it runs
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def known(process: subprocess.Popen[bytes], arguments: tuple[str, ...] = SLEEP) -> Known:
    found = Known.of(process.pid, arguments)
    assert found is not None
    return found


def leave(folder: Path, *children: Known, router: Known | None = None) -> Path:
    """A pid file as a router wrote it, by default one that has died."""
    folder.mkdir(exist_ok=True)
    file = folder / "children-4711.json"
    owner = router or Known(4711, "another boot 1")
    file.write_text(json.dumps({"router": asdict(owner), "children": [asdict(c) for c in children]}))
    return file


def is_dead(process: psutil.Process) -> bool:
    """Whoever inherited it may take its time to reap it."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_an_orphan_is_ended_and_the_file_removed(tmp_path: Path, spawn: Spawn) -> None:
    orphan = spawn()
    file = leave(tmp_path, known(orphan))
    assert reap_orphans(tmp_path) == 1
    assert not psutil.pid_exists(orphan.pid)
    assert not file.exists()


def test_what_the_orphan_started_goes_too(tmp_path: Path, spawn: Spawn) -> None:
    family = (
        "-c",
        "import subprocess as s; p = s.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()",
    )
    orphan = subprocess.Popen([sys.executable, *family], stdout=subprocess.PIPE, start_new_session=True)
    assert orphan.stdout is not None
    with orphan.stdout:
        grandchild = psutil.Process(int(orphan.stdout.readline()))
        leave(tmp_path, known(orphan, family))
        reap_orphans(tmp_path)
        exit_code(orphan)
    until_now(lambda: is_dead(grandchild))


def test_a_pid_that_was_given_to_another_process_is_left_alone(tmp_path: Path, spawn: Spawn) -> None:
    stranger = spawn()
    leave(tmp_path, replace(known(stranger), started="the same boot, another tick"))
    assert reap_orphans(tmp_path) == 0
    assert stranger.poll() is None


def test_a_process_with_other_arguments_is_left_alone(tmp_path: Path, spawn: Spawn) -> None:
    stranger = spawn()
    leave(tmp_path, known(stranger, ("-m", "model.gguf", "--port", "8085")))
    assert reap_orphans(tmp_path) == 0
    assert stranger.poll() is None


def test_the_children_of_a_living_router_are_left_alone(tmp_path: Path, spawn: Spawn) -> None:
    router, child = spawn(), spawn()
    file = leave(tmp_path, known(child), router=known(router))
    assert reap_orphans(tmp_path) == 0
    assert child.poll() is None
    assert file.exists()


def test_a_wrapper_that_became_llama_server_is_known_by_its_arguments(tmp_path: Path, spawn: Spawn) -> None:
    became = "import os, sys; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    orphan = spawn("-c", became, *SLEEP)
    leave(tmp_path, known(orphan))
    assert reap_orphans(tmp_path) == 1
    assert not psutil.pid_exists(orphan.pid)


def test_what_a_dead_wrapper_left_is_ended_and_nobody_else(tmp_path: Path, spawn: Spawn) -> None:
    """A script without `exec` gets the parent-death signal, what it runs does not."""
    run_both = (
        "import subprocess, sys; run = lambda *a: subprocess.Popen([sys.executable, *a]).pid;"
        "print(run(*sys.argv[1:]), run(*sys.argv[1:], 'more'), flush=True); sys.stdin.read()"
    )
    sleep = ("-c", "import time; time.sleep(60)", "--port", "1234")
    command = [sys.executable, "-c", run_both, *sleep]
    wrapper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    assert wrapper.stdin and wrapper.stdout
    with wrapper.stdin, wrapper.stdout:
        orphan, other = (psutil.Process(int(pid)) for pid in wrapper.stdout.readline().split())
        leave(tmp_path, known(wrapper, sleep))
        wrapper.kill()
        wrapper.wait()
    namesake = subprocess.Popen([sys.executable, *sleep], start_new_session=True)
    assert reap_orphans(tmp_path) == 1
    until_now(lambda: is_dead(orphan))
    assert other.is_running() and namesake.poll() is None, "other arguments, another group"
    other.kill()
    namesake.kill()
    namesake.wait()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"router": 1, "children": []}', '{"router": {"pid": 0}}']
)
def test_a_damaged_file_is_ignored(tmp_path: Path, text: str) -> None:
    (tmp_path / "children-1.json").write_text(text)
    assert reap_orphans(tmp_path) == 0


def test_no_folder_means_no_orphans(tmp_path: Path) -> None:
    assert reap_orphans(tmp_path / "nowhere") == 0


def test_the_file_lists_the_living_and_goes_with_the_last(tmp_path: Path, spawn: Spawn) -> None:
    first, second = spawn(), spawn()
    pids = PidFile(tmp_path)
    pids.note(first.pid, SLEEP)
    pids.note(second.pid, SLEEP)
    first.kill()
    first.wait()
    pids.forget(first.pid)
    pids.close()
    (file,) = tmp_path.glob("children-*.json")
    body = json.loads(file.read_text())
    assert [child["pid"] for child in body["children"]] == [second.pid]
    assert body["router"] == {"pid": os.getpid(), "started": start_mark(os.getpid()), "arguments": []}


def test_without_children_there_is_no_file(tmp_path: Path, spawn: Spawn) -> None:
    child = spawn()
    pids = PidFile(tmp_path)
    pids.note(child.pid, SLEEP)
    child.kill()
    child.wait()
    pids.forget(child.pid)
    pids.close()
    assert list(tmp_path.iterdir()) == []


def test_one_that_does_not_die_stays_listed(tmp_path: Path, spawn: Spawn) -> None:
    child = spawn()
    pids = PidFile(tmp_path)
    pids.note(child.pid, SLEEP)
    pids.forget(child.pid)
    pids.close()
    assert list(tmp_path.glob("children-*.json"))


def test_a_folder_that_cannot_be_written_to_is_reported_once(
    tmp_path: Path, spawn: Spawn, caplog: pytest.LogCaptureFixture
) -> None:
    child = spawn()
    pids = PidFile(tmp_path / "nowhere")
    pids.note(child.pid, SLEEP)
    pids.note(child.pid, SLEEP)
    pids.close()
    assert caplog.text.count("cannot be written") == 1


def test_a_process_that_is_gone_has_no_mark(spawn: Spawn) -> None:
    child = spawn()
    assert start_mark(child.pid) == start_mark(child.pid) is not None
    child.kill()
    child.wait()
    assert start_mark(child.pid) is None
