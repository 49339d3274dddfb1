"""Taking a changed configuration file while requests run: on SIGHUP, or when the file changes."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import anyio.to_thread

from app.access.rules import Rules
from app.api.services import Services
from app.configuration import file as config_file
from app.configuration.file import ConfigError
from app.core.config import Config
from app.domain.files import FileIdentity

if TYPE_CHECKING:
    from app.main import RouterApp

logger = logging.getLogger(__name__)

WATCH_EVERY_S = 2.0
NEEDS_RESTART = {
    "api": ("host", "port", "cors_allow_origins"),
    "system": (
        "llama_server_path", "first_port", "cache_dir", "log_dir", "log_level", "log_format",
        "load_timeout_sec", "health_check_interval_sec", "min_free_vram_mb", "watch_config",
    ),
}  # fmt: skip
"""Keys that are read once, at start."""


async def reload(app: RouterApp, path: Path) -> bool:
    """Apply the file by difference. A file with mistakes changes nothing; they are logged."""
    services: Services = app.state.services
    try:
        new = await anyio.to_thread.run_sync(config_file.load, path)
    except ConfigError as error:
        logger.error("the configuration stays as it was; %s", error)
        return False
    old = services.config
    if services.manager.closing or new == old:
        return False
    services.config = new
    app.take_rules(Rules(new.api, app.state.rules.sessions))
    services.manager.apply(new)
    services.metrics.start_at_zero(new.models)
    if new.api.api_keys != old.api.api_keys:
        _hang_up(services)
    logger.info("configuration reloaded: %s", _summary(old, new))
    for key in _unchangeable(old, new):
        logger.warning("%s has changed: restart the router for it to take effect", key)
    return True


def _hang_up(services: Services) -> None:
    """Streams were let in with a key of before; with one that still counts they come again by themselves."""
    services.feed.hang_up()
    services.metrics_feed.hang_up()
    services.logs.end_followers()


async def watch(app: RouterApp, path: Path) -> None:
    """Reload when the file, or one that it takes a key from, is another one. Never returns."""
    seen = await anyio.to_thread.run_sync(_identities, _files(app, path))
    while True:
        await asyncio.sleep(WATCH_EVERY_S)
        found = await anyio.to_thread.run_sync(_identities, _files(app, path))
        if any(found[file] != seen.get(file) for file in found):
            seen.update(found)
            await reload(app, path)


def _files(app: RouterApp, path: Path) -> list[Path]:
    services: Services = app.state.services
    names = [key.key_file for key in services.config.api.api_keys if key.key_file]
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


def _unchangeable(old: Config, new: Config) -> list[str]:
    return [
        f"{section}.{key}"
        for section, keys in NEEDS_RESTART.items()
        for key in keys
        if getattr(getattr(old, section), key) != getattr(getattr(new, section), key)
    ]
