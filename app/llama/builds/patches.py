"""What is done to a build after it was unpacked, so that it computes everywhere and does not crash."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

_ELF64_LITTLE_ENDIAN = b"\x7fELF\x02\x01"
_PT_DYNAMIC = 2
_DT_NULL, _DT_SYMBOLIC = 0, 16
_ENTRY = struct.Struct("<qQ")  # of the dynamic section: tag, value


class ChangeFailed(Exception):
    """The files are not what the change was made for."""


class Change(Protocol):
    """One step. It is applied once, to a folder that nobody uses yet."""

    def apply(self, folder: Path) -> None:
        """Raises `ChangeFailed`."""


@dataclass(frozen=True)
class Replace:
    """`source` takes the place of every file that `targets` matches.

    All are one file: the loader tells libraries apart by their inode, and would load copies twice.
    """

    source: str
    targets: str

    def apply(self, folder: Path) -> None:
        source = folder / self.source
        found = sorted(folder.glob(self.targets))
        if not source.is_file() or not found:
            raise ChangeFailed(f"there is no {self.source}, or nothing that matches {self.targets}")
        for target in found:
            target.unlink()
            os.link(source, target)


@dataclass(frozen=True)
class BindToItself:
    """The library looks for symbols in itself first, as if it had been linked with -Bsymbolic."""

    library: str

    def apply(self, folder: Path) -> None:
        path = folder / self.library
        try:
            changed = mark_symbolic(path.read_bytes())
        except OSError as error:
            raise ChangeFailed(f"{self.library}: {error.strerror}") from error
        path.write_bytes(changed)


def mark_symbolic(elf: bytes) -> bytes:
    """The same ELF library with DT_SYMBOLIC in its dynamic section. Raises `ChangeFailed`."""
    if elf[:6] != _ELF64_LITTLE_ENDIAN:
        raise ChangeFailed("it is no 64-bit little-endian ELF file")
    try:
        entries = list(_dynamic(elf))
    except struct.error as error:
        raise ChangeFailed(f"its headers are damaged: {error}") from error
    tags = [tag for _, tag in entries]
    if _DT_NULL not in tags:
        raise ChangeFailed("it has no dynamic section")
    end = tags.index(_DT_NULL)
    if _DT_SYMBOLIC in tags[:end]:
        return elf
    if end + 1 == len(tags):  # the last entry must stay the end
        raise ChangeFailed("its dynamic section has no room for an entry")
    changed = bytearray(elf)
    _ENTRY.pack_into(changed, entries[end][0], _DT_SYMBOLIC, 0)
    return bytes(changed)


def _dynamic(elf: bytes) -> Iterator[tuple[int, int]]:
    """Offset and tag of each entry of the dynamic section."""
    (table,) = struct.unpack_from("<Q", elf, 32)
    size, count = struct.unpack_from("<HH", elf, 54)
    for at in range(table, table + size * count, size):
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", elf, at)
        if kind == _PT_DYNAMIC:
            for entry in range(offset, offset + length, _ENTRY.size):
                yield entry, _ENTRY.unpack_from(elf, entry)[0]
