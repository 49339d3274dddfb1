"""Takes one GGUF file apart: metadata and tensor sizes, nothing interpreted, nothing believed.

Buffered reads, not mmap: touching a mapped file that was truncated meanwhile (a new download) is a SIGBUS.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple, TypeAlias

Scalar: TypeAlias = "int | float | str"
Value: TypeAlias = "Scalar | tuple[Scalar, ...]"

# These bound the time and the memory that a hostile or damaged file can cost; real headers have 1 to 20 MB.
MAX_HEADER_BYTES = 128 << 20
MAX_STRING_BYTES = 4 << 20
MAX_METADATA_KEYS = 1000
MAX_KEPT_ARRAY = 4096  # values per layer are kept, the tokenizer's arrays are skipped
MAX_TENSORS = 100_000
MAX_DIMENSIONS = 4

READ_BYTES = 256 << 10
DEFAULT_ALIGNMENT = 32
SUPPORTED_VERSIONS = (2, 3)
CUT_OFF = "its download was cut off, repeat it"

_TOKENS = "tokenizer.ggml.tokens"
INFILL_MARKS = (
    "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<\uff5cfim\u2581begin\uff5c>", "<PRE>", "\u2581<PRE>",
    "<|code_prefix|>", "<|prefix|>",
)  # fmt: skip
"""A token of one of these names is what llama.cpp begins infill with."""

_MAGIC = struct.Struct("4s")
_COUNTS = struct.Struct("<IQQ")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_ARRAY = struct.Struct("<IQ")
_STRING_TYPE, _ARRAY_TYPE = 8, 9
_SCALARS: Mapping[int, struct.Struct] = MappingProxyType({
    number: struct.Struct(f"<{code}")
    for number, code in (*enumerate("BbHhIif?"), (10, "Q"), (11, "q"), (12, "d"))
})  # fmt: skip


class GgufError(ValueError):
    """The file is no usable GGUF model; the message says what is wrong and what to do."""


def _damaged(what: str) -> GgufError:
    return GgufError(f"{what}; the file is damaged, download it again")


class BlockLayout(NamedTuple):
    """Quantised tensors consist of blocks: `elements` numbers in `n_bytes` bytes."""

    elements: int
    n_bytes: int

    def bytes_for(self, elements: int) -> int:
        return elements // self.elements * self.n_bytes


# By ggml's type number (ggml.c, `type_traits`). Types that are missing here are measured by their offsets.
TENSOR_LAYOUTS: Mapping[int, BlockLayout] = MappingProxyType({
    number: BlockLayout(*layout)
    for number, layout in {
        0: (1, 4), 1: (1, 2), 30: (1, 2), 28: (1, 8),  # f32 f16 bf16 f64
        24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8),  # i8 i16 i32 i64
        2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40),  # q4_0.. q2_K..
        10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
        16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18),  # iq2_xxs..
        21: (256, 110), 22: (256, 82), 23: (256, 136), 29: (256, 56),  # iq3_s iq2_s iq4_xs iq1_m
        34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36), 41: (128, 18),  # tq1_0.. mxfp4 nvfp4 q1_0
    }.items()
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    name: str
    shape: tuple[int, ...]  # ggml's order: the row length comes first
    type: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class GgufPart:
    metadata: Mapping[str, Value]
    array_lengths: Mapping[str, int]  # of the arrays that were too long to keep
    tensors: tuple[TensorInfo, ...]
    has_infill_mark: bool


class _Entry(NamedTuple):
    """A tensor as the file describes it."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


def read_part(path: Path, size: int) -> GgufPart:
    """The header of one file of `size` bytes."""
    try:
        with path.open("rb") as file:
            return _parse(_Cursor(file, size), size)
    except GgufError as error:
        raise GgufError(f"{path.name}: {error}") from None


def _parse(cursor: _Cursor, size: int) -> GgufPart:
    n_tensors, n_keys = _preamble(cursor, size)
    metadata: dict[str, Value] = {}
    array_lengths: dict[str, int] = {}
    has_infill_mark = False
    for _ in range(n_keys):
        key = cursor.string()
        value_type = cursor.number(_U32)
        if value_type != _ARRAY_TYPE:
            metadata[key] = _scalar(cursor, value_type)
            continue
        start = cursor.position
        array_lengths[key], values = _array(cursor)
        if key == _TOKENS:
            has_infill_mark = cursor.has_any_since(start, INFILL_MARKS)
        if values is not None:
            metadata[key] = values
    entries = [_entry(cursor) for _ in range(n_tensors)]
    data_start = _aligned(cursor.position, metadata.get("general.alignment", DEFAULT_ALIGNMENT))
    tensors = _measure(entries, size - data_start)
    return GgufPart(MappingProxyType(metadata), MappingProxyType(array_lengths), tensors, has_infill_mark)


def _preamble(cursor: _Cursor, size: int) -> tuple[int, int]:
    if size == 0:
        raise GgufError("the file is empty; download it again")
    if cursor.unpack(_MAGIC) != (b"GGUF",):
        raise GgufError("this is not a GGUF file; convert the model or download its GGUF version")
    version, n_tensors, n_keys = cursor.unpack(_COUNTS)
    if version not in SUPPORTED_VERSIONS:
        raise GgufError(f"GGUF version {version} is not supported (2 and 3 are); convert it again")
    if n_tensors > MAX_TENSORS or n_keys > MAX_METADATA_KEYS:
        raise _damaged(f"{n_tensors} tensors and {n_keys} metadata keys are not plausible")
    return n_tensors, n_keys


