"""Taking a changed configuration file while requests run: on SIGHUP, or when the file changes."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import anyio.to_thread

from app.configuration import file as config_file
from app.configuration.file import ConfigError
from app.configuration.reloadable_keys import Configuration
from app.core.config import Config
from app.domain.file_identity import FileIdentity
from app.kinds_from_files import with_kinds_from_files

logger = logging.getLogger(__name__)

WATCH_EVERY_S = 2.0
TAKES = ("system.watch_config",)


async def reload(configuration: Configuration, path: Path) -> None:
    """Apply the file by difference. A file with mistakes changes nothing; they are logged."""
    try:
        new = await anyio.to_thread.run_sync(_read, path)
    except ConfigError as error:
        logger.error("the configuration stays as it was; %s", error)
        return
    old = configuration.current
    if new == old:
        return
    left = configuration.change(new)
    if configuration.current != old:
        logger.info("configuration reloaded: %s", _summary(old, configuration.current))
    for key in left:
        logger.warning("%s has changed: restart the router for it to take effect", key)


async def watch(configuration: Configuration, path: Path) -> None:
    """Reload when the file, or one that it takes a key from, is another one, while that is asked for.

    Never returns.
    """
    seen = await anyio.to_thread.run_sync(_identities, _files(configuration.current, path))
    while True:
        await asyncio.sleep(WATCH_EVERY_S)
        found = await anyio.to_thread.run_sync(_identities, _files(configuration.current, path))
        changed = any(found[file] != seen.get(file) for file in found)
        seen.update(found)
        if changed and configuration.current.system.watch_config:
            await reload(configuration, path)


def _read(path: Path) -> Config:
    """Blocking."""
    return with_kinds_from_files(config_file.load(path))


def _files(config: Config, path: Path) -> list[Path]:
    names = [key.key_file for key in config.api.api_keys if key.key_file]
    return [path, *(path.resolve().parent / Path(name).expanduser() for name in names)]


def _identities(files: list[Path]) -> dict[Path, FileIdentity]:
    """Of those that are there: an editor may just be replacing one. Blocking."""
    return {file: found for file in files if (found := FileIdentity.at(file)) is not None}


def _summary(old: Config, new: Config) -> str:
    before, after = old.specs(), new.specs()
    changes = {
        "added": [a for a in after if a not in before],
        "removed": [a for a in before if a not in after],
        "changed": [a for a in after if before.get(a, after[a]) != after[a]],
    }
    found = [f"{what} {', '.join(aliases)}" for what, aliases in changes.items() if aliases]
    return "; ".join(found) or "no model is concerned"
