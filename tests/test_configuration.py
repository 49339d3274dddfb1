"""Every key of the configuration, changed one at a time on a running router: applied, or named in the log."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.config_watcher import reload
from app.configuration import file as config_file
from app.configuration.reloadable_keys import Configuration
from app.core.config import ApiConfig, Config, ModelConfig, SystemConfig
from app.domain.config_types import Heartbeats
from app.domain.errors import ModelNotFound
from app.domain.model_spec import ModelParams, ModelSpec
from app.domain.priority import Priority
from app.domain.status import ModelKind
from app.domain.units import MIB
from app.llama.command_line import BinaryInfo
from app.llama.launcher import LlamaLauncher
from app.main import RouterApp, create_app
from app.observability import router_log
from tests.fakes import FakeProbe, footprint

Tree = dict[str, Any]


class Router:
    """One that runs, with a configuration file that the test changes. No model is ever loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tree: Tree = {
            "api": {"host": "127.0.0.1"},
            "system": {"log_dir": str(path.parent / "logs"), "cache_dir": str(path.parent / "cache")},
            "models": {name: {"model_path": f"{name}.gguf"} for name in "ab"},
        }
        self._write()
        binary = BinaryInfo(Path("llama-server"), "1", frozenset({"--slot-save-path"}), "1")
        self.app: RouterApp = create_app(
            config_file.load(path, {}), probe=FakeProbe(10_000), binary=binary, config_path=path
        )

    @property
    def configuration(self) -> Configuration:
        found: Configuration = self.app.state.configuration
        return found

    @property
    def services(self) -> Any:
        return self.app.state.services

    @property
    def launcher(self) -> LlamaLauncher:
        found: LlamaLauncher = self.services.launcher
        return found

    def spec(self, alias: str = "a") -> ModelSpec:
        found: ModelSpec = self.services.manager.instances[alias].spec
        return found

    def need_mb(self) -> int:
        """Of a file of 100 MB, by what the manager believes now."""
        instance = self.services.manager.instances["a"]
        found = footprint(100)
        instance.footprint = replace(found, with_gpu=replace(found.with_gpu, exact=False))
        need: int = self.services.manager.inspection.need_of(instance).mb
        return need

    async def change(self, section: str, key: str, value: object) -> None:
        self.tree[section] = {**self.tree[section], key: value}
        await self.reload()

    async def reload(self) -> None:
        self._write()
        await reload(self.configuration, self.path)

    async def status(self, method: str, path: str, **headers: str) -> httpx.Response:
        transport = httpx.ASGITransport(self.app)
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, headers=headers)

    def _write(self) -> None:
        self.path.write_text(json.dumps(self.tree), encoding="utf-8")


@pytest.fixture
async def router(tmp_path: Path) -> AsyncIterator[Router]:
    made = Router(tmp_path / "config.json")
    async with made.app.router.lifespan_context(made.app):
        await made.services.tracker.refresh()
        yield made


# --- api and system ---------------------------------------------------------------------------------

ORIGIN = "https://page.example"


async def _refused_without_a_key(router: Router) -> bool:
    return (await router.status("GET", "/v1/models")).status_code == 401


async def _metrics_need_a_key(router: Router) -> bool:
    await router.change("api", "api_keys", ["secret"])
    return (await router.status("GET", "/metrics")).status_code == 401


async def _foreign_host_may_ask(router: Router) -> bool:
    return (await router.status("GET", "/v1/models", host="ai.example")).status_code == 200


async def _page_may_read(router: Router) -> bool:
    answer = await router.status("GET", "/v1/models", origin=ORIGIN)
    return bool(answer.headers.get("access-control-allow-origin") == ORIGIN)


async def _body_is_too_large(router: Router) -> bool:
    answer = await router.status("POST", "/v1/completions", content_length=str(2**20))
    return answer.status_code == 413


def _default(router: Any) -> str | None:
    """Who serves a name that is none."""
    try:
        found: str = router.services.manager.fleet.serving("gpt-4", {ModelKind.CHAT}).alias
    except ModelNotFound:
        return None
    return found


def _spec(field: str, value: object) -> Callable[[Router], bool]:
    """That every model's spec has it: the next process is started with it."""
    return lambda router: getattr(router.spec(), field) == value


NAMED: Any = None
"""Not taken while the router runs; the log says so."""

