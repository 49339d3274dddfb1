"""The table of facts notices when a llama-server is not what it was."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.router_process import ROOT
from tools.llama_facts.__main__ import AREAS

LIMIT_S = 100.0


def facts(binary: Path, *areas: str) -> tuple[int, list[str], list[str]]:
    """The exit code, the facts that held, and those that have changed."""
    only = [word for area in areas for word in ("--only", area)]
    done = subprocess.run(
        [sys.executable, "-m", "tools.llama_facts", str(binary), *only],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    held = [line[9:] for line in lines if line.startswith("held ")]
    lost = [line[9:] for line in lines if line.startswith("CHANGED")]
    assert f"{len(held)} held, {len(lost)} changed" == lines[-1]
    return done.returncode, held, lost


def stand_in(folder: Path, script: str) -> Path:
    path = folder / "llama-server"
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)
    return path


def saying(folder: Path, llama_server: Path, rewrite: str) -> Path:
    """The real one, but what it writes goes through `sed`."""
    sed = f"exec sed -u {shlex.quote(rewrite)}"
    return stand_in(folder, f'exec {shlex.quote(str(llama_server))} "$@" > >({sed}) 2> >({sed} >&2)')


def test_a_flag_that_is_gone_is_a_change_and_all_others_hold(tmp_path: Path, llama_server: Path) -> None:
    newer = saying(tmp_path, llama_server, "s/^--sse-ping-interval/--ping-every/")

    code, held, lost = facts(newer, "command line")

    assert code == 1
    assert [line.split() for line in lost] == [
        ["command", "line", "--sse-ping-interval", "with", "a", "value"]
    ]
    assert len(held) > 25


def test_a_flag_that_takes_no_value_any_more_is_a_change(tmp_path: Path, llama_server: Path) -> None:
    newer = saying(tmp_path, llama_server, r"s/^\(--threads-http\) N/\1  /")

    code, _, lost = facts(newer, "command line")

    assert code == 1
    assert ["--threads-http" in line for line in lost] == [True]


def test_a_line_of_the_log_that_reads_otherwise_is_a_change(tmp_path: Path, llama_server: Path) -> None:
    newer = saying(tmp_path, llama_server, "s/projected to use/expected to take/")

    code, held, lost = facts(newer, "loading")

    assert code == 1
    assert len(lost) == 1 and "projected to use" in lost[0]
    assert any("/props without a key: 401" in line for line in held)


@pytest.mark.parametrize("area", sorted(set(AREAS) - {"command line", "failures"}))
def test_a_binary_that_does_not_start_any_more_has_lost_all_of_it(
    tmp_path: Path, llama_server: Path, area: str
) -> None:
    real = shlex.quote(str(llama_server))
    newer = stand_in(tmp_path, f'case "$1" in --help|--version) exec {real} "$1";; esac; exit 3')

    code, held, lost = facts(newer, area)

    assert (code, held) == (1, [])
    assert len(lost) == 1 and "all of it can be asked" in lost[0]


def test_what_is_no_llama_server_is_said_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.llama_facts", str(tmp_path / "nothing")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
