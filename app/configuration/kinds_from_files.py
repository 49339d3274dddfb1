"""Which models make embeddings or rank, where the configuration does not say: their files do.

llama-server started for chat aborts on an encoder, or makes a chat model of what was trained for vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Thread

from app.core.config import Config, ModelConfig
from app.gguf.header import GgufError, GgufHeader, Pooling, read_header

SLOWEST_FILE_S = 10.0
"""A disk that sleeps has woken up by then. Nobody waits for a file system that is gone."""


def with_kinds_from_files(config: Config) -> Config:
    """What cannot be read counts as a chat model: a load says what is wrong with it. Blocking."""
    silent = {alias: model for alias, model in config.models.items() if _says_nothing(model)}
    found = headers([Path(model.model_path) for model in silent.values()])
    known = {
        alias: _with_kind(model, header)
        for alias, model in silent.items()
        if (header := found.get(Path(model.model_path))) is not None
    }
    return config.model_copy(update={"models": {**config.models, **known}})


def kind_in_params(header: GgufHeader) -> dict[str, bool]:
    """The key in `params` that this file needs; none for a chat model."""
    if header.pooling_type == Pooling.RANK.value:
        return {"rerank": True}
    return {"embedding": True} if header.is_embedding else {}


def _says_nothing(model: ModelConfig) -> bool:
    return not {"embedding", "rerank"} & model.params.model_fields_set


def _with_kind(model: ModelConfig, header: GgufHeader) -> ModelConfig:
    return model.model_copy(update={"params": model.params.model_copy(update=kind_in_params(header))})


def headers(
    paths: Sequence[Path],
    read: Callable[[Path], GgufHeader] = read_header,
    slowest_s: float = SLOWEST_FILE_S,
) -> dict[Path, GgufHeader | None]:
    """Of all until one takes longer than that; None for what is no model."""
    found: dict[Path, GgufHeader | None] = {}

    def read_all() -> None:
        for path in paths:
            try:
                found[path] = read(path)
            except (GgufError, OSError):
                found[path] = None

    reader, known = Thread(target=read_all, name="model headers", daemon=True), -1
    reader.start()
    while reader.is_alive() and len(found) > known:
        known = len(found)
        reader.join(slowest_s)
    return dict(found)
