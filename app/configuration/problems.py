"""What is wrong with a configuration, in words that say where it stands and what was probably meant."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from app.core.config import (
    RESERVED_ALIASES,
    RESERVED_LAST_PARTS,
    ApiConfig,
    ApiKey,
    Config,
    ModelConfig,
    SystemConfig,
)
from app.domain.config_types import Section
from app.domain.model_names import MAX_NAME
from app.domain.model_spec import QUANTISED, ModelParams

# These look at the tree as it was read, so that they are reported together with everything else. What has a
# wrong type is passed over: that is somebody else's message.


def section_of(tree: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = tree.get(name)
    return found if isinstance(found, dict) else {}


def _texts(section: Mapping[str, Any], key: str) -> list[str]:
    found = section.get(key)
    return [text for text in found if isinstance(text, str)] if isinstance(found, list) else []


def _names(tree: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(name, its place, the model that it belongs to), aliases first met first."""
    models = section_of(tree, "models")
    for alias in models:
        yield alias, f"models.{alias}", alias
        for name in _texts(section_of(models, alias), "aliases"):
            yield name, f"models.{alias}.aliases", alias


def contradictions(tree: Mapping[str, Any]) -> list[str]:
    """Mistakes that no single key shows."""
    checks = (_alias_problems, _reference_problems, _key_problems, _attention_problems, _port_problems)
    return [problem for check in checks for problem in check(tree)]


def _alias_problems(tree: Mapping[str, Any]) -> Iterator[str]:
    owner: dict[str, str] = {}
    for name, place, alias in _names(tree):
        if reason := _bad_alias(name):
            yield f"{place}: {shown(name)} {reason}"
        if name in owner:
            yield f"{place}: {shown(name)} is already a name of models.{owner[name]}"
        owner[name] = alias


def _bad_alias(name: str) -> str | None:
    parts = name.split("/")
    if not (1 <= len(name) <= MAX_NAME and name.isprintable() and name == name.strip() and "," not in name):
        return f"must be 1 to {MAX_NAME} printable characters, without a comma and without blanks at its ends"
    if any(part in ("", ".", "..") for part in parts):
        return "must not have an empty, '.' or '..' part between slashes"
    if name in RESERVED_ALIASES or (len(parts) > 1 and parts[-1] in RESERVED_LAST_PARTS):
        return f"is reserved: it is part of a URL of the router ({', '.join(sorted(RESERVED_LAST_PARTS))})"
    return None


def _reference_problems(tree: Mapping[str, Any]) -> Iterator[str]:
    names = {name for name, _, _ in _names(tree)}
    system = section_of(tree, "system")
    default = system.get("default_model")
    wanted = [("preload_models", name) for name in _texts(system, "preload_models") if name != "*"]
    wanted += [("default_model", default)] if isinstance(default, str) else []
    for key, name in wanted:
        if name not in names:
            yield f"system.{key}: there is no model {shown(name)}{nearest(name, names)}"


def _key_problems(tree: Mapping[str, Any]) -> Iterator[str]:
    """The same key twice: only one of the two entries could ever be meant. The key itself is never shown."""
    listed = section_of(tree, "api").get("api_keys")
    seen: dict[object, int] = {}
    for index, entry in enumerate(listed if isinstance(listed, list) else ()):
        key = entry.get("key") if isinstance(entry, dict) else entry
        if isinstance(key, str) and seen.setdefault(key, index) != index:
            yield f"api.api_keys.{index}: is the same key as api.api_keys.{seen[key]}; remove one"


def _attention_problems(tree: Mapping[str, Any]) -> Iterator[str]:
    if section_of(tree, "system").get("flash_attention") != "off":
        return
    models = section_of(tree, "models")
    for alias in models:
        type_v = section_of(section_of(models, alias), "params").get("type_v")
        if isinstance(type_v, str) and type_v in QUANTISED:
            yield (
                f"models.{alias}.params.type_v: {type_v} needs flash attention; set "
                'system.flash_attention to "on" or type_v to "f16"'
            )


def _port_problems(tree: Mapping[str, Any]) -> Iterator[str]:
    api = section_of(tree, "api")
    if "ollama_port" in api and api["ollama_port"] == api.get("port", ApiConfig().port):
        yield "api.ollama_port: is api.port, which serves Ollama's programs too; remove it"


_PLAIN_WORDS = {
    "missing": "is missing",
    "tuple_type": "must be a list",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "dict_type": "must be an object",
    "string_type": "must be a text",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "string_too_short": "must not be empty",
}


def readable(error: ValidationError, origins: Mapping[str, str]) -> list[str]:
    """A line each. `origins` names the environment variable that a place got its value from."""
    return [_problem(detail, origins) for detail in error.errors()]


def _problem(detail: ErrorDetails, origins: Mapping[str, str]) -> str:
    parts, kind = detail["loc"], detail["type"]
    if parts[-1:] == ("[key]",) and kind != "extra_forbidden":  # pydantic's step, none of the file
        parts = parts[:-1]
    place = ".".join(map(str, parts)) or "configuration"
    if kind == "extra_forbidden":
        return f"{place}: unknown key{nearest(str(parts[-1]), _known_keys(parts[:-1]))}"
    message = _PLAIN_WORDS.get(kind) or detail["msg"].removeprefix("Value error, ")
    message = message.replace("Input should", "must")
    secret = parts[:2] == ("api", "api_keys")
    value = "" if secret or kind in ("missing", "value_error") else f" (it is {shown(detail['input'])})"
    variable = origins.get(".".join(map(str, parts[:2])))
    origin = f"; its value comes from the environment variable {variable}" if variable else ""
    return f"{place}: {message}{value}{origin}"


def _known_keys(place: tuple[int | str, ...]) -> list[str]:
    sections: dict[tuple[int | str, ...], type[Section]] = {
        (): Config,
        ("api",): ApiConfig,
        ("system",): SystemConfig,
    }
    if place in sections:
        return list(sections[place].model_fields)
    if place[0] == "api":
        return list(ApiKey.model_fields)
    return list((ModelParams if len(place) > 2 else ModelConfig).model_fields)


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """The known name that was probably meant; the beginning of one counts more than likeness."""
    names = list(known)
    begun = [k for k in names if len(name) > 3 and k.startswith(name)]
    close = begun or difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean '{prefix}{close[0]}'?" if close else ""


def shown(value: object) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def json_type(value: object) -> str:
    names = {list: "an array", str: "a string", int: "a number", float: "a number", bool: "a boolean"}
    return names.get(type(value), "null")


def json_problem(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}"
    if isinstance(error, RecursionError):
        return "not valid JSON: nested too deeply"
    return f"not valid JSON: {error}"
