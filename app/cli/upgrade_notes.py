"""What a start with a file of an older version is told, once: docs/upgrading.md has the rest."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from app.core.config import Config

FILE_NAME = "upgrade-notes.json"
"""In the log folder: the notes that have been told there."""


@dataclass(frozen=True)
class UpgradeNote:
    """`text` is empty where the change does not concern this configuration."""

    name: str
    text: Callable[[Config], str]


def _keys_that_no_longer_manage(config: Config) -> str:
    keys = config.api.api_keys
    silent = [key_name(config, n) for n, key in enumerate(keys) if "admin" not in key.model_fields_set]
    if not silent:
        return ""
    return (
        f'api.api_keys: an object may manage models only with "admin": true now; without it are '
        f"{', '.join(silent)}. docs/upgrading.md says more; this is told once"
    )


NOTES = (UpgradeNote("admin-is-false-for-objects", _keys_that_no_longer_manage),)


def key_name(config: Config, index: int) -> str:
    return config.api.api_keys[index].name or f"key {index + 1}"


def admins(config: Config) -> str:
    """Who may manage, in words."""
    keys = config.api.api_keys
    if not keys:
        return "everyone: api.api_keys is empty"
    found = [key_name(config, index) for index, key in enumerate(keys) if key.admin]
    return ", ".join(found) or 'nobody: no key in api.api_keys has "admin": true'


def untold(config: Config) -> list[str]:
    """The notes that concern this configuration and that no start with this log folder has told yet."""
    path = Path(config.system.log_dir) / FILE_NAME
    told = _read(path)
    found = {note.name: text for note in NOTES if note.name not in told and (text := note.text(config))}
    if found:
        _write(path, [*told, *found])
    return list(found.values())


def _read(path: Path) -> list[str]:
    with contextlib.suppress(OSError, ValueError):
        names = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(names, list):
            return [name for name in names if isinstance(name, str)]
    return []


def _write(path: Path, names: list[str]) -> None:
    """Where it cannot be kept, it is told again: better than never."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(names), encoding="utf-8")
