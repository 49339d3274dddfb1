"""Whether a llama-server computes here is found out before anything is promised."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from app.gguf.header import read_header
from app.llama import probe_model
from app.llama.binary import BinaryNotFound
from app.llama.builds.install import of_role, provide
from app.llama.builds.known_builds import B10434, BUILDS, Role
from app.llama.self_test import SelfTestFailed, check_binary
from tests import emulation
from tests.llama_build import acting
from tests.router_process import MakeRouter, chat, until_now

ROOT = Path(__file__).resolve().parent.parent
x86_64_linux = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="its binaries are for Linux on x86-64"
)


def problem(binary: Path, timeout_s: float = emulation.TIMEOUT_S) -> str:
    with pytest.raises(SelfTestFailed) as caught:
        check_binary(binary, timeout_s)
    path, _, message = str(caught.value).partition(" cannot be used on this machine. ")
    assert path == str(binary)
    assert "\n" not in message
    return message


# --- the model


def test_the_model_is_small_always_the_same_and_every_product_is_in_it(tmp_path: Path) -> None:
    first, second = probe_model.write(tmp_path / "a.gguf"), probe_model.write(tmp_path / "b.gguf")
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_size < 110_000
    header = read_header(first)
    assert (header.architecture, header.context_length, header.block_count) == ("llama", 256, 1)
    assert {"token_embd.weight", "blk.0.ffn_gate.weight"} <= set(header.tensors)


# --- what it says


def test_both_builds_of_the_tests_compute(llama_server: Path) -> None:
    for binary in (llama_server, provide(of_role(Role.OLDEST)), provide(of_role(Role.CURRENT))):
        assert check_binary(binary).path == binary


def test_an_illegal_instruction_names_cause_and_cure(tmp_path: Path) -> None:
    message = problem(acting(tmp_path, "kill -ILL $$"))
    assert "another processor" in message
    assert "SIGILL" in message
    assert "Install a build for this one" in message


def test_another_signal_is_named_with_the_last_words(tmp_path: Path) -> None:
    message = problem(acting(tmp_path, "echo oh dear >&2; kill -SEGV $$"))
    assert "SIGSEGV" in message
    assert "oh dear" in message


def test_a_broken_heap_is_named_where_its_message_stands_within_a_line(tmp_path: Path) -> None:
    message = problem(acting(tmp_path, "printf '0.00.202 I '; echo 'free(): invalid pointer'; kill -ABRT $$"))
    assert "crashed (free(): invalid pointer): its libraries do not belong together" in message


def test_an_end_without_an_error_is_a_failure_too(tmp_path: Path) -> None:
    assert "ended by itself" in problem(acting(tmp_path, "exit 0"))


def test_one_that_never_serves_is_ended(tmp_path: Path) -> None:
    assert "was not ready in time" in problem(acting(tmp_path, "exec sleep 600"), 0.2)


def test_one_that_does_not_end_when_told_is_a_failure_and_nothing_stays(tmp_path: Path) -> None:
    script = f'trap "" TERM; "$real" "$@" & echo $! > {tmp_path}/pid; wait $!; while :; do sleep 1; done'
    assert "did not end within 10 s of SIGTERM" in problem(acting(tmp_path, script))
    pid = int((tmp_path / "pid").read_text())
    until_now(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


# --- the builds, unpatched and on other processors


@x86_64_linux
def test_the_current_build_as_published_crashes_everywhere() -> None:
    message = problem(provide(of_role(Role.CURRENT).as_published()))
    assert "its libraries do not belong together" in message
    assert "free(): invalid pointer" in message


@x86_64_linux
def test_the_oldest_build_as_published_wants_a_newer_processor(tmp_path: Path) -> None:
    published = provide(B10434.as_published())
    assert "SIGILL" in problem(emulation.on_processor("Haswell", published, tmp_path))


@x86_64_linux
@pytest.mark.parametrize("role", Role)
def test_both_builds_compute_on_a_haswell(role: Role, tmp_path: Path) -> None:
    check_binary(emulation.on_processor("Haswell", provide(of_role(role)), tmp_path), emulation.TIMEOUT_S)


@x86_64_linux
def test_a_build_for_avx2_is_of_no_use_on_a_nehalem(tmp_path: Path) -> None:
    oldest, current = tmp_path / "oldest", tmp_path / "current"
    oldest.mkdir()
    current.mkdir()
    emulated = emulation.on_processor("Nehalem", provide(B10434), oldest)
    with pytest.raises(BinaryNotFound, match="SIGILL"):
        check_binary(emulated)
    emulated = emulation.on_processor("Nehalem", provide(of_role(Role.CURRENT)), current)
    assert "no code for this processor" in problem(emulated)


@x86_64_linux
def test_there_is_a_build_for_a_nehalem(tmp_path: Path) -> None:
    (build,) = (build for build in BUILDS if build.name == "b10068-sse42")
    check_binary(emulation.on_processor("Nehalem", provide(build), tmp_path), emulation.TIMEOUT_S)


# --- another architecture


@pytest.fixture(scope="module")
def arm_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return emulation.arm_wheel(tmp_path_factory.mktemp("arm"))


@x86_64_linux
def test_the_current_build_computes_on_arm_and_not_as_published(arm_build: Path, tmp_path: Path) -> None:
    build = of_role(Role.CURRENT)
    emulated = emulation.on_arm(arm_build / build.server, tmp_path)
    assert "its libraries do not belong together" in problem(emulated)
    for change in build.changes:
        change.apply(arm_build)
    check_binary(emulated, emulation.TIMEOUT_S)


@x86_64_linux
def test_a_router_serves_with_a_llama_server_for_arm(
    arm_build: Path, tmp_path: Path, make_router: MakeRouter, tiny_gguf: Path
) -> None:
    build = of_role(Role.CURRENT)
    for change in build.changes:
        change.apply(arm_build)
    emulated = emulation.on_arm(arm_build / build.server, tmp_path)
    router = make_router({"tiny": {"model_path": tiny_gguf}}, binary=emulated)
    answer = router.client.post("/v1/chat/completions", json=chat("tiny", max_tokens=2))
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == 2


# --- the promise of the tests themselves


def test_a_session_whose_llama_server_cannot_compute_says_so_and_tests_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/test_background.py"],
        cwd=ROOT,
        env={**os.environ, "LLAMA_BUILD": str(acting(tmp_path, "kill -ILL $$"))},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert "SIGILL" in said.splitlines()[0] + said.splitlines()[1]
    assert "passed" not in said
