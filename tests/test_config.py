"""The configuration: what a file may say, what it means, and how every mistake is told."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.configuration.file import ConfigError, json_schema, load, parse
from app.core.config import ApiConfig, ApiKey, Config, ModelConfig, SystemConfig
from app.domain.config_types import Heartbeats
from app.domain.model_spec import ModelParams
from app.domain.priority import Priority
from app.domain.router_owned_flags import OWNED_FLAGS
from app.domain.status import ModelKind

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / ".example.config.json"
SCHEMA = ROOT / "docs" / "config.schema.json"
FOLDER = Path("/configured") if os.name == "posix" else Path("C:/configured")

REQUIRED = "required"
UNSET = None
DEFAULTS: dict[type, dict[str, Any]] = {  # the tables of the contract's section 2
    ApiConfig: {
        "host": "0.0.0.0",
        "port": 8000,
        "ollama_port": UNSET,
        "api_keys": (),
        "allowed_hosts": (),
        "public_metrics": True,
        "cors_allow_origins": (),
        "list_aliases": True,
        "max_body_mb": 64,
        "max_memory_mb": UNSET,
        "stream_heartbeats": Heartbeats.BLANK,
        "stored_responses_mb": 64,
    },
    ApiKey: {
        "key": REQUIRED,
        "key_file": UNSET,
        "name": "",
        "max_priority": Priority.HIGH,
        "admin": False,
    },
    SystemConfig: {
        "llama_server_path": UNSET,
        "base_models_path": UNSET,
        "max_concurrent_models": 3,
        "preload_models": (),
        "default_model": UNSET,
        "enable_idle_timeout": True,
        "idle_timeout_sec": 300,
        "request_timeout_sec": 120,
        "queue_timeout_sec": 300,
        "gpu_devices": UNSET,
        "parallel_requests": 1,
        "cpu_threads": 8,
        "flash_attention": "on",
        "max_queue_size_per_model": 500,
        "vram_multiplier": 1.1,
        "min_free_vram_mb": 500,
        "foreign_wait_sec": 10,
        "load_timeout_sec": 180,
        "load_max_retries": 2,
        "health_check_interval_sec": 30,
        "max_restarts": 3,
        "restart_window_sec": 600,
        "crash_quarantine_sec": 600,
        "max_swap_wait_sec": "auto",
        "aging_sec": 30,
        "drain_timeout_sec": 30,
        "first_port": 8085,
        "prompt_cache_mb": 1024,
        "keep_cache": "off",
        "cache_dir": "cache",
        "cache_max_gb": 4,
        "keep_cache_timeout_sec": 10,
        "log_dir": "logs",
        "log_level": "info",
        "log_format": "text",
        "watch_config": False,
    },
    ModelConfig: {
        "model_path": REQUIRED,
        "aliases": (),
        "pinned": False,
        "idle_timeout_sec": UNSET,
        "parallel_requests": UNSET,
        "request_timeout_sec": UNSET,
        "priority": Priority.NORMAL,
        "vram_mb": UNSET,
        "gpu_devices": UNSET,
        "keep_cache": UNSET,
        "params": ModelParams(),
        "extra_args": (),
        "env": {},
    },
    ModelParams: {
        "n_gpu_layers": 99,
        "n_ctx": 4096,
        "embedding": False,
        "type_k": "f16",
        "type_v": "f16",
        "pooling": UNSET,
        "n_batch": UNSET,
        "n_ubatch": UNSET,
        "mmproj": UNSET,
        "chat_template": UNSET,
        "rerank": False,
    },
}


def read(tree: object, env: Mapping[str, str] | None = None) -> Config:
    return parse(tree if isinstance(tree, str) else json.dumps(tree), FOLDER, env or {})


def problems(tree: object, env: Mapping[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(tree, env)
    return caught.value.problems


def problem(tree: object, env: Mapping[str, str] | None = None) -> str:
    (only,) = problems(tree, env)
    return only


def model(**fields: Any) -> dict[str, Any]:
    return {"models": {"m": {"model_path": "m.gguf", **fields}}}


@pytest.mark.parametrize("value", ["often", -1, True, {"x": -1}, None])
@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("max_swap_wait_sec", 'must be a number from 0 on, or "auto"'),
        ("min_free_vram_mb", 'must be a whole number from 0 on, or an object by device, as {"0": 1000}'),
    ],
)
def test_a_value_of_several_types_is_told_once_and_at_its_place(key: str, told: str, value: object) -> None:
    line = problem(model() | {"system": {key: value}})
    assert line == f"system.{key}: {told} (it is {json.dumps(value)})"


# --- what a file may say


@pytest.mark.parametrize("section", DEFAULTS, ids=lambda s: s.__name__)
def test_keys_and_defaults_are_those_of_the_contract(section: type) -> None:
    fields = section.model_fields  # type: ignore[attr-defined]
    found = {
        name: REQUIRED if field.is_required() else field.get_default(call_default_factory=True)
        for name, field in fields.items()
    }
    assert found == DEFAULTS[section]


def test_every_key_is_described() -> None:
    for section in DEFAULTS:
        for name, field in section.model_fields.items():  # type: ignore[attr-defined]
            assert field.description, f"{section.__name__}.{name}"


def test_an_empty_object_is_a_configuration() -> None:
    config = read({})
    assert config.models == {}
    assert config.system.base_models_path == str(FOLDER)


def test_comments_and_the_schema_are_passed_over() -> None:
    tree = {
        "$schema": "docs/config.schema.json",
        "_": ["anything", {"at": "all"}],
        "api": {"_port": "a comment", "port": 9000},
        "models": {"_off": {"nonsense": 1}, "m": {"model_path": "m", "params": {"_n": 1}, "env": {"_A": 2}}},
    }
    config = read(tree)
    assert config.api.port == 9000
    assert list(config.models) == ["m"]


def test_schema_is_accepted_on_top_only() -> None:
    assert problem({"api": {"$schema": "x"}}).startswith("api.$schema: unknown key")


def test_the_example_loads() -> None:
    config = load(EXAMPLE, env={})
    assert config.warnings() == []
    assert config.preload() == ("chat",)


def test_the_example_names_the_published_schema_and_agrees_with_it() -> None:
    example = json.loads(EXAMPLE.read_text(encoding="utf-8"))
    assert (ROOT / example["$schema"]).samefile(SCHEMA)
    jsonschema.Draft202012Validator.check_schema(json_schema())
    jsonschema.validate(example, json_schema(), jsonschema.Draft202012Validator)


def test_only_two_paths_of_the_example_must_be_edited() -> None:
    assert EXAMPLE.read_text(encoding="utf-8").split('"_embed"')[0].count('"/path/to/') == 2


def test_the_published_schema_is_up_to_date() -> None:
    published = json.loads(SCHEMA.read_text(encoding="utf-8"))
    assert published == json_schema(), "run: python run.py check --schema > docs/config.schema.json"


@pytest.mark.parametrize(
    "tree",
    [
        {"api": {"prt": 1}},
        {"api": {"port": 0}},
        {"system": {"flash_attention": "maybe"}},
        {"system": {"gpu_devices": [-1]}},
        {"models": {"m": {}}},
        {"models": {"m": {"model_path": "x", "params": {"n_ctx": 0}}}},
        {"models": {"m": {"model_path": "x", "parallel_requests": True}}},
    ],
)
def test_what_the_schema_refuses_the_router_refuses_too(tree: Any) -> None:
    assert not jsonschema.Draft202012Validator(json_schema()).is_valid(tree)
    problems(tree)


# --- what it means


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    tree = {
        "system": {"llama_server_path": "bin/llama-server", "log_dir": "l"},
        **model(params={"mmproj": "p"}),
    }
    path.write_text(json.dumps(tree), encoding="utf-8")
    config = load(path, env={})
    spec = config.spec("m")
    assert config.system.llama_server_path == str(tmp_path / "bin" / "llama-server")
    assert config.system.log_dir == str(tmp_path / "l")
    assert (spec.path, spec.params.mmproj) == (tmp_path / "m.gguf", str(tmp_path / "p"))


def test_model_paths_are_relative_to_the_models_folder() -> None:
    config = read({"system": {"base_models_path": "gguf"}, **model(params={"mmproj": "p"})})
    assert config.spec("m").path == FOLDER / "gguf" / "m.gguf"
    assert config.spec("m").params.mmproj == str(FOLDER / "gguf" / "p")


def test_a_bare_binary_name_is_left_to_the_search_path() -> None:
    assert read({"system": {"llama_server_path": "llama-server"}}).system.llama_server_path == "llama-server"


def test_the_home_folder_may_be_abbreviated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert read(model(model_path="~/m.gguf")).spec("m").path == tmp_path / "m.gguf"


def test_a_byte_order_mark_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"api": {"port": 1234}}', encoding="utf-8-sig")
    assert load(path, env={}).api.port == 1234


def test_a_model_takes_from_the_system_what_it_does_not_say() -> None:
    system = {"idle_timeout_sec": 60, "parallel_requests": 4, "gpu_devices": [1, "GPU-5"], "cpu_threads": 3}
    plain = read({"system": system, **model()}).spec("m")
    assert (plain.idle_timeout_s, plain.slots, plain.gpu_devices) == (60, 4, (1, "GPU-5"))
    own = model(idle_timeout_sec=5, parallel_requests=2, gpu_devices=[0], priority="high", vram_mb=100)
    spec = read({"system": system, **own}).spec("m")
    assert (spec.idle_timeout_s, spec.slots, spec.gpu_devices) == (5, 2, (0,))
    assert (spec.priority, spec.declared_mb) == (Priority.HIGH, 100)


def test_pinned_models_and_a_switched_off_timeout_never_idle() -> None:
    assert read(model(pinned=True)).spec("m").idle_timeout_s is None
    off = {"system": {"enable_idle_timeout": False}}
    assert read({**off, **model(idle_timeout_sec=5)}).spec("m").idle_timeout_s is None


def test_minus_one_layer_is_cpu_only() -> None:
    assert read(model(params={"n_gpu_layers": -1})).spec("m").cpu_only
    assert not read(model()).spec("m").cpu_only


def test_the_kind_comes_from_the_parameters() -> None:
    assert read(model()).spec("m").kind is ModelKind.CHAT
    assert read(model(params={"embedding": True})).spec("m").kind is ModelKind.EMBEDDING
    assert read(model(params={"rerank": True})).spec("m").kind is ModelKind.RERANK


def test_preloads_are_aliases_in_the_order_given_each_once() -> None:
    models = {a: {"model_path": a, "aliases": [a + "-2"]} for a in ("a", "b", "c")}
    assert read({"models": models, "system": {"preload_models": ["c", "a-2", "a"]}}).preload() == ("c", "a")
    assert read({"models": models, "system": {"preload_models": ["*"]}}).preload() == ("a", "b", "c")


def test_a_key_is_a_string_or_an_object() -> None:
    full = {"key": "two", "name": "ci", "max_priority": "low", "admin": False}
    one, two = read({"api": {"api_keys": ["one", full]}}).api.api_keys
    assert (one.key.get_secret_value(), one.name, one.admin) == ("one", "", True)
    assert (two.key.get_secret_value(), two.name, two.max_priority) == ("two", "ci", Priority.LOW)
    assert not two.admin


def test_equal_models_have_equal_specs() -> None:
    assert read(model(env={"A": "1", "B": "2"})).spec("m") == read(model(env={"B": "2", "A": "1"})).spec("m")
    assert read(model()).spec("m") != read(model(params={"n_ctx": 1})).spec("m")


# --- the environment


def test_the_environment_overrides_the_file() -> None:
    env = {
        "ROUTER_API__PORT": "9999",
        "ROUTER_API__API_KEYS": '["k", {"key": "k2", "admin": false}]',
        "ROUTER_SYSTEM__ENABLE_IDLE_TIMEOUT": "false",
        "ROUTER_SYSTEM__VRAM_MULTIPLIER": "1.5",
        "ROUTER_SYSTEM__GPU_DEVICES": '[1, "GPU-1"]',
        "ROUTER_SYSTEM__LOG_LEVEL": "debug",
        "OTHER_API__PORT": "1",
        "ROUTER_HOME": "a variable of somebody else",
    }
    config = read({"api": {"port": 1, "host": "127.0.0.1"}}, env)
    assert (config.api.port, config.api.host) == (9999, "127.0.0.1")
    assert [k.admin for k in config.api.api_keys] == [True, False]
    system = config.system
    assert (system.enable_idle_timeout, system.vram_multiplier) == (False, 1.5)
    assert (system.gpu_devices, system.log_level) == ((1, "GPU-1"), "debug")


def test_a_bad_override_names_its_variable() -> None:
    told = problem({}, {"ROUTER_API__PORT": "eighty"})
    assert told.startswith('api.port: must be a whole number (it is "eighty")')
    assert "ROUTER_API__PORT" in told


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("ROUTER_API__PROT", "ROUTER_API__PORT"),
        ("ROUTER_SYSTEM__MAX_QUEUE", "ROUTER_SYSTEM__MAX_QUEUE_SIZE_PER_MODEL"),
        ("ROUTER_API_KEYS__X", None),
        ("ROUTER_MODELS__M", None),
    ],
)
def test_an_override_of_nothing_is_a_mistake(name: str, near: str | None) -> None:
    told = problem({}, {name: "1"})
    assert told.startswith(f"environment variable {name}: overrides nothing")
    assert near is None or near in told


# --- mistakes


@pytest.mark.parametrize(
    ("tree", "place", "near"),
    [
        ({"sistem": {}}, "sistem", "system"),
        ({"api": {"prt": 1}}, "api.prt", "port"),
        ({"system": {"idle_timeout": 5}}, "system.idle_timeout", "idle_timeout_sec"),
        ({"api": {"api_keys": [{"key": "k", "nmae": ""}]}}, "api.api_keys.0.nmae", "name"),
        (model(n_ctx=5), "models.m.n_ctx", None),
        (model(modelpath=5), "models.m.modelpath", "model_path"),
        (model(params={"nctx": 5}), "models.m.params.nctx", "n_ctx"),
        ({"models": {"params": {"model_path": "x", "pined": 1}}}, "models.params.pined", "pinned"),
        ({"models": {"int": {"model_path": "x", "str": 1}}}, "models.int.str", None),
        ({"int": 1}, "int", None),
    ],
)
def test_an_unknown_key_is_told_with_its_place_and_the_nearest(
    tree: Any, place: str, near: str | None
) -> None:
    told = problem(tree)
    assert told.startswith(f"{place}: unknown key")
    assert near is None or told.endswith(f"did you mean '{near}'?")


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        ({"api": 5}, "api: must be an object (it is 5)"),
        ({"api": {"port": "x"}}, 'api.port: must be a whole number (it is "x")'),
        ({"api": {"port": 1.5}}, "api.port: must be a whole number (it is 1.5)"),
        ({"api": {"port": True}}, "api.port: must be a number, not true or false"),
        (
            {"api": {"ollama_port": 8000}},
            "api.ollama_port: is api.port, which serves Ollama's programs too; remove it",
        ),
        ({"api": {"port": 65536}}, "api.port: must be less than or equal to 65535 (it is 65536)"),
        ({"api": {"public_metrics": "maybe"}}, 'api.public_metrics: must be true or false (it is "maybe")'),
        ({"api": {"allowed_hosts": "x"}}, 'api.allowed_hosts: must be a list (it is "x")'),
        ({"system": {"gpu_devices": [-1]}}, "system.gpu_devices.0: must be an index, 0 or more, or a UUID"),
        ({"system": {"aging_sec": 0}}, "system.aging_sec: must be greater than 0 (it is 0)"),
        ({"system": {"log_dir": ""}}, 'system.log_dir: must not be empty (it is "")'),
        ({"models": {"m": {}}}, "models.m.model_path: is missing"),
        ({"models": {"m": {"model_path": "a\0b"}}}, "models.m.model_path: must not contain a NUL character"),
        (model(env={"N": 1}), "models.m.env.N: must be a text (it is 1)"),
        (model(env={"A=B": "1"}), "models.m.env.A=B: is no name of an environment variable"),
        (
            {"system": {"flash_attention": "yes"}},
            "system.flash_attention: must be 'on', 'off' or 'auto' (it is \"yes\")",
        ),
        (
            {"system": {"preload_models": ["nope"]}, **model()},
            'system.preload_models: there is no model "nope"',
        ),
        (
            {"system": {"preload_models": ["quen"]}, "models": {"qwen": {"model_path": "x"}}},
            "system.preload_models: there is no model \"quen\"; did you mean 'qwen'?",
        ),
    ],
)
def test_a_wrong_value_is_told_in_plain_words(tree: Any, told: str) -> None:
    assert problem(tree) == told


def test_all_mistakes_are_told_together() -> None:
    tree = """{
        "api": {"prt": 1, "host": 5, "api_keys": ["k", "k"]},
        "system": {"flash_attention": "off", "preload_models": ["x"], "log_dir": "a", "log_dir": "b"},
        "models": {
            "status": {},
            "m": {"model_path": "m", "aliases": ["m"], "extra_args": ["--port"], "params": {"type_v": "q8_0"}}
        }
    }"""
    told = problems(tree, {"ROUTER_SYSTEM__X": "1"})
    places = [
        "system.log_dir: stands twice",
        "environment variable ROUTER_SYSTEM__X",
        "api.host",
        "api.prt",
        "models.status.model_path",
        "models.m.extra_args.0",
        'models.status: "status" is reserved',
        'models.m.aliases: "m" is already',
        'system.preload_models: there is no model "x"',
        "api.api_keys.1: is the same key",
        "models.m.params.type_v",
    ]
    assert len(told) == len(places)
    for place, line in zip(places, told, strict=True):
        assert line.startswith(place)


def test_the_message_lists_every_mistake_under_the_name_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"api": {"port": 0, "prt": 1}}', encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load(path, env={})
    first, *rest = str(caught.value).splitlines()
    assert first == f"{path}: 2 problems"
    assert [line[:8] for line in rest] == ["  - api."] * 2


def test_a_missing_file_tells_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.example\.config\.json.*run\.py init"):
        load(tmp_path / "config.json", env={})


@pytest.mark.parametrize("content", [b"\xff\xfe{", b"\x80"])
def test_a_file_that_is_no_text_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read"):
        load(path, env={})


def test_a_folder_instead_of_a_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path, env={})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "line 1, column 1: not valid JSON"),
        ('{\n  "api": {},,\n}', "line 2, column"),
        ("[" * 100_000, "not valid JSON: nested too deeply"),
        ('{"api": {"port": ' + "1" * 5000 + "}}", "not valid JSON: Exceeds the limit"),
        ("[]", "must be a JSON object with api, system and models, not an array"),
        ("null", "must be a JSON object with api, system and models, not null"),
    ],
    ids=["empty", "comma", "deep", "huge number", "array", "null"],
)
def test_bad_json_is_told_with_its_place(text: str, told: str) -> None:
    if "Exceeds" in told and len(text) > 4300:  # an old Python reads it, and the port is too large
        assert problem(text).startswith((told, "api.port"))
    else:
        assert problem(text).startswith(told)


def test_a_key_given_twice_is_told_with_its_place() -> None:
    text = '{"models": {"m": {"model_path": "a", "params": {"n_ctx": 1, "n_ctx": 2}}}}'
    assert problem(text) == "models.m.params.n_ctx: stands twice in the same object; remove one"
    assert problem('{"api": {"port": 1}, "api": {}}').startswith("api: stands twice")


# --- names


@pytest.mark.parametrize(
    "alias",
    [
        "qwen3-8b",
        "org/model:q4_k_m",
        "a",
        "x" * 128,
        "v1.5",
        "user@host",
        "c++",
        "...",
        "loading",
        "logs",
        "a/logs/b",
        "status/a",
    ],
)
def test_usable_aliases(alias: str) -> None:
    assert list(read({"models": {alias: {"model_path": "x"}}}).models) == [alias]


@pytest.mark.parametrize("where", ["key", "alias"])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("status", "is reserved"),
        ("failed", "is reserved"),
        ("load", "is reserved"),
        ("eject", "is reserved"),
        ("a/logs", "is reserved"),
        ("a/plan", "is reserved"),
        ("a/reset", "is reserved"),
        ("a/b/stream", "is reserved"),
        ("a/status", "is reserved"),
        ("a//b", "must not have an empty"),
        ("/a", "must not have an empty"),
        ("a/", "must not have an empty"),
        ("a/../b", "must not have an empty, '.' or '..' part"),
        (".", "must not have an empty, '.' or '..' part"),
        ("..", "must not have an empty, '.' or '..' part"),
        ("", "must be 1 to 128"),
        ("x" * 129, "must be 1 to 128"),
        ("a,b", "must be 1 to 128"),
        (" a", "must be 1 to 128"),
        ("a\n", "must be 1 to 128"),
        ("a\u200bb", "must be 1 to 128"),
    ],
)
def test_unusable_aliases(where: str, name: str, reason: str) -> None:
    tree = {"models": {name: {"model_path": "x"}}} if where == "key" else model(aliases=[name])
    assert reason in problem(tree)


def test_a_name_belongs_to_one_model() -> None:
    models = {"a": {"model_path": "x", "aliases": ["b", "c"]}, "b": {"model_path": "y", "aliases": ["c"]}}
    assert problems({"models": models}) == [
        'models.b: "b" is already a name of models.a',
        'models.b.aliases: "c" is already a name of models.a',
    ]


# --- what belongs to the router


@pytest.mark.parametrize("flag", [*OWNED_FLAGS, "--ctx_size", "--api_key_file"])
@pytest.mark.parametrize("form", ["{}", "{}=1"])
def test_flags_of_the_router_are_refused(flag: str, form: str) -> None:
    told = problem(model(extra_args=["--mlock", form.format(flag), "1"]))
    assert told.startswith("models.m.extra_args.1: ")
    assert "belongs to the router" in told


def test_the_contracts_flags_are_owned_with_their_long_forms() -> None:
    short = {"--host", "--port", "--alias", "--api-key", "-m", "-c", "-np"}
    assert short | {"-a", "--model", "--ctx-size", "--parallel"} <= set(OWNED_FLAGS)


def test_other_flags_pass() -> None:
    args = ["--mlock", "--lora", "x.gguf", "-ub", "512", "--model-draft", "d.gguf"]
    assert read(model(extra_args=args)).spec("m").extra_args == tuple(args)


def test_the_key_of_the_process_is_the_routers() -> None:
    assert "belongs to the router" in problem(model(env={"LLAMA_API_KEY": "x"}))


@pytest.mark.parametrize("type_v", ["q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"])
def test_a_quantised_v_cache_needs_flash_attention(type_v: str) -> None:
    tree = model(params={"type_v": type_v})
    told = problem({"system": {"flash_attention": "off"}, **tree})
    assert told.startswith(f"models.m.params.type_v: {type_v} needs flash attention")
    for attention in ("on", "auto"):
        read({"system": {"flash_attention": attention}, **tree})
    assert problem(tree, {"ROUTER_SYSTEM__FLASH_ATTENTION": "off"}) == told


@pytest.mark.parametrize("params", [{"type_v": "f32"}, {"type_v": "bf16"}, {"type_k": "q8_0"}])
def test_other_caches_do_not(params: dict[str, str]) -> None:
    read({"system": {"flash_attention": "off"}, **model(params=params)})


# --- secrets


@pytest.mark.parametrize(
    "keys",
    [
        "SECRET",
        ["SECRET key"],
        ["SECRET", "SECRET"],
        [{"key": "SECRET", "nmae": "x"}],
        [{"key": ["SECRET"]}],
        [["SECRET"]],
        {"key": "SECRET"},
        [{"key": "k", "name": {"SECRET": 1}}],
    ],
)
def test_a_key_is_never_shown_in_a_message(keys: Any) -> None:
    assert not [line for line in problems({"api": {"api_keys": keys}}) if "SECRET" in line]


def test_a_key_is_never_shown_in_text() -> None:
    config = read({"api": {"api_keys": ["SECRET"]}})
    for text in (repr(config), str(config), config.model_dump_json(), repr(config.api.api_keys[0])):
        assert "SECRET" not in text


def test_a_key_from_the_environment_is_never_shown() -> None:
    assert "SECRET" not in problem({}, {"ROUTER_API__API_KEYS": "SECRET"})


# --- warnings


@pytest.mark.parametrize(
    ("api", "warned"),
    [
        ({}, True),
        ({"host": "192.168.1.5"}, True),
        ({"host": "::"}, True),
        ({"api_keys": ["k"]}, False),
        ({"host": "127.0.0.1"}, False),
        ({"host": "127.8.8.8"}, False),
        ({"host": "localhost"}, False),
        ({"host": "::1"}, False),
    ],
)
def test_an_open_router_is_warned_of(api: dict[str, Any], warned: bool) -> None:
    warnings = read({"api": api}).warnings()
    assert bool(warnings) is warned
    assert all("api.api_keys" in text and "127.0.0.1" in text for text in warnings)


def test_pinned_models_that_fill_every_place_are_warned_of() -> None:
    def warnings(places: int, pinned: int, others: int) -> list[str]:
        models = {f"p{n}": {"model_path": "x", "pinned": True} for n in range(pinned)}
        models |= {f"o{n}": {"model_path": "x"} for n in range(others)}
        system = {"max_concurrent_models": places}
        return read({"api": {"host": "::1"}, "system": system, "models": models}).warnings()

    assert "2 pinned models fill system.max_concurrent_models (2)" in warnings(2, 2, 1)[0]
    assert warnings(2, 2, 0) == []
    assert warnings(3, 2, 1) == []


def test_a_model_without_devices_is_warned_of() -> None:
    local = {"api": {"host": "::1"}}
    assert "gpu_devices is empty for m" in read({**local, **model(gpu_devices=[])}).warnings()[0]
    assert read({**local, **model(gpu_devices=[], params={"n_gpu_layers": -1})}).warnings() == []


# --- anything at all

NAMES = st.sampled_from(
    [
        *(name for section in DEFAULTS for name in section.model_fields),  # type: ignore[attr-defined]
        "api",
        "system",
        "models",
        "_c",
        "$schema",
        "int",
        "str",
        "[key]",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | NAMES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=12,
)
FILES = VALUES | st.fixed_dictionaries(
    {
        "api": st.dictionaries(NAMES, VALUES, max_size=3),
        "system": st.dictionaries(NAMES, VALUES, max_size=3),
        "models": st.dictionaries(
            st.text(max_size=4) | NAMES,
            st.fixed_dictionaries({"model_path": st.text(), "params": VALUES}, optional={"aliases": VALUES}),
            max_size=3,
        ),
    }
)


@settings(max_examples=300)
@given(FILES, st.dictionaries(st.sampled_from(["ROUTER_API__PORT", "ROUTER_SYSTEM__GPU_DEVICES"]), st.text()))
def test_whatever_a_file_says_it_is_a_configuration_or_a_configuration_error(
    tree: Any, env: dict[str, str]
) -> None:
    try:
        config = parse(json.dumps(tree), FOLDER, env)
    except ConfigError as error:
        assert error.problems
        assert str(error)
    else:
        config.warnings(), config.preload(), config.specs()


@settings(max_examples=200)
@given(st.text())
def test_whatever_text_a_file_holds_it_is_read_or_told(text: str) -> None:
    try:
        parse(text, FOLDER, {})
    except ConfigError as error:
        assert error.problems
