"""How an embedding model's vectors are pooled, and who decides it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.core.config import Config
from app.domain.model_spec import ModelSpec
from app.gguf.header import Pooling, read_header
from app.llama.pooling import PoolingChoice, choose_pooling
from tests.ggufs import make_tiny


def spec(params: dict[str, Any], **model: Any) -> ModelSpec:
    entry = {"model_path": "/models/m.gguf", "params": params, **model}
    return Config.model_validate({"models": {"m": entry}}).spec("m")


def choice(
    folder: Path, said: int | None, params: dict[str, Any] | None = None, **model: Any
) -> PoolingChoice:
    metadata: dict[str, Any] = {} if said is None else {"pooling_type": said}
    header = read_header(make_tiny(folder / "m.gguf", **metadata))
    return choose_pooling(spec({"embedding": True} if params is None else params, **model), header)


@pytest.mark.parametrize("said", Pooling)
def test_the_file_decides_and_llama_server_reads_it_itself(tmp_path: Path, said: Pooling) -> None:
    found = choice(tmp_path, said.value)
    assert (found.used, found.flag) == (said.flag, None)
    assert "the file says so" in str(found)


def test_the_mean_is_for_files_that_say_nothing(tmp_path: Path) -> None:
    found = choice(tmp_path, None)
    assert (found.used, found.flag) == ("mean", "mean")
    assert "the file says nothing" in str(found)


def test_a_type_that_is_not_known_yet_is_left_to_llama_server(tmp_path: Path) -> None:
    found = choice(tmp_path, 17)
    assert (found.used, found.flag) == (None, None)
    assert "17" in str(found)


def test_without_a_header_llama_server_decides() -> None:
    found = choose_pooling(spec({"embedding": True}), None)
    assert (found.used, found.flag) == (None, None)


@pytest.mark.parametrize("said", [None, 3])
def test_the_configuration_overrides_the_file(tmp_path: Path, said: int | None) -> None:
    found = choice(tmp_path, said, {"embedding": True, "pooling": "cls"})
    assert (found.used, found.flag, found.source) == ("cls", "cls", "params.pooling")


@pytest.mark.parametrize("said", [None, 3])
def test_what_the_user_tells_llama_server_is_not_overridden(tmp_path: Path, said: int | None) -> None:
    by_flag = choice(tmp_path, said, extra_args=["--pooling", "mean", "--no-mmap", "--pooling", "cls"])
    assert (by_flag.used, by_flag.flag, by_flag.source) == ("cls", None, "extra_args")
    by_variable = choice(tmp_path, said, env={"LLAMA_ARG_POOLING": "cls"})
    assert (by_variable.used, by_variable.flag, by_variable.source) == ("cls", None, "env.LLAMA_ARG_POOLING")


def test_an_argument_counts_before_a_setting_and_a_setting_before_the_environment(tmp_path: Path) -> None:
    both: dict[str, Any] = {"extra_args": ["--pooling", "last"], "env": {"LLAMA_ARG_POOLING": "mean"}}
    assert choice(tmp_path, None, {"embedding": True, "pooling": "cls"}, **both).used == "last"
    del both["extra_args"]
    assert choice(tmp_path, None, {"embedding": True, "pooling": "cls"}, **both).used == "cls"


def test_a_reranker_ranks_and_a_chat_model_is_left_alone(tmp_path: Path) -> None:
    assert choice(tmp_path, None, {"rerank": True}).used == "rank"
    assert choice(tmp_path, None, {}).flag is None
    assert choice(tmp_path, None, {"rerank": True}).flag is None


def test_no_pooling_comes_with_the_advice_to_choose_one(tmp_path: Path) -> None:
    assert "set params.pooling" in str(choice(tmp_path, 0))
    assert "set params.pooling" not in str(choice(tmp_path, 2))
