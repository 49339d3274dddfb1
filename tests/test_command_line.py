"""The command line that a model gets from a binary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from app.core.config import Config
from app.domain.model_spec import ModelSpec
from app.llama.command_line import (
    MAX_INPUT_BATCH,
    BinaryInfo,
    Command,
    CommandError,
    build_command,
    parse_help,
    parse_switches,
    parse_version,
)

HELP = (Path(__file__).parent / "data" / "llama_server_help.txt").read_text()
GPU = {"0": 3000}


def binary(help_text: str = HELP) -> BinaryInfo:
    switches = parse_switches(help_text)
    return BinaryInfo(Path("/bin/llama-server"), "b1", parse_help(help_text), "id", switches)


def spec(params: Mapping[str, Any] | None = None, **model: Any) -> ModelSpec:
    entry = {"model_path": "/models/m.gguf", "params": dict(params or {}), **model}
    return Config.model_validate({"models": {"org/m": entry}}).spec("org/m")


def build(
    model: ModelSpec | None = None,
    placement: Mapping[str, int] = GPU,
    *,
    using: BinaryInfo | None = None,
    env: Mapping[str, str] | None = None,
    pooling: str | None = None,
) -> Command:
    return build_command(using or binary(), model or spec(), placement, 8085, "the-key", env or {}, pooling)


def value(command: Command, flag: str) -> str:
    assert command.argv.count(flag) == 1, f"{flag} in {command.argv}"
    return command.argv[command.argv.index(flag) + 1]


def without(flag: str) -> BinaryInfo:
    full = binary()
    return BinaryInfo(full.path, full.version, full.flags - {flag}, full.identity, full.switches)


# --- the help text


def test_help_yields_every_spelling_of_a_flag() -> None:
    flags = parse_help(HELP)
    assert {"-ngl", "--gpu-layers", "--n-gpu-layers", "-c", "--ctx-size", "--no-webui", "--version"} <= flags


def test_help_leaves_out_flags_that_were_removed() -> None:
    assert "--draft-max" not in parse_help(HELP)
    assert "--spec-draft-n-max" in parse_help(HELP)


def test_words_in_descriptions_are_no_flags() -> None:
    text = "-t,    --threads N                      as --made-up does\n       --indented N   more\n"
    assert parse_help(text) == {"-t", "--threads"}


def test_switches_are_the_flags_without_a_value() -> None:
    switches = parse_switches(HELP)
    assert {"--offline", "--jinja", "--embeddings", "--no-ui"} <= switches
    assert not {"-fa", "--log-colors", "-c", "--device", "--pooling", "-sm", "-fit"} & switches


def test_version_is_found_between_the_lines_of_gpu_libraries() -> None:
    text = "ggml_cuda_init: found 1 CUDA devices:\nversion: 4567 (abc1234)\nbuilt with cc\n"
    assert parse_version(text) == "4567 (abc1234)"
    assert parse_version("no such line") == "unknown"


# --- the command line


def test_context_is_per_request_times_slots() -> None:
    command = build(spec({"n_ctx": 2048}, parallel_requests=3))
    assert value(command, "-c") == "6144"
    assert value(command, "-np") == "3"
    assert value(command, "--threads-http") == "11"


def test_everything_that_llama_server_would_choose_itself_is_said() -> None:
    command = build()
    expected = {
        "-m": "/models/m.gguf",
        "--alias": "org/m",
        "--host": "127.0.0.1",
        "--port": "8085",
        "-ngl": "999",
        "-t": "8",
        "-tb": "8",
        "--cache-ram": "1024",
        "-lv": "4",
        "--log-colors": "off",
        "--sse-ping-interval": "5",
        "-fa": "on",
        "-ctk": "f16",
        "-ctv": "f16",
    }
    assert {flag: value(command, flag) for flag in expected} == expected
    assert {"--offline", "--jinja", "--metrics"} <= set(command.argv)
    assert not {"--no-ui", "--no-webui"} & set(command.argv)  # the page has a link to it
    assert "--fit" not in command.argv


def test_some_layers_are_said_as_they_are() -> None:
    assert value(build(spec({"n_gpu_layers": 20})), "-ngl") == "20"


@pytest.mark.parametrize("placement", [{}, {"host": 500}])
def test_without_a_gpu_no_device_is_touched(placement: dict[str, int]) -> None:
    command = build(placement=placement)
    assert value(command, "-ngl") == "0"
    assert value(command, "--device") == "none"
    assert command.env["CUDA_VISIBLE_DEVICES"] == ""


def test_cpu_only_stays_off_the_gpu_whatever_the_placement() -> None:
    command = build(spec({"n_gpu_layers": -1}), GPU)
    assert value(command, "-ngl") == "0"
    assert command.env["CUDA_VISIBLE_DEVICES"] == ""


def test_several_gpus_share_in_proportion_to_the_placement() -> None:
    command = build(placement={"2": 6000, "0": 3000, "host": 100})
    assert value(command, "--split-mode") == "layer"
    assert value(command, "--tensor-split") == "6000,3000"
    assert command.env["CUDA_VISIBLE_DEVICES"] == "2,0"
    assert command.env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_one_gpu_needs_no_split() -> None:
    command = build(placement={"GPU-1234-abcd": 3000})
    assert "--tensor-split" not in command.argv
    assert command.env["CUDA_VISIBLE_DEVICES"] == "GPU-1234-abcd"


def test_devices_that_are_not_cudas_are_named_to_llama_server() -> None:
    command = build(placement={"Vulkan1": 3000})
    assert value(command, "--device") == "Vulkan1"
    assert "CUDA_VISIBLE_DEVICES" not in command.env


def test_embedding_batches_hold_the_longest_input() -> None:
    command = build(spec({"embedding": True, "n_ctx": 2048}, parallel_requests=2))
    assert "--embedding" in command.argv or "--embeddings" in command.argv
    assert value(command, "-b") == value(command, "-ub") == "2048"


def test_embedding_batches_have_a_ceiling_and_obey_the_configuration() -> None:
    huge = build(spec({"embedding": True, "n_ctx": 131072}))
    assert value(huge, "-ub") == str(MAX_INPUT_BATCH)
    told = build(spec({"embedding": True, "n_ctx": 4096, "n_ubatch": 512, "n_batch": 1024}))
    assert (value(told, "-b"), value(told, "-ub")) == ("1024", "512")


def test_chat_batches_are_left_alone() -> None:
    command = build()
    assert "-b" not in command.argv and "-ub" not in command.argv


def test_llama_server_is_told_how_to_pool_only_where_that_was_chosen() -> None:
    model = spec({"embedding": True})
    assert "--pooling" not in build(model).argv
    assert value(build(model, pooling="mean"), "--pooling") == "mean"


def test_rerank_projector_and_template_are_passed() -> None:
    assert "--rerank" in build(spec({"rerank": True})).argv
    command = build(spec({"mmproj": "/models/p.gguf", "chat_template": "chatml"}))
    assert value(command, "--mmproj") == "/models/p.gguf"
    assert command.argv.index("--jinja") < command.argv.index("--chat-template")


def test_extra_args_come_last() -> None:
    assert build(spec(extra_args=["--no-warmup", "-t", "3"])).argv[-3:] == ("--no-warmup", "-t", "3")


# --- other builds


def test_an_unknown_flag_is_left_out() -> None:
    assert "--sse-ping-interval" not in build(using=without("--sse-ping-interval")).argv


@pytest.mark.parametrize("flag", ["--port", "--api-key", "-np"])
def test_a_missing_essential_flag_is_an_error_that_names_it(flag: str) -> None:
    spellings = {"-np": "--parallel"}
    lacking = without(flag)
    lacking = BinaryInfo(
        lacking.path, lacking.version, lacking.flags - {spellings.get(flag, flag)}, "id", lacking.switches
    )
    with pytest.raises(CommandError, match=rf"b1.*{flag}"):
        build(using=lacking)


def test_an_old_build_gets_the_old_spellings() -> None:
    old = HELP.replace("--flash-attn [on|off|auto]       set", "--flash-attn                      set")
    old = old.replace("--log-colors [on|off|auto] ", "--log-colors               ")
    old = old.replace("--embedding, --embeddings ", "--embedding               ")
    command = build(spec({"embedding": True}), using=binary(old))
    assert command.argv[command.argv.index("-fa") + 1].startswith("-")
    assert "--log-colors" not in command.argv
    assert "--embedding" in command.argv


# --- the environment


def test_the_key_is_in_the_environment_and_nowhere_else() -> None:
    command = build()
    assert command.env["LLAMA_API_KEY"] == "the-key"
    assert not any("the-key" in arg for arg in command.argv)


NEEDED = {
    "PATH": "/bin",
    "HOME": "/root",
    "LD_LIBRARY_PATH": "/lib",
    "LC_ALL": "C.UTF-8",
    "CUDA_VISIBLE_DEVICES": "0",
    "GGML_VK_VISIBLE_DEVICES": "0",
    "HSA_OVERRIDE_GFX_VERSION": "10.3.0",
    "VK_ICD_FILENAMES": "x",
    "OMP_NUM_THREADS": "4",
    "SystemRoot": "x",
}
NOT_NEEDED = (
    "LLAMA_ARG_CTX_SIZE", "LLAMA_LOG_FILE", "ROUTER_API__PORT", "OPENAI_API_KEY", "HF_TOKEN", "db_password",
    "DATABASE_URL", "SMTP_PASS", "ORACLE_PWD", "GITHUB_PAT", "npm_config__authToken", "PGPASSFILE",
    "http_proxy", "SSH_AUTH_SOCK", "NVIDIA_API_KEY", "GPU_CLOUD_TOKEN", "INTEL_PASSWORD", "LESSOPEN",
)  # fmt: skip


def test_a_child_gets_what_it_needs_and_nothing_else() -> None:
    env = build(placement={}, env={**NEEDED, **dict.fromkeys(NOT_NEEDED, "x")}).env
    assert NEEDED.keys() <= env.keys()
    assert not env.keys() & set(NOT_NEEDED)


def test_the_models_own_environment_wins() -> None:
    env = build(spec(env={"CUDA_VISIBLE_DEVICES": "7", "HF_TOKEN": "meant"}), env={"HF_TOKEN": "x"}).env
    assert env["CUDA_VISIBLE_DEVICES"] == "7"
    assert env["HF_TOKEN"] == "meant"


def test_the_child_protocol_is_on_and_the_debugger_off() -> None:
    env = build().env
    assert env["LLAMA_SERVER_ROUTER_PORT"].isdigit()
    assert env["GGML_NO_BACKTRACE"] == "1"