def _scalar(cursor: _Cursor, value_type: int) -> Scalar:
    return cursor.string() if value_type == _STRING_TYPE else cursor.number(_layout_of(value_type))


def _layout_of(value_type: int) -> struct.Struct:
    layout = _SCALARS.get(value_type)
    if layout is None:
        raise _damaged(f"metadata of the unknown type {value_type}")
    return layout


def _array(cursor: _Cursor) -> tuple[int, tuple[Scalar, ...] | None]:
    """The length, and the values unless there are too many. Nested arrays are refused, as by llama.cpp."""
    value_type, length = cursor.unpack(_ARRAY)
    if length <= MAX_KEPT_ARRAY:
        return length, tuple(_scalar(cursor, value_type) for _ in range(length))
    if value_type == _STRING_TYPE:
        cursor.skip_strings(length)
    else:
        cursor.skip(length * _layout_of(value_type).size)
    return length, None


def _entry(cursor: _Cursor) -> _Entry:
    name = cursor.string()
    n_dimensions = cursor.number(_U32)
    if not 1 <= n_dimensions <= MAX_DIMENSIONS:
        raise _damaged(f"tensor {name!r} has {n_dimensions} dimensions")
    shape = tuple(cursor.number(_U64) for _ in range(n_dimensions))
    return _Entry(name, shape, cursor.number(_U32), cursor.number(_U64))


def _aligned(header_end: int, alignment: Value) -> int:
    """Where the weights begin."""
    if not isinstance(alignment, int) or alignment < 1:
        raise _damaged("general.alignment is not a positive number")
    return -(-header_end // alignment) * alignment


def _measure(entries: list[_Entry], data_bytes: int) -> tuple[TensorInfo, ...]:
    """Sizes by type and shape, checked against the file; an unknown type reaches to the next one."""
    room = dict(pairwise(sorted({entry.offset for entry in entries} | {data_bytes})))
    tensors = []
    for name, shape, tensor_type, offset in entries:
        layout = TENSOR_LAYOUTS.get(tensor_type)
        n_bytes = layout.bytes_for(math.prod(shape)) if layout else room.get(offset, 0)
        if offset + n_bytes > data_bytes:
            raise GgufError(f"tensor {name!r} lies beyond the end of the file; {CUT_OFF}")
        tensors.append(TensorInfo(name, shape, tensor_type, n_bytes))
    return tuple(tensors)


class _Cursor:
    """A position in the header. Fetches more of the file when a read needs it, never beyond the limits."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.position = 0
        self._file = file
        self._size = size
        self._data = bytearray()

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        start = self.position
        self.skip(layout.size)
        return layout.unpack_from(self._data, start)

    def number(self, layout: struct.Struct) -> int:
        value: int = self.unpack(layout)[0]
        return value

    def string(self) -> str:
        length = self.number(_U64)
        if length > MAX_STRING_BYTES:
            raise _damaged(f"a string of {length} bytes is not plausible")
        start = self.position
        self.skip(length)
        return self._data[start : self.position].decode("utf-8", "replace")

    def skip(self, n_bytes: int) -> None:
        self.position += n_bytes
        if self.position > len(self._data):
            self._fetch(self.position)

    def skip_strings(self, count: int) -> None:
        """Most of a header is the tokenizer's words: this loop is what reading one costs."""
        length_at, data, position = _U64.unpack_from, self._data, self.position
        left = count
        while left:
            try:
                for left in range(left, 0, -1):  # noqa: B007, B020 - what is left when the data runs out
                    (length,) = length_at(data, position)
                    position += 8 + length
                left = 0
            except (struct.error, OverflowError):
                self._fetch(position + 8)
        self.position = position
        self.skip(0)

    def has_any_since(self, start: int, texts: tuple[str, ...]) -> bool:
        """One of the texts is a string behind `start`: much faster than to look at each string."""
        strings = [_U64.pack(len(text.encode())) + text.encode() for text in texts]
        return any(self._has_since(start, string) for string in strings)

    def _has_since(self, start: int, string: bytes) -> bool:
        """In small steps, for the other threads."""
        end, step = self.position, READ_BYTES
        pieces = ((at, min(at + step + len(string) - 1, end)) for at in range(start, end, step))
        return any(self._data.find(string, *piece) >= 0 for piece in pieces)

    def _fetch(self, end: int) -> None:
        """Grow the data to `end` at least, in small steps: a large one would hold up the other threads."""
        if end > self._size:
            raise GgufError(f"the file ends in the middle of its header; {CUT_OFF}")
        if end > MAX_HEADER_BYTES:
            raise _damaged(f"a header of more than {MAX_HEADER_BYTES >> 20} MB is not plausible")
        have = len(self._data)
        self._data += self._file.read(max(end - have, READ_BYTES))
        if end > len(self._data):
            raise GgufError("the file shrank while it was read; wait for its download to finish")
