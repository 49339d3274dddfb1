"""Configurations that were accepted, and failed later or did nothing."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from app.cli import upgrade_notes
from app.configuration.file import ConfigError, load, parse
from app.core.config import Config
from app.domain.router_owned_flags import OWNED
from app.llama.command_line import parse_help
from tests.commands import run_py
from tests.field.environment import KEYS


def read(tree: Mapping[str, Any]) -> Config:
    return parse(json.dumps(tree), Path.cwd(), {})


def problems(tree: Mapping[str, Any]) -> list[str]:
    try:
        read(tree)
    except ConfigError as error:
        return error.problems
    return []


def check(config: Path, tree: Mapping[str, Any]) -> subprocess.CompletedProcess[str]:
    config.write_text(json.dumps(tree))
    return run_py("check", "-c", str(config))


def help_entries(llama_server: Path) -> list[tuple[frozenset[str], str]]:
    """(flags, text) of each entry of the real binary's help."""
    text = subprocess.run([llama_server, "--help"], capture_output=True, encoding="utf-8", check=True).stdout
    entries = [" ".join(block.split()) for block in re.split(r"\n(?=-\w|--\w)", text)]
    return [(parse_help(e) | {e.split()[0].rstrip(",")}, e) for e in entries if e.startswith("-")]


# --- F3


@pytest.mark.parametrize(
    "args",
    [
        ["--api-prefix", "/x"],
        ["--ssl-key-file", "k"],
        ["--ssl-cert-file=c"],
        ["-hf", "org/repo"],
        ["--hf_repo", "org/repo"],
        ["-mu", "https://x.example/m.gguf"],
        ["--docker-repo", "x"],
        ["--models-dir", "/models"],
        ["--models-max", "4"],
        ["--fim-qwen-7b-default"],
        ["--version"],
        ["--embedding"],
        ["--log-disable"],
    ],
    ids=lambda args: args[0],
)
def test_a_flag_that_ended_as_port_served_by_another_program_is_refused(
    args: list[str],
) -> None:
    (told,) = problems({"models": {"m": {"model_path": "m.gguf", "extra_args": ["--mlock", *args]}}})
    assert told.startswith("models.m.extra_args.1: ")
    assert re.search("belongs to the router: .{10}", told)


def test_a_variable_is_refused_as_the_flag_that_it_stands_for(llama_server: Path) -> None:
    """Also that the table says which variable it is."""
    entries = help_entries(llama_server)
    for owned in OWNED:
        found = {
            tuple(re.findall(r"\(env: (\w+)\)", text)) for flags, text in entries if flags & {*owned.flags}
        }
        if found and owned.variable is not None:
            (variables,) = found
            assert owned.variable in variables, owned
    tree = {"models": {"m": {"model_path": "m.gguf", "env": {"LLAMA_ARG_API_PREFIX": "/x"}}}}
    (told,) = problems(tree)
    assert told.startswith("models.m.env.LLAMA_ARG_API_PREFIX: ")


def test_whatever_downloads_or_ends_at_once_in_this_build_is_refused(llama_server: Path) -> None:
    kinds: tuple[str, ...] = (
        "and exit",
        "show list of",
        "can download",
        "download url",
        "for the router server",
        "SSL",
    )
    kinds += ("for router server", "Hugging Face model", "Docker Hub model", "prefix path the server serves")
    owned = {flag for entry in OWNED for flag in entry.flags}
    concerned = [flags for flags, text in help_entries(llama_server) if any(kind in text for kind in kinds)]
    assert len(concerned) > 20
    assert not [flags for flags in concerned if not flags & owned]


# --- F5


def test_a_key_object_that_says_nothing_of_admin_is_no_admin() -> None:
    assert [key.admin for key in read({"api": {"api_keys": KEYS}}).api.api_keys] == [True, False, True]


def test_keys_of_which_none_may_manage_are_warned_of() -> None:
    assert any("no key" in text for text in read({"api": {"api_keys": [KEYS[1]]}}).warnings())
    assert not any("no key" in text for text in read({"api": {"api_keys": KEYS}}).warnings())


def test_what_has_changed_for_an_old_file_is_told_once(tmp_path: Path) -> None:
    tree = {"api": {"api_keys": KEYS}, "system": {"log_dir": str(tmp_path / "logs")}}
    (told,) = upgrade_notes.untold(read(tree))
    assert "silent" in told
    assert "boss" not in told
    assert '"admin": true' in told
    assert upgrade_notes.untold(read(tree)) == []


@pytest.mark.parametrize("content", ["", "[1, {}]", "{}", "\0"])
def test_a_broken_memory_of_what_was_told_is_no_reason_not_to_start(tmp_path: Path, content: str) -> None:
    (tmp_path / upgrade_notes.FILE_NAME).write_text(content)
    tree = {"api": {"api_keys": KEYS}, "system": {"log_dir": str(tmp_path)}}
    assert len(upgrade_notes.untold(read(tree))) == 1
    assert upgrade_notes.untold(read(tree)) == []


def test_a_file_that_nothing_has_changed_for_is_told_nothing(tmp_path: Path) -> None:
    tree = {"api": {"api_keys": ["plain", KEYS[2]]}, "system": {"log_dir": str(tmp_path)}}
    assert upgrade_notes.untold(read(tree)) == []


