"""`run.py` as users call it: arguments, exit codes, and messages that say what to do next."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import gguf
import httpx
import jsonschema
import pytest

from app.cli import commands as cli
from app.configuration.file import json_schema, load
from app.listen_check import urls
from tests import llama_build
from tests.commands import ROOT, environment
from tests.ggufs import make_architecture, make_tiny
from tests.patience import WAIT_S
from tests.ports import Ports, free_port


def run(*arguments: object, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *map(str, arguments)],
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


def write(path: Path, tree: Mapping[str, Any]) -> Path:
    path.write_text(json.dumps(tree), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder such as people have: chat, embedding, reranking, a split model, a projector, a broken file."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "org").mkdir()
    make_tiny(folder / "Tiny Chat.Q4_K_M.gguf", context=2048)
    make_tiny(folder / "org" / "long.gguf", context=131072)
    make_tiny(folder / "pooled.gguf", pooling_type=1)
    make_tiny(folder / "reranker.gguf", pooling_type=4)
    make_architecture("bert", folder / "bert.gguf")
    tiny = (folder / "Tiny Chat.Q4_K_M.gguf").read_bytes()
    (folder / "big-00001-of-00002.gguf").write_bytes(tiny)
    (folder / "big-00002-of-00002.gguf").write_bytes(tiny)
    make_projector(folder / "mmproj.gguf")
    (folder / "broken.gguf").write_bytes(b"not a model")
    return folder


def make_projector(path: Path) -> None:
    writer = gguf.GGUFWriter(path, "clip")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def config(models: Path, tmp_path: Path) -> Path:
    entry = {"model_path": str(models / "Tiny Chat.Q4_K_M.gguf"), "params": {"n_ctx": 256}}
    tree = {"api": {"host": "127.0.0.1", "port": free_port()}, "models": {"chat": entry}}
    return write(tmp_path / "config.json", tree)


# --- the command line


def test_help_lists_the_commands_and_the_configuration() -> None:
    done = run("--help")
    assert done.returncode == 0
    for word in ("serve", "check", "init", "demo", "--config", "CONFIG_PATH"):
        assert word in done.stdout


@pytest.mark.parametrize("arguments", [["sreve"], ["--confg", "x"], ["init"]])
def test_a_wrong_command_line_is_refused(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "usage: run.py" in done.stderr


def test_help_needs_no_package() -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-I", str(ROOT / "run.py"), "--help"], capture_output=True, check=False
    )
    assert done.returncode == 0


def test_a_missing_package_is_told() -> None:
    done = subprocess.run(
        [sys.executable, "-S", "run.py", "check"],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 1
    assert "pip install -r requirements.txt" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [[], ["serve"], ["check"]])
def test_a_missing_configuration_tells_what_to_do(tmp_path: Path, command: list[str]) -> None:
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("config.json: 1 problem")
    assert ".example.config.json" in done.stderr
    assert "run.py init --models-dir" in done.stderr


@pytest.mark.parametrize(
    "arguments", [["-c", "a.json", "check"], ["check", "-c", "a.json"], ["check", "--config=a.json"]]
)
def test_the_configuration_may_be_named_before_and_after_the_command(
    tmp_path: Path, arguments: list[str]
) -> None:
    write(tmp_path / "a.json", {"api": {"prt": 1}})
    done = run(*arguments, cwd=tmp_path, CONFIG_PATH="other.json")
    assert done.stderr.startswith("a.json: 1 problem\n  - api.prt: unknown key; did you mean 'port'?")


def test_the_configuration_may_be_named_by_the_environment(tmp_path: Path) -> None:
    done = run("check", cwd=tmp_path, CONFIG_PATH="other.json")
    assert done.stderr.startswith("other.json: 1 problem")


# --- check


def test_check_of_a_good_configuration_prints_a_table(config: Path) -> None:
    done = run("check", "-c", config)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{config}: valid, 1 model" in done.stdout
    assert "llama-server: computes on this machine" in done.stdout
    header, row = done.stdout.split("\n\n")[1].splitlines()
    assert " ".join(header.split()) == "model file MB estimate MB measured MB reserves MB goes to"
    alias, file_mb, estimate_mb, measured_mb, reserves_mb, *_ = row.split()
    assert (alias, int(file_mb), measured_mb) == ("chat", 0, "-")
    assert int(reserves_mb) == int(estimate_mb) > 0
    assert done.stdout.endswith("all is well\n")


def test_check_tells_how_embedding_models_pool_and_who_says_so(models: Path, tmp_path: Path) -> None:
    chosen = {"embedding": True, "pooling": "cls"}
    tree = {
        "api": {"host": "127.0.0.1"},
        "models": {
            "chat": {"model_path": str(models / "Tiny Chat.Q4_K_M.gguf"), "params": {"n_ctx": 256}},
            "silent": {"model_path": str(models / "Tiny Chat.Q4_K_M.gguf"), "params": {"embedding": True}},
            "says": {"model_path": str(models / "pooled.gguf"), "params": {"embedding": True}},
            "told": {"model_path": str(models / "pooled.gguf"), "params": chosen},
            "ranks": {"model_path": str(models / "reranker.gguf"), "params": {"rerank": True}},
        },
    }
    done = run("check", "-c", write(tmp_path / "c.json", tree))
    lines = [line.strip() for line in done.stdout.splitlines() if ": pooling " in line]
    assert lines == [
        "silent: pooling mean (the router's default: the file says nothing)",
        "says: pooling mean (the file says so)",
        "told: pooling cls (params.pooling)",
        "ranks: pooling rank (a reranking model)",
    ]


def test_check_of_a_bad_configuration_tells_every_mistake(tmp_path: Path) -> None:
    path = write(tmp_path / "c.json", {"api": {"prt": 1}, "models": {"status": {"model_path": "x"}}})
    done = run("check", "-c", path)
    assert done.returncode == 1
    assert "api.prt" in done.stderr
    assert "models.status" in done.stderr


def test_check_tells_a_missing_binary_and_still_looks_at_the_models(config: Path) -> None:
    done = run("check", "-c", config, ROUTER_SYSTEM__LLAMA_SERVER_PATH="/nowhere/llama-server")
    assert done.returncode == 1
    assert "/nowhere/llama-server" in done.stdout
    assert "system.llama_server_path" in done.stdout
    assert "\n  chat " in done.stdout
    assert done.stdout.endswith("not ready to serve\n")


def test_check_tells_a_binary_that_is_no_llama_server(config: Path) -> None:
    done = run("check", "-c", config, ROUTER_SYSTEM__LLAMA_SERVER_PATH=sys.executable)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "not ready to serve" in done.stdout


def test_check_tells_a_binary_that_cannot_compute_here_first(config: Path, tmp_path: Path) -> None:
    binary = llama_build.acting(tmp_path, "kill -ILL $$")
    done = run("check", "-c", config, ROUTER_SYSTEM__LLAMA_SERVER_PATH=str(binary))
    assert done.returncode == 1
    assert "SIGILL" in done.stdout.splitlines()[2]
    assert "\n  chat " in done.stdout
    assert done.stdout.endswith("not ready to serve\n")


@pytest.mark.parametrize(("layers", "code"), [(99, 0), (1, 1), (-1, 1)])
def test_a_processor_that_cannot_compute_is_no_matter_where_all_layers_are_on_a_gpu(
    models: Path, tmp_path: Path, layers: int, code: int
) -> None:
    gpu = "Available devices:\\n  Vulkan0: A card (8192 MiB, 8192 MiB free)\\n"
    binary = llama_build.acting(tmp_path, "kill -ILL $$", devices=gpu)
    model = {"model_path": str(models / "org" / "long.gguf"), "params": {"n_gpu_layers": layers}}
    config = write(tmp_path / "c.json", {"api": {"host": "127.0.0.1"}, "models": {"m": model}})
    done = run("check", "-c", config, ROUTER_SYSTEM__LLAMA_SERVER_PATH=str(binary))
    assert "SIGILL" in done.stdout
    assert done.returncode == code, done.stdout
    assert ("every model lies wholly on a GPU" in done.stdout) == (code == 0)


def test_check_tells_every_model_file_that_cannot_be_used(models: Path, tmp_path: Path) -> None:
    entries = {
        "gone": {"model_path": str(models / "gone.gguf")},
        "broken": {"model_path": str(models / "broken.gguf")},
        "folder": {"model_path": str(models)},
        "good": {"model_path": str(models / "Tiny Chat.Q4_K_M.gguf")},
        "huge": {"model_path": str(models / "Tiny Chat.Q4_K_M.gguf"), "params": {"n_ctx": 2**27}},
    }
    tree = {"system": {"parallel_requests": 256}, "api": {"host": "127.0.0.1"}, "models": entries}
    done = run("check", "-c", write(tmp_path / "c.json", tree))
    assert done.returncode == 1
    told = {
        line.split(":")[0].strip(): line for line in done.stdout.split("\n\n")[1].splitlines() if ":" in line
    }
    assert "there is no file" in told["gone"]
    assert "broken.gguf" in told["broken"]
    assert "folder" in told
    assert "needs" in told["huge"]
    assert "good" not in told


def test_check_tells_a_projector_from_a_model(models: Path, tmp_path: Path) -> None:
    chat, eyes = str(models / "Tiny Chat.Q4_K_M.gguf"), str(models / "mmproj.gguf")
    entries = {
        "sees": {"model_path": chat, "params": {"mmproj": eyes}},
        "swapped": {"model_path": eyes},
        "no-eyes": {"model_path": chat, "params": {"mmproj": chat}},
        "broken": {"model_path": chat, "params": {"mmproj": str(models / "broken.gguf")}},
    }
    tree = {"api": {"host": "127.0.0.1"}, "models": entries}
    done = run("check", "-c", write(tmp_path / "c.json", tree))
    assert done.returncode == 1
    assert "  swapped: its file is a projector: set params.mmproj" in done.stdout
    assert "  no-eyes: params.mmproj: Tiny Chat.Q4_K_M.gguf is a model and no projector" in done.stdout
    assert "  broken: broken.gguf" in done.stdout
    assert "  sees: " not in done.stdout


def test_check_tells_a_flag_that_the_binary_does_not_know(config: Path) -> None:
    tree = json.loads(config.read_text())
    tree["models"]["chat"]["extra_args"] = ["--no-such-flag", "-1", "--no_warmup", "--swa-full"]
    done = run("check", "-c", write(config, tree))
    assert done.returncode == 1
    assert "does not know --no-such-flag\n" in done.stdout


def test_check_tells_of_a_log_folder_that_cannot_be_made(config: Path, tmp_path: Path) -> None:
    tree = json.loads(config.read_text())
    (tmp_path / "file").touch()
    tree["system"] = {**tree.get("system", {}), "log_dir": str(tmp_path / "file" / "logs")}
    done = run("check", "-c", write(config, tree))
    assert done.returncode == 1
    assert f"logs: no model can be loaded: {tmp_path}/file is no folder" in done.stdout


def test_check_warns_of_an_open_router(config: Path) -> None:
    done = run("check", "-c", config, ROUTER_API__HOST="0.0.0.0")
    assert done.returncode == 0
    assert "warning: api.host is 0.0.0.0 and api.api_keys is empty" in done.stdout


def test_check_prints_the_schema(tmp_path: Path) -> None:
    done = run("check", "--schema", cwd=tmp_path)  # needs no configuration
    assert done.returncode == 0
    assert json.loads(done.stdout) == json_schema()


# --- init


def test_init_writes_a_configuration_that_passes_check(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    done = run("init", "--models-dir", models, "-c", path)
    assert done.returncode == 0, done.stderr
    assert f"python run.py check -c {path}" in done.stdout
    tree = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.validate(tree, json_schema(), jsonschema.Draft202012Validator)
    assert (tmp_path / tree["$schema"]).samefile(ROOT / "docs" / "config.schema.json")
    assert run("check", "-c", path, ROUTER_API__HOST="127.0.0.1").returncode == 0


def test_init_reads_alias_context_and_kind_from_the_files(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    run("init", "--models-dir", models, "-c", path)
    specs = load(path, env={}).specs()
    assert list(specs) == ["tiny-chat.q4_k_m", "bert", "big", "long", "pooled", "reranker"]
    assert specs["tiny-chat.q4_k_m"].params.n_ctx == 2048
    assert specs["long"].params.n_ctx == 8192  # a trained context of 131072 would fill any memory
    assert {alias: spec.kind.value for alias, spec in specs.items()} == {
        "tiny-chat.q4_k_m": "chat",
        "bert": "embedding",
        "big": "chat",
        "long": "chat",
        "pooled": "embedding",
        "reranker": "rerank",
    }
    assert specs["big"].path.name == "big-00001-of-00002.gguf"
    assert specs["long"].path == models / "org" / "long.gguf"


def test_init_tells_what_it_left_out(models: Path, tmp_path: Path) -> None:
    done = run("init", "--models-dir", models, "-c", tmp_path / "config.json")
    assert "broken.gguf" in done.stderr
    assert "mmproj.gguf is a projector: set params.mmproj" in done.stdout


def test_init_numbers_files_with_the_same_name(models: Path, tmp_path: Path) -> None:
    for name in ("a/Model.gguf", "b/model.gguf", "status.gguf"):
        target = tmp_path / "gguf" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((models / "Tiny Chat.Q4_K_M.gguf").read_bytes())
    run("init", "--models-dir", tmp_path / "gguf", "-c", tmp_path / "c.json")
    assert list(load(tmp_path / "c.json", env={}).models) == ["model", "model-2", "status-2"]


def test_init_keeps_what_the_file_says_besides_its_models(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    api = {"host": "127.0.0.1", "api_keys": ["k"]}
    system = {"llama_server_path": "/opt/llama-server", "default_model": "old", "base_models_path": "/old"}
    write(path, {"api": api, "system": system, "models": {"old": {"model_path": "old.gguf"}}})
    assert run("init", "--models-dir", models, "-c", path, "--force").returncode == 0
    tree = json.loads(path.read_text(encoding="utf-8"))
    assert tree["api"] == api
    assert tree["system"] == {"llama_server_path": "/opt/llama-server", "base_models_path": str(models)}
    assert "old" not in tree["models"]


def test_init_never_overwrites_without_force(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("mine", encoding="utf-8")
    done = run("init", "--models-dir", models, "-c", path)
    assert done.returncode == 1
    assert "--force" in done.stderr
    assert path.read_text(encoding="utf-8") == "mine"
    assert run("init", "--models-dir", models, "-c", path, "--force").returncode == 0
    assert path.read_text(encoding="utf-8") != "mine"


def test_init_tells_when_there_is_nothing_to_do(tmp_path: Path) -> None:
    missing = run("init", "--models-dir", tmp_path / "no", "-c", tmp_path / "c.json")
    assert (missing.returncode, "is not a folder" in missing.stderr) == (1, True)
    empty = run("init", "--models-dir", tmp_path, "-c", tmp_path / "c.json")
    assert (empty.returncode, "no usable GGUF file" in empty.stderr) == (1, True)
    assert not (tmp_path / "c.json").exists()


def test_init_tells_when_it_cannot_write(models: Path, tmp_path: Path) -> None:
    done = run("init", "--models-dir", models, "-c", tmp_path / "no" / "c.json")
    assert done.returncode == 1
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


# --- serve


def test_a_port_in_use_is_told_before_anything_is_loaded(config: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        done = run("-c", config, ROUTER_API__PORT=str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert "the port is in use" in done.stderr
    assert "ROUTER_API__PORT" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_address_of_another_machine_is_told(config: Path) -> None:
    done = run("-c", config, ROUTER_API__HOST="192.0.2.1")
    assert done.returncode == 1
    assert "cannot listen on 192.0.2.1" in done.stderr
    assert "set api.host" in done.stderr


def test_a_missing_binary_is_told(config: Path) -> None:
    done = run("-c", config, ROUTER_SYSTEM__LLAMA_SERVER_PATH="/nowhere/llama-server")
    assert done.returncode == 1
    assert done.stderr.startswith("system.llama_server_path: /nowhere/llama-server")


def test_the_demo_tells_a_binary_that_cannot_compute_here_and_serves_nothing(
    smollm2: Path, tmp_path: Path
) -> None:
    binary = llama_build.acting(tmp_path, "kill -ILL $$")
    done = run("demo", ROUTER_SYSTEM__LLAMA_SERVER_PATH=str(binary), ROUTER_API__PORT=str(free_port()))
    assert done.returncode == 1
    assert "SIGILL" in done.stdout.splitlines()[0]
    assert "another processor" in done.stdout.splitlines()[0]
    assert "address" not in done.stdout
    assert "Traceback" not in done.stderr


@pytest.fixture
def serving(config: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    ports = Ports()
    process = subprocess.Popen(
        [sys.executable, "run.py", "-c", str(config)],
        cwd=ROOT,
        env=environment(ROUTER_SYSTEM__PRELOAD_MODELS='["chat"]', ROUTER_SYSTEM__FIRST_PORT=str(ports.first)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    try:
        yield process, f"http://127.0.0.1:{load(config, env={}).api.port}"
    finally:
        process.kill()
        process.communicate()


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_serve_prints_a_short_table_preloads_and_ends_with_zero(
    serving: tuple[subprocess.Popen[str], str],
) -> None:
    process, url = serving
    assert process.stderr is not None
    log = []
    for line in process.stderr:
        log.append(line)
        if "chat: ready, loaded in" in line:
            break
    assert httpx.get(f"{url}/v1/models", timeout=WAIT_S).json()["data"][0]["state"] == "ready"
    process.send_signal(signal.SIGTERM)
    banner, rest = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, rest
    rows = {line[2:15].strip() for line in banner.splitlines()[1:]}
    assert {"address", "llama-server", "devices", "models", "preload"} <= rows
    assert url in banner
    assert len(banner.splitlines()) < 15
    moves = [line.split("chat: ")[1].split(",")[0].strip() for line in log if "INFO    chat: " in line]
    assert moves[-3:-1] == ["starting", "loading"]


# --- parts


def test_many_models_do_not_fill_the_screen() -> None:
    assert cli._listed(tuple(f"m{n}" for n in range(30))) == "m0, m1, m2, m3, m4, m5, m6, m7 and 22 more"
    assert cli._listed(("a", "b")) == "a, b"


def test_addresses_can_be_clicked() -> None:
    assert urls(["127.0.0.1", "::1"], 8000) == ["http://127.0.0.1:8000", "http://[::1]:8000"]
    for everywhere in (["0.0.0.0"], ["::", "0.0.0.0"]):
        (url,) = urls(everywhere, 1)
        assert url.startswith("http://127.0.0.1:1 ")


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_are_told_what_they_lack(platform: str) -> None:
    assert any("llama-server" in note for note in cli._missing_here(platform))
    assert cli._missing_here("linux") == []
