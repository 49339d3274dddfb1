"""The files of kept conversations: private, bounded, and only ever our own. Everything here blocks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import zlib
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from app.domain.atomic_files import write_whole

FOLDER = re.compile(r"[0-9a-f]{16}-[0-9a-f]{32}\Z")
FILE = re.compile(r"slot-\d{1,3}\.(kv|json|new)\Z")
TMPFS = Path("/dev/shm")
VERSION = 1
BLOCK = 1 << 20


@dataclass(frozen=True)
class Kept:
    """What one slot held. Its file counts only with this note beside it, which is written last."""

    slot: int
    tokens: int
    size: int
    checksum: int


class KvStore:
    """A folder for each model and each set of what makes its cache valid, below `disk` or in memory."""

    def __init__(self, disk: Path, tmpfs: Path = TMPFS) -> None:
        self._tmpfs = tmpfs
        in_memory = tmpfs / f"router-kv-{_owner()}-{_digest(str(disk))[:16]}"
        has_tmpfs = tmpfs.is_dir() and os.access(tmpfs, os.W_OK)
        self.roots = {"disk": disk, "ram": in_memory if has_tmpfs else disk / "ram"}

    def open(self, mode: str, alias: str, key: str) -> Path:
        """The private folder of this entry, without what an interrupted save left. Raises `OSError`."""
        root = self.roots[mode]
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if root.parent == self._tmpfs:
            _make_private(root)
        folder = root / f"{_digest(alias)[:16]}-{_digest(key)[:32]}"
        folder.mkdir(mode=0o700, exist_ok=True)
        _make_private(folder)
        self.tidy(folder)
        return folder

    def read(self, folder: Path) -> tuple[list[Kept], int]:
        """What can be restored, and how many were damaged: these are gone now."""
        whole, damaged = [], 0
        for note in sorted(folder.glob("slot-*.json")):
            kept = _read_note(note)
            if kept is not None and _checksum(file_of(folder, kept.slot)) == (kept.size, kept.checksum):
                whole.append(kept)
            else:
                damaged += 1
                _remove(note, note.with_suffix(".kv"))
        return whole, damaged

    def publish(self, folder: Path, slot: int, tokens: int) -> Kept:
        """From now on what llama-server wrote for this slot can be restored. Raises `OSError`."""
        file = file_of(folder, slot)
        file.chmod(0o600)
        size, checksum = _checksum(file)
        kept = Kept(slot, tokens, size, checksum)
        write_whole(file.with_suffix(".json"), json.dumps({"version": VERSION, **asdict(kept)}))
        return kept

    def touch(self, folder: Path) -> None:
        """It was used: the least recently used goes first."""
        with contextlib.suppress(OSError):
            for note in folder.glob("slot-*.json"):
                os.utime(note)

    def drop(self, folder: Path, slot: int) -> None:
        file = file_of(folder, slot)
        _remove(file.with_suffix(".json"), file)

    def tidy(self, folder: Path) -> None:
        """Remove files without a note, and notes that were never finished."""
        _remove(*folder.glob("slot-*.new"))
        for file in folder.glob("slot-*.kv"):
            if not file.with_suffix(".json").exists():
                _remove(file)

    def clean(self, wanted: Collection[tuple[str, str]], live: Collection[Path]) -> int:
        """Remove every entry but those of the wanted (mode, alias); how many that were."""
        keep = {(self.roots[mode], _digest(alias)[:16]) for mode, alias in wanted}
        unwanted = [f for f in self._folders() if (f.parent, f.name[:16]) not in keep]
        for folder in unwanted:
            _empty(folder, folder in live)
        return len(unwanted)

    def trim(self, limit_bytes: int, live: Collection[Path]) -> list[Path]:
        """Remove the least recently used until the rest is within the limit; what went."""
        entries = sorted(((_last_used(f), _size(f), f) for f in self._folders()), reverse=True)
        gone, total = [], 0
        for _, size, folder in entries:
            total += size
            if total > limit_bytes and size:
                _empty(folder, folder in live)
                total -= size
                gone.append(folder)
        return gone

    def _folders(self) -> Iterator[Path]:
        for root in self.roots.values():
            with contextlib.suppress(OSError):  # none yet
                yield from [f for f in root.iterdir() if FOLDER.match(f.name) and not f.is_symlink()]


def file_of(folder: Path, slot: int) -> Path:
    return folder / f"slot-{slot}.kv"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _owner() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0


def _make_private(folder: Path) -> None:
    """A folder that somebody else made before us is not ours to use."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or (hasattr(os, "getuid") and found.st_uid != os.getuid()):
        raise PermissionError(f"{folder} belongs to somebody else")
    if stat.S_IMODE(found.st_mode) & 0o077:
        folder.chmod(0o700)


def _read_note(note: Path) -> Kept | None:
    try:
        tree = json.loads(note.read_text("utf-8"))
        if tree.pop("version") != VERSION or not all(type(value) is int for value in tree.values()):
            return None
        kept = Kept(**tree)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return kept if note.name == f"slot-{kept.slot}.json" else None


def _checksum(file: Path) -> tuple[int, int]:
    """Size and CRC. llama-server finds a file that was cut short, but not one whose content has changed."""
    size = checksum = 0
    try:
        with file.open("rb") as opened:
            while block := opened.read(BLOCK):
                size += len(block)
                checksum = zlib.crc32(block, checksum)
    except OSError:
        return 0, -1
    return size, checksum


def _last_used(folder: Path) -> float:
    with contextlib.suppress(OSError):
        return max((note.stat().st_mtime for note in folder.glob("slot-*.json")), default=0.0)
    return 0.0


def _size(folder: Path) -> int:
    with contextlib.suppress(OSError):
        return sum(file.stat().st_size for file in folder.iterdir())
    return 0


def _empty(folder: Path, live: bool) -> None:
    """Its files go, and with the last one the folder, unless a process may still write there."""
    with contextlib.suppress(OSError):
        _remove(*(file for file in folder.iterdir() if FILE.match(file.name)))
        if not live:
            folder.rmdir()


def _remove(*files: Path) -> None:
    for file in files:
        with contextlib.suppress(OSError):
            file.unlink()
