"""The configuration as one validated, frozen tree. `app/configuration/file.py` reads it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from app.domain.addresses_and_origins import (
    checked_host_name,
    checked_listening,
    checked_origin,
    is_loopback,
    listening_addresses,
)
from app.domain.config_types import (
    Count,
    Device,
    Heartbeats,
    Number,
    PathText,
    Section,
    Size,
    Slots,
    Text,
    Whole,
    either,
)
from app.domain.model_spec import KeepCache, ModelParams, ModelSpec
from app.domain.priority import Priority
from app.domain.router_owned_flags import not_owned_flag, not_owned_variable

ENV_PREFIX = "ROUTER_"

RESERVED_ALIASES = frozenset({"status", "failed", "load", "eject"})
RESERVED_LAST_PARTS = RESERVED_ALIASES | {"logs", "plan", "reset", "stream"}


def _key_object(value: object) -> object:
    """A plain string is somebody's only key, and may do everything; an object says what it may."""
    return {"key": value, "admin": True} if isinstance(value, str) else value


def _can_be_sent(key: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[!-~]+", key.get_secret_value()):
        raise ValueError("must be printable ASCII without spaces: nothing else fits into a header")
    return key


class ApiKey(Section):
    """A client's key. Written as a plain string it has no name, no ceiling and may manage."""

    key: Annotated[SecretStr, AfterValidator(_can_be_sent)] = Field(description="the secret itself")
    key_file: PathText | None = Field(None, description="instead of `key`: a file that holds it")
    name: str = Field("", description="shown in the access log")
    max_priority: Priority = Field(Priority.HIGH, description="a higher wish is lowered to this")
    admin: bool = Field(False, description="may use management endpoints and /upstream")


class ApiConfig(Section):
    host: Annotated[str, AfterValidator(checked_listening)] = Field(
        "0.0.0.0", description="listening address, or several with commas; `::`: IPv6 and IPv4"
    )
    port: Whole = Field(8000, ge=1, le=65535, description="listening port")
    ollama_port: Whole | None = Field(
        None, ge=1, le=65535, description="a second port, for programs that know only Ollama's, 11434"
    )
    api_keys: tuple[Annotated[ApiKey, BeforeValidator(_key_object)], ...] = Field(
        (),
        description='each a string, or `{"key" or "key_file", "name", "max_priority", "admin"}`; '
        "empty: no authentication",
    )
    allowed_hosts: tuple[Annotated[str, AfterValidator(checked_host_name)], ...] = Field(
        (), description='extra names accepted in `Host`; `["*"]` switches the guard off'
    )
    public_metrics: bool = Field(True, description="`/metrics` without a key")
    cors_allow_origins: tuple[Annotated[str, AfterValidator(checked_origin)], ...] = Field(
        (),
        description="origins of web pages that may call the API; `localhost`: every page of this machine, on "
        "any port; `apps`: desktop apps (`app:`, `file:`, `tauri:`, `vscode-webview:`, `vscode-file:`)",
    )
    list_aliases: bool = Field(True, description="`aliases` are entries of `/v1/models` too")
    max_body_mb: Number = Field(64, gt=0, description="larger bodies get 413")
    max_memory_mb: Count | None = Field(
        None,
        description="for all bodies that are arriving, waiting or being answered; over it 503 `overloaded`; "
        "default: a quarter of the memory, at most 2048",
    )
    stream_heartbeats: Heartbeats = Field(
        Heartbeats.BLANK,
        description="what a stream that waits gets every 5 s: `comments` say to people what it waits for, "
        "`blank` are empty lines, `off`: nothing, not even the head",
    )
    stored_responses_mb: Whole = Field(
        64,
        ge=0,
        description="memory for answers of `/v1/responses` that later requests refer to; 0: none is kept",
    )

    @property
    def ports(self) -> dict[str, int]:
        """By the name of their key."""
        second = {} if self.ollama_port is None else {"ollama_port": self.ollama_port}
        return {"port": self.port, **second}

    @property
    def addresses(self) -> tuple[str, ...]:
        """All that `host` stands for."""
        return listening_addresses(self.host)


class SystemConfig(Section):
    llama_server_path: PathText | None = Field(
        None, description="the llama-server binary; default: that in `PATH`, then what `make demo` installed"
    )
    base_models_path: PathText | None = Field(None, description="folder for relative `model_path`")
    max_concurrent_models: Whole = Field(3, ge=1, description="models loaded at the same time")
    preload_models: tuple[str, ...] = Field((), description='aliases to load at start; `["*"]`: all that fit')
    default_model: str | None = Field(
        None, description="serves requests without `model`, and those that name a model that is not there"
    )
    enable_idle_timeout: bool = Field(True, description="unload models that nobody uses")
    idle_timeout_sec: Whole = Field(300, ge=1, description="counted from the end of the last request")
    request_timeout_sec: Whole = Field(
        120, ge=0, description="how long a request's slot may stand still; 0: for ever"
    )
    queue_timeout_sec: Whole = Field(300, ge=1, description="longest wait in the queue, loading included")
    gpu_devices: tuple[Device, ...] | None = Field(
        None, description="indices or UUIDs usable for models; default: every visible device"
    )
    parallel_requests: Slots = Field(1, description="requests that one model serves at the same time")
    cpu_threads: Whole = Field(8, ge=1, description="threads of each llama-server")
    flash_attention: Literal["on", "off", "auto"] = Field("on", description="flash attention")
    max_queue_size_per_model: Whole = Field(
        500, ge=1, description="waiting requests; the next one is rejected"
    )
    vram_multiplier: Number = Field(1.1, ge=1, le=10, description="safety factor on the memory estimate")
    min_free_vram_mb: Annotated[
        Size | dict[str, Size],
        either('must be a whole number from 0 on, or an object by device, as {"0": 1000}'),
    ] = Field(
        500, description='kept free on each device, or an object by device: `{"0": 1000, "host": 2000}`'
    )
    foreign_wait_sec: Number = Field(
        10, ge=0, description="longest wait for memory that other programs hold before a request is refused"
    )
    load_timeout_sec: Whole = Field(180, ge=1, description="for a load without any sign of progress")
    load_max_retries: Whole = Field(2, ge=0, description="for loads that may heal (memory, port, time-out)")
    health_check_interval_sec: Whole = Field(30, ge=1, description="between two probes of a ready model")
    max_restarts: Whole = Field(3, ge=0, description="more crashes than this in the window: `failed`")
    restart_window_sec: Whole = Field(600, ge=1, description="window of `max_restarts`")
    crash_quarantine_sec: Whole = Field(
        600, ge=1, description="how long a request that crashed llama-server twice is refused"
    )
    max_swap_wait_sec: Annotated[
        Annotated[Number, Field(ge=0)] | Literal["auto"], either('must be a number from 0 on, or "auto"')
    ] = Field(
        "auto",
        description="longest time for which the users of loaded models hold back another model whose turn it "
        'is; "auto": twice what a swap takes, at least 10',
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


class ModelConfig(Section):
    model_path: PathText = Field(description="GGUF file (first part of a split model)")
    aliases: tuple[str, ...] = Field((), description="other names for the same model")
    pinned: bool = Field(False, description="never evicted, never idle-unloaded")
    idle_timeout_sec: Count | None = Field(None, description="default: the system's")
    parallel_requests: Slots | None = Field(None, description="default: the system's")
    request_timeout_sec: Whole | None = Field(None, ge=0, description="default: the system's")
    priority: Priority = Field(Priority.NORMAL, description="of requests without the header")
    vram_mb: Size | None = Field(None, description="declared need; overrides the estimate")
    gpu_devices: tuple[Device, ...] | None = Field(None, description="default: the system's")
    keep_cache: KeepCache | None = Field(None, description="default: the system's")
    params: ModelParams = Field(default_factory=ModelParams, description="how the model is run")
    extra_args: tuple[Annotated[Text, AfterValidator(not_owned_flag)], ...] = Field(
        (), description="appended to the command line"
    )
    env: dict[Annotated[Text, AfterValidator(not_owned_variable)], Text] = Field(
        default_factory=dict, description="environment of the process"
    )


SPEC_KEYS = (
    "models",
    "system.base_models_path",
    "system.cpu_threads",
    "system.enable_idle_timeout",
    "system.flash_attention",
    "system.gpu_devices",
    "system.idle_timeout_sec",
    "system.keep_cache",
    "system.parallel_requests",
    "system.prompt_cache_mb",
    "system.request_timeout_sec",
)
"""Those that end in a model's spec."""


class Config(Section):
    """The whole file. Made by `load` or `parse`: these also check names, and make paths absolute."""

    api: ApiConfig = Field(default_factory=ApiConfig)
    system: SystemConfig = Field(default_factory=SystemConfig)
    models: dict[str, ModelConfig] = Field(default_factory=dict)

    def spec(self, alias: str) -> ModelSpec:
        model, system = self.models[alias], self.system
        idle, timeout = model.idle_timeout_sec or system.idle_timeout_sec, model.request_timeout_sec
        return ModelSpec(
            alias=alias,
            aliases=model.aliases,
            path=Path(model.model_path),
            kind=model.params.kind,
            pinned=model.pinned,
            idle_timeout_s=idle if system.enable_idle_timeout and not model.pinned else None,
            request_timeout_s=timeout if timeout is not None else system.request_timeout_sec,
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
        if not self.api.api_keys and not all(map(is_loopback, self.api.addresses)):
            found.append(
                f"api.host is {self.api.host} and api.api_keys is empty: everyone on the network can use "
                "this router. Set api.api_keys, or api.host to 127.0.0.1."
            )
        if self.api.api_keys and not any(key.admin for key in self.api.api_keys):
            found.append(
                "no key in api.api_keys is an admin: nobody may load, eject or reset a model or read logs. "
                'Give one of them "admin": true.'
            )
        pinned, places = sum(m.pinned for m in self.models.values()), self.system.max_concurrent_models
        if places <= pinned < len(self.models):
            found.append(
                f"{pinned} pinned models fill system.max_concurrent_models ({places}): "
                "once they are loaded no other model can be. Raise it or pin fewer."
            )
        if no_device := [a for a, s in self.specs().items() if s.gpu_devices == () and not s.cpu_only]:
            found.append(
                f"gpu_devices is empty for {', '.join(no_device)}: on a machine with a GPU these models have "
                "no place. For the CPU set params.n_gpu_layers to -1."
            )
        return found
