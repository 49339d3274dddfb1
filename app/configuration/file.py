"""Reading a configuration file: comments, overrides from the environment, key files, absolute paths."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from app.configuration.problems import (
    contradictions,
    json_problem,
    json_type,
    nearest,
    readable,
    section_of,
    shown,
)
from app.configuration.valid_part import without_mistakes
from app.core.config import ENV_PREFIX, ApiConfig, Config, ModelConfig, SystemConfig
from app.domain.config_types import Section


class ConfigError(Exception):
    """Every mistake of a configuration, each with its place. `usable` is what is left without them, if that
    can be told."""

    def __init__(self, source: str, problems: list[str], usable: Config | None = None) -> None:
        self.usable = usable
        self.source = source
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{source}: {count}\n" + "\n".join(f"  - {p}" for p in problems))


def load(path: Path, env: Mapping[str, str] = os.environ) -> Config:
    """Read, override from the environment, validate. Raises `ConfigError`."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        hint = "copy .example.config.json to it, or run: python run.py init --models-dir DIR"
        raise ConfigError(str(path), [f"there is no such file; {hint}"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), [f"cannot be read: {error}"]) from error
    return parse(text, path.resolve().parent, env, source=str(path))


def parse(text: str, folder: Path, env: Mapping[str, str], *, source: str = "configuration") -> Config:
    """As `load`, from a text whose relative paths are relative to `folder`."""
    try:
        tree = json.loads(text, object_pairs_hook=_Object)
    except (ValueError, RecursionError) as error:
        raise ConfigError(source, [json_problem(error)]) from error
    if not isinstance(tree, _Object):
        raise ConfigError(
            source, [f"must be a JSON object with api, system and models, not {json_type(tree)}"]
        )
    tree.pop("$schema", None)
    problems = _duplicates(tree)
    origins = _override(tree, env, problems)
    _read_key_files(tree, folder, problems)
    config = None
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        problems += readable(error, origins)
    problems += contradictions(tree)
    if config is None or problems:
        left = config or without_mistakes(tree)
        raise ConfigError(source, problems, left and _with_absolute_paths(left, folder))
    return _with_absolute_paths(config, folder)


def json_schema() -> dict[str, Any]:
    """The JSON schema that editors complete from; keys that begin with `_` are comments."""
    schema = Config.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "RouterModelCustom configuration"
    schema["properties"]["$schema"] = {"type": "string", "description": "where this schema lies"}
    for section in (schema, *schema["$defs"].values()):
        for part in (section, *section.get("properties", {}).values()):
            if part.get("type") == "object":
                part["patternProperties"] = {"^_": {"description": "a comment"}}
    schema["$defs"]["ApiKey"]["oneOf"] = [{"required": [key]} for key in ("key", "key_file")]
    del schema["$defs"]["ApiKey"]["required"]
    key_object = schema["$defs"]["ApiConfig"]["properties"]["api_keys"]["items"]
    schema["$defs"]["ApiConfig"]["properties"]["api_keys"]["items"] = {
        "anyOf": [{"type": "string"}, key_object]
    }
    return schema


# --- reading ---------------------------------------------------------------------------------------


class _Object(dict[str, Any]):
    """A JSON object without comments, which remembers the keys that were given twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        self.twice: list[str] = []
        super().__init__()
        for key, value in pairs:
            if key.startswith("_"):
                continue
            if key in self:
                self.twice.append(key)
            self[key] = value


def _duplicates(tree: _Object) -> list[str]:
    """Of a key given twice one would silently win. Not recursive: a file can be nested deeply."""
    problems = []
    left: list[tuple[str, object]] = [("", tree)]
    while left:
        place, value = left.pop()
        if isinstance(value, _Object):
            problems += [f"{place}{key}: stands twice in the same object; remove one" for key in value.twice]
            left += [(f"{place}{key}.", child) for key, child in value.items()]
        elif isinstance(value, list):
            left += [(f"{place}{index}.", child) for index, child in enumerate(value)]
    return problems


def _override(tree: dict[str, Any], env: Mapping[str, str], problems: list[str]) -> dict[str, str]:
    """Put the environment's values into the tree; which variable each place has its value from."""
    sections: dict[str, type[Section]] = {"api": ApiConfig, "system": SystemConfig}
    origins = {}
    for name, value in sorted(env.items()):
        section, separator, key = name.removeprefix(ENV_PREFIX).lower().partition("__")
        if not name.startswith(ENV_PREFIX) or not separator:
            continue
        if section not in sections or key not in sections[section].model_fields:
            known = [f"{s}__{k}".upper() for s, model in sections.items() for k in model.model_fields]
            near = nearest(name.removeprefix(ENV_PREFIX), known, ENV_PREFIX)
            problems.append(f"environment variable {name}: overrides nothing{near}")
            continue
        branch = tree.setdefault(section, {})
        if isinstance(branch, dict):
            branch[key] = _env_value(value)
            origins[f"{section}.{key}"] = name
    return origins


def _read_key_files(tree: dict[str, Any], folder: Path, problems: list[str]) -> None:
    """Put the keys that stand in files of their own into the tree."""
    listed = section_of(tree, "api").get("api_keys")
    for index, entry in enumerate(listed if isinstance(listed, list) else ()):
        name = entry.get("key_file") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name:
            continue
        if "key" in entry:
            problems.append(f"api.api_keys.{index}: has both key and key_file; remove one")
            continue
        entry["key"] = f"unread-{index}"  # one message is enough
        try:
            entry["key"] = (folder / Path(name).expanduser()).read_text(encoding="utf-8").strip()
        except (OSError, ValueError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or "it holds no key"
            problems.append(f"api.api_keys.{index}.key_file: {shown(name)} cannot be read: {reason}")


def _env_value(value: str) -> Any:
    """JSON where it is a list or an object, else the text: pydantic reads numbers and booleans from it."""
    if value.startswith(("[", "{")):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def _with_absolute_paths(config: Config, folder: Path) -> Config:
    def absolute(text: str, base: Path = folder) -> str:
        path = Path(text)
        with contextlib.suppress(RuntimeError):  # ~somebody who does not exist
            path = path.expanduser()
        return str((base / path).absolute())

    system = config.system
    base = Path(absolute(system.base_models_path)) if system.base_models_path else folder
    binary = system.llama_server_path
    if binary and (os.sep in binary or "/" in binary):  # a bare name is looked up in PATH
        binary = absolute(binary)
    return config.model_copy(
        update={
            "system": system.model_copy(
                update={
                    "llama_server_path": binary,
                    "base_models_path": str(base),
                    "cache_dir": absolute(system.cache_dir),
                    "log_dir": absolute(system.log_dir),
                }
            ),
            "models": {
                alias: _model_with_absolute_paths(m, base, absolute) for alias, m in config.models.items()
            },
        }
    )


def _model_with_absolute_paths(model: ModelConfig, base: Path, absolute: Any) -> ModelConfig:
    params = model.params
    if params.mmproj:
        params = params.model_copy(update={"mmproj": absolute(params.mmproj, base)})
    return model.model_copy(update={"model_path": absolute(model.model_path, base), "params": params})