APPLIED: dict[str, tuple[object, Any]] = {
    "api.host": ("127.0.0.2", NAMED),
    "api.port": (9, NAMED),
    "api.ollama_port": (9, NAMED),
    "api.api_keys": (["secret"], _refused_without_a_key),
    "api.allowed_hosts": (["ai.example"], _foreign_host_may_ask),
    "api.public_metrics": (False, _metrics_need_a_key),
    "api.cors_allow_origins": ([ORIGIN], _page_may_read),
    "api.list_aliases": (False, lambda r: not r.services.config.api.list_aliases),
    "api.max_body_mb": (0.5, _body_is_too_large),
    "api.max_memory_mb": (7, lambda r: r.app.gateway.memory.limit == 7 * MIB),
    "api.stream_heartbeats": ("off", lambda r: r.services.config.api.stream_heartbeats is Heartbeats.OFF),
    "api.stored_responses_mb": (7, lambda r: r.services.stored._limit_bytes == 7 * 2**20),
    "system.llama_server_path": ("/elsewhere/llama-server", NAMED),
    "system.cache_dir": ("elsewhere", NAMED),
    "system.log_dir": ("elsewhere", NAMED),
    "system.base_models_path": ("/models", _spec("path", Path("/models/a.gguf"))),
    "system.max_concurrent_models": (7, lambda r: r.services.manager.scheduler.limits.max_models == 7),
    "system.preload_models": (["b"], lambda r: r.services.manager.instances["b"].lifecycle.preload),
    "system.enable_idle_timeout": (False, _spec("idle_timeout_s", None)),
    "system.idle_timeout_sec": (7, _spec("idle_timeout_s", 7)),
    "system.request_timeout_sec": (7, _spec("request_timeout_s", 7)),
    "system.queue_timeout_sec": (7, lambda r: r.services.config.system.queue_timeout_sec == 7),
    "system.gpu_devices": ([3], _spec("gpu_devices", (3,))),
    "system.parallel_requests": (7, lambda r: r.services.manager.instances["a"].queue.slots == 7),
    "system.cpu_threads": (7, _spec("cpu_threads", 7)),
    "system.flash_attention": ("off", _spec("flash_attention", "off")),
    "system.max_queue_size_per_model": (
        7,
        lambda r: r.services.manager.instances["a"].queue.max_waiting == 7,
    ),
    "system.vram_multiplier": (3, lambda r: r.need_mb() >= 300),
    "system.default_model": ("a", lambda r: _default(r) == "a"),
    "system.foreign_wait_sec": (7, lambda r: r.services.manager.scheduler.limits.foreign_wait_s == 7),
    "system.min_free_vram_mb": (7, lambda r: r.services.tracker.ledger.devices()[0].min_free_mb == 7),
    "system.load_timeout_sec": (7, lambda r: r.launcher.load_timeout_s == 7),
    "system.load_max_retries": (
        7,
        lambda r: r.services.manager.instances["a"].lifecycle.restarts.limits.load_retries == 7,
    ),
    "system.health_check_interval_sec": (7, lambda r: r.services.health._pause_s() == 7),
    "system.max_restarts": (
        7,
        lambda r: r.services.manager.instances["a"].lifecycle.restarts.limits.max_restarts == 7,
    ),
    "system.restart_window_sec": (
        7,
        lambda r: r.services.manager.instances["a"].lifecycle.restarts.limits.window_s == 7,
    ),
    "system.crash_quarantine_sec": (
        7,
        lambda r: r.services.manager.instances["a"].lifecycle.restarts.limits.refuse_s == 7,
    ),
    "system.max_swap_wait_sec": (7, lambda r: r.services.manager.scheduler.limits.max_swap_wait_s == 7),
    "system.aging_sec": (7, lambda r: _key_of_a_low_one(r) == pytest.approx(14)),
    "system.drain_timeout_sec": (7, lambda r: r.services.config.system.drain_timeout_sec == 7),
    "system.first_port": (23456, lambda r: r.launcher._ports.first == 23456),
    "system.prompt_cache_mb": (7, _spec("prompt_cache_mb", 7)),
    "system.keep_cache": ("ram", _spec("keep_cache", "ram")),
    "system.cache_max_gb": (7, lambda r: r.services.manager._kv_cache._limit_bytes == 7e9),
    "system.keep_cache_timeout_sec": (7, lambda r: r.services.manager._kv_cache._timeout_s == 7),
    "system.log_level": ("debug", lambda r: logging.getLogger().level == logging.DEBUG),
    "system.log_format": ("json", lambda r: _formatter() is router_log.JsonFormatter),
    "system.watch_config": (True, lambda r: r.configuration.current.system.watch_config),
}


def _key_of_a_low_one(router: Router) -> float:
    ticket = router.services.manager.ticket(Priority.LOW)
    return float(ticket.key - ticket.arrived)


