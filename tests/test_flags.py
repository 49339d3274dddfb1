"""The table of flags against the command lines that are made of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.core.config import Config, SystemConfig
from app.domain.model_spec import ModelParams, ModelSpec
from app.llama.command_line import BinaryInfo, Command, build_command, parse_help, parse_switches
from app.llama.flags import FLAGS, VARIABLES, Flag
from tools import flag_reference

HELP = (Path(__file__).parent / "data" / "llama_server_help.txt").read_text()
SWITCHES = parse_switches(HELP)
BINARY = BinaryInfo(Path("/bin/llama-server"), "b1", parse_help(HELP), "id", SWITCHES)
EVERYTHING: dict[str, Any] = {
    "mmproj": "/models/p.gguf",
    "chat_template": "chatml",
    "n_batch": 64,
    "n_ubatch": 32,
    "type_k": "q8_0",
}
PARAMS: list[dict[str, Any]] = [{}, EVERYTHING, {"embedding": True}, {"rerank": True}, {"n_gpu_layers": -1}]
PLACEMENTS: list[dict[str, int]] = [{}, {"host": 1}, {"0": 1}, {"0": 1, "1": 2}, {"Vulkan0": 1, "Vulkan1": 1}]


def spec(params: dict[str, Any], **model: Any) -> ModelSpec:
    entry = {"model_path": "/models/m.gguf", "params": params, **model}
    return Config.model_validate({"models": {"m": entry}}).spec("m")


def build(model: ModelSpec, placement: dict[str, int], pooling: str | None = None) -> Command:
    return build_command(BINARY, model, placement, 8085, "key", {"HOME": "/root"}, pooling, Path("/slots"))


def commands() -> Iterator[Command]:
    for params in PARAMS:
        for placement in PLACEMENTS:
            yield build(spec(params), placement, "mean" if "embedding" in params else None)


def written(command: Command) -> set[str]:
    """The flags on the command line, without their values."""
    found, rest = set(), list(command.argv[1:])
    while rest:
        found.add(flag := rest.pop(0))
        if flag not in SWITCHES:
            rest.pop(0)
    return found


def flag_of(name: str) -> Flag:
    return next(flag for flag in FLAGS if name in flag.names)


def test_nothing_is_on_a_command_line_that_is_not_in_the_table() -> None:
    known = {name for flag in FLAGS for name in flag.names}
    assert set().union(*map(written, commands())) - known == set()


def test_nothing_is_in_the_table_that_is_on_no_command_line() -> None:
    used = set().union(*map(written, commands()))
    assert [flag.names for flag in FLAGS if not used.intersection(flag.names)] == []


def test_no_variable_is_set_that_is_not_in_the_table() -> None:
    known = {variable.name for variable in VARIABLES if variable.value}
    told = set().union(*(command.env for command in commands())) - {"HOME"}
    assert told == known


def test_every_flag_says_what_it_does_to_answers_and_who_decides_it() -> None:
    keys = {f"params.{name}" for name in ModelParams.model_fields}
    keys |= {f"system.{name}" for name in SystemConfig.model_fields}
    keys |= {"", "models.{alias}", "model_path", "parallel_requests", "gpu_devices", "keep_cache"}
    for flag in FLAGS:
        assert flag.effect, flag.names
        assert flag.setting in keys, flag.names


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.names[0])
def test_llama_server_knows_the_flag_and_its_variable(flag: Flag) -> None:
    entry = next(e for e in re.split(r"\n(?=-)", HELP) if flag.names[0] in re.split(r"[,\s]+", e))
    if flag.variable and flag.names[0] != "-tb":  # without one of its own, `-tb` is what `-t` is
        assert f"(env: {flag.variable})" in entry


@pytest.mark.parametrize("flag", [flag for flag in FLAGS if flag.variable], ids=lambda flag: flag.names[0])
def test_a_variable_that_the_user_sets_is_not_overruled(flag: Flag) -> None:
    params = {"embedding": True}
    assert written(build(spec(params), {})).intersection(flag.names)
    model = spec(params, env={flag.variable: "7"})
    command = build(model, {})
    assert not written(command).intersection(flag.names)
    assert command.env[flag.variable] == "7"


def test_a_setting_counts_before_the_variable_as_an_argument_does() -> None:
    model = spec({"embedding": True, "n_ubatch": 64, "type_k": "f16"}, env={"LLAMA_ARG_UBATCH": "7"})
    assert "-ub" in written(build(model, {}))


def test_the_document_shows_the_table() -> None:
    text = flag_reference.DOCUMENT.read_text(encoding="utf-8")
    shown = text.partition(flag_reference.BEGIN + "\n")[2].partition(flag_reference.END)[0]
    assert shown == flag_reference.reference(), "run: python -m tools.flag_reference"
