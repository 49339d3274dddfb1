"""The configuration as one validated, frozen tree. `config_file` reads it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
)

from app.domain.status import ModelKind, Priority

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
        None, description="the llama-server binary; default: that in `PATH`, then what `make demo` installed"
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


def _kind(params: ModelParams) -> ModelKind:
    if params.rerank:
        return ModelKind.RERANK
    return ModelKind.EMBEDDING if params.embedding else ModelKind.CHAT


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")