# --- F6


def test_a_mistake_does_not_hide_a_missing_model_file(
    tmp_path: Path, tiny_gguf: Path, llama_server: Path
) -> None:
    """Whatever kind the mistake is of, and also in the very model whose file is missing."""
    gone = str(tmp_path / "gone.gguf")
    tree = {
        "api": {"host": "127.0.0.1", "prot": 1, "api_keys": [{"name": "no key"}, 7, "good"]},
        "system": {"llama_server_path": str(llama_server), "idle_timeout_sec": "x", "gpu_devices": [-1, "a"]},
        "models": {
            "well": {"model_path": str(tiny_gguf), "params": {"n_gpu_layers": -1}},
            "gone": {"model_path": gone, "params": {"n_ctxx": 1, "n_ctx": 512}, "extra_args": ["-hf", "x"]},
            "status": {"model_path": str(tmp_path / "reserved.gguf")},
            "pathless": {"pinned": True},
            "none": 5,
        },
    }
    done = check(tmp_path / "config.json", tree)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    for place in ("api.prot", "api.api_keys.0", "system.idle_timeout_sec", "models.gone.params.n_ctxx"):
        assert place in done.stderr
    for place in ("models.gone.extra_args.0", "models.status", "models.pathless", "models.none"):
        assert place in done.stderr
    lines = done.stdout.splitlines()
    assert any(line.strip().startswith("gone: ") and gone in line for line in lines), done.stdout
    assert any(line.strip().startswith("status: ") and "reserved.gguf" in line for line in lines)
    assert not any(line.strip().startswith("well: ") for line in lines)
    assert lines[-1] == "not ready to serve"


def test_mistakes_alone_are_no_success(tmp_path: Path, tiny_gguf: Path, llama_server: Path) -> None:
    tree = {
        "api": {"host": "127.0.0.1", "prot": 1},
        "system": {"llama_server_path": str(llama_server)},
        "models": {"well": {"model_path": str(tiny_gguf), "params": {"n_gpu_layers": -1}}},
    }
    done = check(tmp_path / "config.json", tree)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (1, "not ready to serve")


@pytest.mark.parametrize("text", ["[]", "{", '{"models": []}', '{"api": 5, "models": {"m": {"aliases": 7}}}'])
def test_what_is_hardly_a_configuration_is_told_without_a_traceback(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as told:
        load(path, {})
    assert (told.value.usable is None) == (not text.startswith('{"'))


# --- T3


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("http://localhost:3000/", "http://localhost:3000"),
        ("HTTPS://Chat.Example:443", "https://chat.example"),
        ("http://[::1]:5173", "http://[::1]:5173"),
        ("app://obsidian.md", "app://obsidian.md"),
        ("localhost", "localhost"),
        ("*", "*"),
    ],
)
def test_an_origin_counts_as_browsers_write_it(written: str, meant: str) -> None:
    assert read({"api": {"cors_allow_origins": [written]}}).api.cors_allow_origins == (meant,)


@pytest.mark.parametrize(
    "entry",
    ["chat.example", "localhost:3000", "https://a.b/chat", "http://localhost:*", "*.a.b", "http://*.a.b", ""],
)
def test_an_origin_that_matches_nothing_is_told_what_to_write(entry: str) -> None:
    (told,) = problems({"api": {"cors_allow_origins": [entry]}})
    assert told.startswith("api.cors_allow_origins.0: ")
    assert "matches nothing" in told
    assert "write" in told


@pytest.mark.parametrize(
    "entry", ["https://llm.example", "llm.example:8443", "*.example", ".example", "[::1]"]
)
def test_a_host_name_that_matches_nothing_is_told_what_to_write(entry: str) -> None:
    (told,) = problems({"api": {"allowed_hosts": [entry]}})
    assert told.startswith("api.allowed_hosts.0: ")
    assert "write" in told


# --- T4


@pytest.mark.parametrize(
    "host", ["http://127.0.0.1", "127.0.0.1:8000", "[::1]", "", "127.0.0.1,", "/run/router.sock", "a b"]
)
def test_a_host_on_which_nothing_can_listen_is_refused(host: str) -> None:
    (told,) = problems({"api": {"host": host}})
    assert told.startswith("api.host: ")


@pytest.mark.parametrize("host", ["192.0.2.1", "127.0.0.1,192.0.2.1", "no-such-name.invalid"])
def test_an_address_of_another_machine_is_found_by_check(
    tmp_path: Path, tiny_gguf: Path, llama_server: Path, host: str
) -> None:
    tree = {
        "api": {"host": host, "api_keys": ["k"]},
        "system": {"llama_server_path": str(llama_server)},
        "models": {"m": {"model_path": str(tiny_gguf), "params": {"n_gpu_layers": -1}}},
    }
    done = check(tmp_path / "config.json", tree)
    assert done.returncode == 1
    assert f"api.host: cannot listen on {host.split(',')[-1]}:" in done.stdout


def test_only_loopback_addresses_need_no_keys() -> None:
    for host, warned in {
        "127.0.0.1,::1": False,
        "localhost": False,
        "127.0.0.1,10.0.0.1": True,
        "::": True,
    }.items():
        assert any("everyone" in text for text in read({"api": {"host": host}}).warnings()) == warned, host
