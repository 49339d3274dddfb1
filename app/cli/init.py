"""`run.py init`: a configuration for the GGUF files of a folder."""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.cli.check import counted
from app.core.config import RESERVED_ALIASES
from app.gguf.header import PROJECTOR, GgufError, GgufHeader, read_header
from app.kinds_from_files import kind_in_params

SCHEMA = Path(__file__).resolve().parents[2] / "docs" / "config.schema.json"
DEFAULT_CONTEXT = 8192
"""The trained context can be a million tokens; its KV cache would fill any card."""

NAMES_OF_MODELS = {"default_model", "preload_models"}
"""Keys of `system` that another set of models makes wrong."""

_LATER_PART = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$")
_FIRST_PART = re.compile(r"-00001-of-\d{5}$")


def run(target: Path, models_dir: Path, *, force: bool) -> int:
    """Write `target`; nothing is overwritten without `force`, and then the models only."""
    if target.exists() and not force:
        return _complain(f"{target} exists already; use --force to overwrite it, or -c to write another file")
    if not models_dir.is_dir():
        return _complain(f"{models_dir} is not a folder")
    models, projectors = _models(models_dir)
    if not models:
        return _complain(f"there is no usable GGUF file in {models_dir}")
    kept = _settings(target)
    tree = {
        "$schema": _schema_from(target),
        **kept,
        "system": {**kept.get("system", {}), "base_models_path": str(models_dir.resolve())},
        "models": models,
    }
    try:
        target.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        return _complain(f"{target} cannot be written: {error.strerror}")
    print(f"{target}: {counted(len(models))}: {', '.join(models)}")
    for projector in projectors:
        print(f"  {projector.name} is a projector: set params.mmproj of the model that it belongs to")
    print(f"Next: python run.py check -c {target}")
    return 0


def _settings(target: Path) -> dict[str, dict[str, Any]]:
    """What the old file says besides its models: keys, addresses, the path of llama-server."""
    try:
        tree = json.loads(target.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return {}
    found = {name: tree.get(name) for name in ("api", "system")} if isinstance(tree, dict) else {}
    kept = {name: section for name, section in found.items() if isinstance(section, dict)}
    for key in NAMES_OF_MODELS & kept.get("system", {}).keys():
        del kept["system"][key]
    return kept


def _schema_from(target: Path) -> str:
    """Relative, so that the folder may move; on Windows there is no way from one drive to another."""
    try:
        return Path(os.path.relpath(SCHEMA, target.resolve().parent)).as_posix()
    except ValueError:
        return SCHEMA.as_uri()


def _models(folder: Path) -> tuple[dict[str, Any], list[Path]]:
    models: dict[str, Any] = {}
    projectors = []
    for path in _files(folder):
        try:
            header = read_header(path)
        except (GgufError, OSError) as error:
            print(f"  left out: {error}", file=sys.stderr)
            continue
        if header.architecture == PROJECTOR:
            projectors.append(path)
        else:
            models[_alias(path, models)] = _entry(path.relative_to(folder), header)
    return models, projectors


def _files(folder: Path) -> Iterator[Path]:
    return (p for p in sorted(folder.rglob("*.gguf")) if not _LATER_PART.search(p.name))


def _alias(path: Path, taken: dict[str, Any]) -> str:
    """From the file name: lower case, without the part number; a number where the name is not free."""
    stem = _FIRST_PART.sub("", path.stem).lower()
    base = re.sub(r"[^a-z0-9._+@-]+", "-", stem).strip("-.")[:120] or "model"
    names = itertools.chain([base], (f"{base}-{number}" for number in itertools.count(2)))
    return next(name for name in names if name not in taken and name not in RESERVED_ALIASES)


def _entry(path: Path, header: GgufHeader) -> dict[str, Any]:
    trained = header.context_length or DEFAULT_CONTEXT
    params: dict[str, Any] = {"n_ctx": min(trained, DEFAULT_CONTEXT)}
    if trained > DEFAULT_CONTEXT:
        params["_n_ctx"] = f"the model was trained with {trained}; more context takes more memory"
    params.update(kind_in_params(header))
    return {"model_path": path.as_posix(), "params": params}


def _complain(message: str) -> int:
    print(message, file=sys.stderr)
    return 1
