"""What the header of a GGUF file tells about its model; all parts of a split model count as one.

Why not the `gguf` package: for a vocabulary of 262k tokens it took 11 s and 708 MB; see `reader`.
All functions block on the disk: call them in a thread.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from app.domain.file_identity import FileIdentity
from app.gguf.header_parser import GgufError, TensorInfo, Value, read_part
from app.gguf.split_model import split_parts

__all__ = [
    "ENCODERS",
    "PROJECTOR",
    "GgufError",
    "GgufHeader",
    "Pooling",
    "TensorInfo",
    "Value",
    "read_header",
]

# Encoders see their whole input at once: they make embeddings and keep no KV cache.
ENCODERS = frozenset({
    "bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3",
    "eurobert", "gemma-embedding", "t5encoder",
})  # fmt: skip
PROJECTOR = "clip"
"""The architecture of files that give a model eyes or ears."""

CACHED_HEADERS = 64


class Pooling(Enum):
    """How the vectors of the tokens become one: the values of the metadata key `pooling_type`."""

    NONE = 0
    MEAN = 1
    CLS = 2
    LAST = 3
    RANK = 4

    @property
    def flag(self) -> str:
        """As llama-server's `--pooling` calls it."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class GgufHeader:
    architecture: str
    name: str
    metadata: Mapping[str, Value]
    array_lengths: Mapping[str, int]  # of all arrays, also of those too long to keep
    tensors: Mapping[str, TensorInfo]
    file_size: int  # bytes of all parts
    parts: tuple[Path, ...]
    has_infill_mark: bool = False
    """In its vocabulary."""

    def value(self, key: str) -> Value | None:
        """A value that the format keeps under the architecture's name, such as `llama.block_count`."""
        return self.metadata.get(f"{self.architecture}.{key}")

    def number(self, key: str, default: int = 0) -> int:
        value = self.value(key)
        return value if isinstance(value, int) else default

    @property
    def context_length(self) -> int:
        """Tokens that the model was trained for; 0 if the file does not say."""
        return self.number("context_length")

    @property
    def block_count(self) -> int:
        return self.number("block_count")

    @property
    def pooling_type(self) -> int | None:
        """A value of `Pooling`, or one that is not known yet; None if the file does not say."""
        value = self.value("pooling_type")
        return value if isinstance(value, int) else None

    @property
    def is_embedding(self) -> bool:
        return self.architecture in ENCODERS or bool(self.pooling_type)


class _Part(NamedTuple):
    """One content of one file."""

    path: Path
    identity: FileIdentity


def read_header(path: Path) -> GgufHeader:
    """Raises GgufError for a file that is no usable model, OSError for one that cannot be read. Cached."""
    return _read_model(tuple(_part(part, path) for part in split_parts(path)))


def _part(part: Path, first: Path) -> _Part:
    try:
        status = part.stat()
    except FileNotFoundError as error:
        if part == first:
            raise
        raise GgufError(f"{first.name}: {part.name} is missing; put it beside the first part") from error
    if not stat.S_ISREG(status.st_mode):
        raise GgufError(f"{part.name} is not a regular file; use the path of a GGUF file")
    return _Part(part, FileIdentity.of(status))


@lru_cache(maxsize=CACHED_HEADERS)
def _read_model(files: tuple[_Part, ...]) -> GgufHeader:
    parts = [read_part(file.path, file.identity.size) for file in files]
    file_name, metadata = files[0].path.name, parts[0].metadata
    architecture, name = metadata.get("general.architecture"), metadata.get("general.name")
    if not isinstance(architecture, str):
        raise GgufError(f"{file_name} names no architecture: it is not a model; use another file")
    split_count = metadata.get("split.count", 0)
    if split_count not in (0, 1, len(parts)):
        raise GgufError(f"{file_name} is one of {split_count} parts; name them ...-00001-of-... again")
    return GgufHeader(
        architecture=architecture,
        name=name if isinstance(name, str) else files[0].path.stem,
        metadata=metadata,
        array_lengths=parts[0].array_lengths,
        tensors=MappingProxyType({tensor.name: tensor for part in parts for tensor in part.tensors}),
        file_size=sum(file.identity.size for file in files),
        parts=tuple(file.path for file in files),
        has_infill_mark=parts[0].has_infill_mark,
    )
