"""The files of a model that is split into several."""

from __future__ import annotations

import re
from pathlib import Path

from app.gguf.header_parser import GgufError

SPLIT_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def split_parts(path: Path) -> tuple[Path, ...]:
    """All files of the model that begins at `path`; llama.cpp names them `name-00001-of-00003.gguf`."""
    match = SPLIT_NAME.fullmatch(path.name)
    if match is None:
        return (path,)
    stem, count = match["stem"], match["count"]
    if match["number"] != "00001" or int(count) == 0:
        raise GgufError(f"{path.name} is not the first part of the model; use {stem}-00001-of-{count}.gguf")
    numbers = range(1, int(count) + 1)
    return tuple(path.with_name(f"{stem}-{number:05d}-of-{count}.gguf") for number in numbers)