def _formatter() -> type[logging.Formatter | None]:
    return type(logging.getLogger().handlers[0].formatter)


def test_every_key_of_the_schema_is_here() -> None:
    keys = [f"api.{key}" for key in ApiConfig.model_fields]
    keys += [f"system.{key}" for key in SystemConfig.model_fields]
    assert sorted(APPLIED) == sorted(keys)
    assert sorted(MODEL) == sorted(ModelConfig.model_fields)
    assert sorted(PARAMS) == sorted(ModelParams.model_fields)


@pytest.fixture
def own_log() -> Any:
    """What the command line does with the log, undone."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield router_log
    root.handlers[:] = before
    root.setLevel(level)


@pytest.mark.parametrize("key", sorted(APPLIED))
async def test_a_changed_key_is_applied_or_named(
    router: Router, key: str, caplog: pytest.LogCaptureFixture, own_log: Any
) -> None:
    value, applied = APPLIED[key]
    router.configuration.subscribe(own_log.TAKES, own_log.apply)
    section, _, name = key.partition(".")
    before = getattr(getattr(router.configuration.current, section), name)
    assert applied is NAMED or not await _is(applied, router), "the value of before would pass, too"
    caplog.clear()
    await router.change(section, name, value)
    named = f"{key} has changed: restart the router for it to take effect" in caplog.text
    assert named is (applied is NAMED)
    if named:
        assert getattr(getattr(router.configuration.current, section), name) == before, "it says what is"
    else:
        assert await _is(applied, router)


async def _is(applied: Any, router: Router) -> bool:
    found = applied(router)
    return bool(found if isinstance(found, bool) or not hasattr(found, "__await__") else await found)


# --- models -----------------------------------------------------------------------------------------

PARAMS: dict[str, object] = {
    "n_gpu_layers": 7,
    "n_ctx": 7,
    "embedding": True,
    "type_k": "q8_0",
    "type_v": "q8_0",
    "pooling": "cls",
    "n_batch": 7,
    "n_ubatch": 7,
    "mmproj": "eyes.gguf",
    "chat_template": "chatml",
    "rerank": True,
}
MODEL: dict[str, object] = {
    "model_path": "c.gguf",
    "aliases": ["c"],
    "pinned": True,
    "idle_timeout_sec": 7,
    "parallel_requests": 7,
    "request_timeout_sec": 0,
    "priority": "high",
    "vram_mb": 7,
    "gpu_devices": [3],
    "keep_cache": "ram",
    "params": {"n_ctx": 7},
    "extra_args": ["--mlock"],
    "env": {"A": "1"},
}


@pytest.mark.parametrize(
    "change",
    [*({key: value} for key, value in MODEL.items()), *({"params": {k: v}} for k, v in PARAMS.items())],
    ids=[*MODEL, *(f"params.{key}" for key in PARAMS)],
)
async def test_a_changed_key_of_a_model_is_what_its_next_process_gets(
    router: Router, change: Tree, caplog: pytest.LogCaptureFixture
) -> None:
    before, other = router.spec(), router.spec("b")
    await router.change("models", "a", {"model_path": "a.gguf", **change})
    assert router.spec() != before
    assert router.spec() == router.configuration.current.spec("a")
    assert router.spec("b") is other
    assert "restart the router" not in caplog.text


# --- what is taken, and what stays --------------------------------------------------------------------


async def test_what_nobody_takes_is_told_at_each_reload_until_the_restart(
    router: Router, caplog: pytest.LogCaptureFixture
) -> None:
    await router.change("api", "port", 9)
    await router.change("system", "idle_timeout_sec", 7)
    assert caplog.text.count("api.port has changed") == 2
    assert router.spec().idle_timeout_s == 7


async def test_models_that_a_reload_adds_to_the_preloads_are_loaded(router: Router) -> None:
    await router.change("system", "preload_models", ["*"])
    instances = router.services.manager.instances
    assert instances["a"].lifecycle.preload
    router.tree["models"]["c"] = {"model_path": "c.gguf"}
    await router.reload()
    assert instances["c"].lifecycle.preload


async def test_no_change_is_taken_while_the_router_stops(router: Router) -> None:
    router.configuration.close()
    await router.change("system", "idle_timeout_sec", 7)
    assert router.spec().idle_timeout_s == 300


def test_a_key_that_does_not_exist_cannot_be_taken() -> None:
    with pytest.raises(ValueError, match=r"system\.idle_time$"):
        Configuration(Config()).subscribe(["system.idle_time"])
