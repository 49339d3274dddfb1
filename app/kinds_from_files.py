"""Which models make embeddings or rank, where the configuration does not say: their files do.

llama-server started for chat aborts on an encoder, or makes a chat model of what was trained for vectors.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Thread

import anyio.to_thread

from app.configuration.reloadable_keys import Configuration
from app.core.config import Config, ModelConfig
from app.domain.file_identity import FileIdentity
from app.domain.model_spec import ModelParams
from app.gguf.header import GgufError, GgufHeader, Pooling, read_header

logger = logging.getLogger(__name__)

WATCH_EVERY_S = 1.0
SLOWEST_FILE_S = 10.0
"""A disk that sleeps has woken up by then. Nobody waits for a file system that is gone."""


def with_kinds_from_files(config: Config) -> Config:
    """What cannot be read counts as a chat model: a load says what is wrong with it. Blocking."""
    return _with_kinds(config, headers(_files(config)))


async def watch(configuration: Configuration, every_s: float = WATCH_EVERY_S) -> None:
    """Look again at a file that is another one, such as one that was still being downloaded.

    Never returns.
    """
    seen: Mapping[Path, FileIdentity | None] = {}
    while True:
        config = configuration.current
        found = await anyio.to_thread.run_sync(_identities, config)
        changed = [path for path, file in found.items() if file is not None and file != seen.get(path)]
        known = await anyio.to_thread.run_sync(headers, changed) if changed else {}
        if configuration.current is config:  # else it was reloaded meanwhile
            seen = found
            _take(configuration, _with_kinds(config, known))
        await asyncio.sleep(every_s)


def _take(configuration: Configuration, new: Config) -> None:
    before = configuration.current.models
    changed = {a: m.params.kind for a, m in new.models.items() if m.params.kind is not before[a].params.kind}
    for alias, kind in changed.items():
        logger.info("%s: its file is another one, and makes it a model of the kind %s", alias, kind.value)
    if changed:
        configuration.change(new)


def _files(config: Config) -> list[Path]:
    """Those that decide."""
    return [Path(model.model_path) for model in config.models.values() if _says_nothing(model)]


def _identities(config: Config) -> dict[Path, FileIdentity | None]:
    return {path: FileIdentity.at(path) for path in _files(config)}


def _with_kinds(config: Config, known: Mapping[Path, GgufHeader | None]) -> Config:
    """What a file says is no word of the user's: another file may say something else."""
    models = {
        alias: _with_kind(model, header)
        for alias, model in config.models.items()
        if _says_nothing(model) and (header := known.get(Path(model.model_path))) is not None
    }
    return config.model_copy(update={"models": {**config.models, **models}})


def kind_in_params(header: GgufHeader) -> dict[str, bool]:
    """The key in `params` that this file needs; none for a chat model."""
    if header.pooling_type == Pooling.RANK.value:
        return {"rerank": True}
    return {"embedding": True} if header.is_embedding else {}


def _says_nothing(model: ModelConfig) -> bool:
    return not {"embedding", "rerank"} & model.params.model_fields_set


def _with_kind(model: ModelConfig, header: GgufHeader) -> ModelConfig:
    written = model.params
    values = {**dict(written), "embedding": False, "rerank": False, **kind_in_params(header)}
    params = ModelParams.model_construct(_fields_set=written.model_fields_set, **values)
    return model.model_copy(update={"params": params})


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
