"""What file is this, and files that are written as a whole or not at all."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import pytest

from app.domain.atomic_files import private, write_whole
from app.domain.file_identity import FileIdentity


def test_another_content_is_another_file(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    assert FileIdentity.at(path) is None
    path.write_text("one")
    first = FileIdentity.at(path)
    assert first == FileIdentity.at(path)
    path.write_text("three")
    assert first != FileIdentity.at(path)


def test_a_file_written_again_in_the_same_size_is_another_one(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_text("one")
    first = FileIdentity.at(path)
    os.utime(path, ns=(1, 1))
    assert first != FileIdentity.at(path)


def test_it_is_two_numbers_in_json() -> None:
    """Keys of what was learned of a model are made of it, and outlive a release."""
    assert json.dumps(FileIdentity(12, 34)) == "[12, 34]"


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    path.write_text("old")
    write_whole(path, "new")
    assert path.read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["note.json"]


def test_what_cannot_be_written_leaves_the_old_text_and_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    path.mkdir()  # nothing can take its place
    with pytest.raises(OSError, match=r"note"):
        write_whole(path, "new")
    assert [file.name for file in tmp_path.iterdir()] == ["note.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no modes")
def test_a_private_file_is_never_open_to_others(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    path.write_text("old")
    path.chmod(0o644)
    path.with_suffix(".new").write_text("left behind")
    path.with_suffix(".new").chmod(0o666)
    write_whole(path, "secret")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_that_somebody_put_in_the_way_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, folder = tmp_path / "theirs", tmp_path / "ours"
    theirs.write_text("precious")
    folder.mkdir()
    for name in ("note.json", "note.new"):
        (folder / name).symlink_to(theirs)
    write_whole(folder / "note.json", "ours")
    assert (theirs.read_text(), (folder / "note.json").read_text()) == ("precious", "ours")
    assert not (folder / "note.json").is_symlink()
    (folder / "model.log").symlink_to(theirs)
    os.close(private(folder / "model.log", os.O_RDONLY))  # of our own account
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(OSError, match=r"model\.log"):
        private(folder / "model.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
