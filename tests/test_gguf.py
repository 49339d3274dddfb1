"""The header reader: what it finds, what it refuses, and that nothing hostile gets through."""

from __future__ import annotations

import gc
import os
import struct
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.gguf import header, header_parser
from app.gguf.header import GgufError, read_header
from tests.ggufs import make_architecture, make_tiny, make_vocab_header
from tests.patience import is_ever
from tests.tiny_models import make_fill_in

MIB = 1 << 20


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(autouse=True)
def no_cache() -> Iterator[None]:
    header._read_model.cache_clear()
    yield


def preamble(tensors: int = 0, keys: int = 0, version: int = 3, magic: bytes = b"GGUF") -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, keys)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def refused(path: Path, content: bytes) -> str:
    """The complaint about a file with this content."""
    path.write_bytes(content)
    with pytest.raises(GgufError) as error:
        read_header(path)
    assert path.name in str(error.value)
    return str(error.value)


# What it finds


def test_a_header_tells_what_the_model_is(tiny: Path) -> None:
    header = read_header(tiny)
    assert (header.architecture, header.name) == ("llama", "tiny-random")
    assert (header.context_length, header.block_count) == (4096, 2)
    assert not header.is_embedding and header.pooling_type is None
    assert header.file_size == tiny.stat().st_size
    assert header.parts == (tiny,)


@pytest.mark.parametrize("name", ["gptoss", "bert"])
def test_tensor_sizes_agree_with_the_gguf_package(name: str, tmp_path: Path) -> None:
    path = make_architecture(name, tmp_path / "model.gguf")
    theirs = {tensor.name: int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors}
    assert {tensor.name: tensor.n_bytes for tensor in read_header(path).tensors.values()} == theirs


def test_the_layouts_of_all_types_agree_with_the_gguf_package() -> None:
    theirs = {int(number): layout for number, layout in gguf.GGML_QUANT_SIZES.items()}
    ours = {number: tuple(layout) for number, layout in header_parser.TENSOR_LAYOUTS.items()}
    assert {number: ours[number] for number in ours if number in theirs} == theirs


def test_short_arrays_are_kept_and_long_ones_only_counted(tmp_path: Path) -> None:
    header = read_header(make_architecture("jamba", tmp_path / "jamba.gguf"))
    assert header.value("attention.head_count_kv") == (0, 0, 0, 2) * 2
    assert "tokenizer.ggml.tokens" not in header.metadata
    assert header.array_lengths["tokenizer.ggml.tokens"] == 32000


def test_a_mark_of_infill_is_found_in_short_and_long_vocabularies(tiny: Path, tmp_path: Path) -> None:
    assert not read_header(tiny).has_infill_mark
    assert read_header(make_fill_in(tmp_path / "fill.gguf")).has_infill_mark
    words = [f"token{index}" for index in range(header_parser.MAX_KEPT_ARRAY + 1)]
    for number, (last, found) in enumerate(
        [("<\uff5cfim\u2581begin\uff5c>", True), ("a <|fim_prefix|>", False)]
    ):
        writer = gguf.GGUFWriter(tmp_path / f"{number}.gguf", "llama")
        writer.add_token_list([*words, last])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        assert read_header(tmp_path / f"{number}.gguf").has_infill_mark is found


def test_an_encoder_is_an_embedding_model(tmp_path: Path) -> None:
    header = read_header(make_architecture("bert", tmp_path / "bert.gguf"))
    assert header.is_embedding and header.pooling_type == 2


def test_pooling_metadata_make_a_decoder_an_embedding_model(tmp_path: Path) -> None:
    header = read_header(make_tiny(tmp_path / "embedder.gguf", pooling_type=3))
    assert header.is_embedding
    assert not read_header(make_tiny(tmp_path / "chat.gguf", pooling_type=0)).is_embedding


def test_a_model_without_a_name_is_called_like_its_file(tmp_path: Path) -> None:
    path = tmp_path / "nameless.gguf"
    path.write_bytes(preamble(keys=1) + text("general.architecture") + struct.pack("<I", 8) + text("llama"))
    assert read_header(path).name == "nameless"


def test_a_type_of_the_future_is_measured_by_its_offsets(tmp_path: Path) -> None:
    key = text("general.architecture") + struct.pack("<I", 8) + text("llama")
    infos = (
        text("new") + struct.pack("<IQIQ", 1, 320, 99, 0) + text("old") + struct.pack("<IQIQ", 1, 8, 0, 64)
    )
    head = preamble(tensors=2, keys=1) + key + infos
    path = tmp_path / "future.gguf"
    path.write_bytes(head + bytes(-len(head) % 32) + bytes(64 + 32))
    sizes = {tensor.name: tensor.n_bytes for tensor in read_header(path).tensors.values()}
    assert sizes == {"new": 64, "old": 32}


# Split models


@pytest.fixture
def split(tmp_path: Path) -> list[Path]:
    writer = gguf.GGUFWriter(tmp_path / "big.gguf", "llama", split_max_tensors=2)
    for index in range(5):
        writer.add_tensor(f"tensor{index}", np.zeros(64, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(tmp_path.glob("big-*.gguf"))


def test_the_parts_of_a_split_model_count_as_one(split: list[Path]) -> None:
    header = read_header(split[0])
    assert [part.name for part in header.parts] == [f"big-0000{part}-of-00003.gguf" for part in (1, 2, 3)]
    assert header.file_size == sum(part.stat().st_size for part in split)
    assert set(header.tensors) == {f"tensor{index}" for index in range(5)}


def test_a_missing_part_is_named(split: list[Path]) -> None:
    read_header(split[0])
    split[1].unlink()
    with pytest.raises(GgufError, match=split[1].name):
        read_header(split[0])


def test_a_later_part_names_the_first_one(split: list[Path]) -> None:
    with pytest.raises(GgufError, match=split[0].name):
        read_header(split[2])


def test_a_part_that_was_renamed_is_refused(split: list[Path]) -> None:
    renamed = split[0].rename(split[0].with_name("model.gguf"))
    with pytest.raises(GgufError, match="3 parts"):
        read_header(renamed)


def test_a_damaged_part_is_named(split: list[Path]) -> None:
    os.truncate(split[2], split[2].stat().st_size - 200)
    with pytest.raises(GgufError, match=rf"{split[2].name}.*cut off"):
        read_header(split[0])


# The cache


def test_an_unchanged_file_is_read_once(tiny: Path) -> None:
    assert read_header(tiny) is read_header(tiny)


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = make_tiny(tmp_path / "model.gguf", name="old")
    read_header(path)
    make_tiny(path, name="new")
    os.utime(path, ns=(1, 1))
    assert read_header(path).name == "new"


def test_the_cache_is_bounded() -> None:
    assert header._read_model.cache_parameters()["maxsize"] == header.CACHED_HEADERS


# What it refuses


def test_a_missing_file_stays_a_file_not_found_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_header(tmp_path / "none.gguf")


def test_a_folder_and_a_pipe_are_refused_without_opening_them(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    for path in (tmp_path, tmp_path / "pipe.gguf"):
        with pytest.raises(GgufError, match="regular file"):
            read_header(path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        pytest.param(b"", "empty", id="empty"),
        pytest.param(b"<html>404 not found</html>", "not a GGUF", id="a web page"),
        pytest.param(preamble(version=1), "version 1", id="too old"),
        pytest.param(b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 50331648", id="big-endian"),
        pytest.param(preamble()[:10], "cut off", id="cut off in the counts"),
        pytest.param(preamble(tensors=2**63), "not plausible", id="huge tensor count"),
        pytest.param(preamble(keys=2**63), "not plausible", id="huge key count"),
        pytest.param(preamble(keys=1) + struct.pack("<Q", 2**62), "not plausible", id="huge string"),
        pytest.param(preamble(keys=1) + struct.pack("<Q", 2**20), "cut off", id="string beyond the end"),
        pytest.param(
            preamble(keys=1) + text("k") + struct.pack("<I", 77), "unknown type 77", id="unknown type"
        ),
        pytest.param(
            preamble(keys=1) + text("k") + struct.pack("<IIQ", 9, 9, 1), "unknown type 9", id="nested array"
        ),
        pytest.param(
            preamble(keys=1) + text("k") + struct.pack("<IIQ", 9, 8, 2**60), "cut off", id="endless words"
        ),
        pytest.param(
            preamble(keys=1) + text("k") + struct.pack("<IIQQ", 9, 8, 5000, 2**64 - 1),
            "cut off",
            id="huge word",
        ),
        pytest.param(
            preamble(keys=1) + text("k") + struct.pack("<IIQ", 9, 10, 2**61), "cut off", id="endless numbers"
        ),
        pytest.param(
            preamble(tensors=1) + text("t") + struct.pack("<I", 9), "9 dimensions", id="too many dimensions"
        ),
        pytest.param(
            preamble(tensors=1) + text("t") + struct.pack("<IQQIQ", 2, 2**60, 2**60, 0, 0),
            "beyond the end",
            id="tensor larger than the file",
        ),
        pytest.param(
            preamble(keys=1) + text("general.alignment") + struct.pack("<II", 4, 0),
            "alignment",
            id="no alignment",
        ),
        pytest.param(preamble(), "no architecture", id="no architecture"),
    ],
)
def test_a_bad_file_is_refused_with_its_reason(content: bytes, complaint: str, tmp_path: Path) -> None:
    assert complaint in refused(tmp_path / "bad.gguf", content)


def test_a_truncated_download_is_called_that(tiny: Path, tmp_path: Path) -> None:
    whole = tiny.read_bytes()
    assert "beyond the end of the file; its download was cut off" in refused(
        tmp_path / "cut.gguf", whole[:-1000]
    )


def test_a_header_that_never_ends_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header_parser, "MAX_HEADER_BYTES", 2 * MIB)
    path = tmp_path / "endless.gguf"
    path.write_bytes(preamble(keys=1) + text("k") + struct.pack("<IIQ", 9, 8, 2**40))
    os.truncate(path, 1 << 40)  # sparse: empty words without end
    with pytest.raises(GgufError, match="more than 2 MB"):
        read_header(path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keep=st.floats(0, 1), flips=st.lists(st.tuples(st.floats(0, 0.05), st.integers(0, 255)), max_size=8))
def test_damage_anywhere_gives_a_header_or_a_gguf_error(
    tiny: Path, tmp_path: Path, keep: float, flips: list[tuple[float, int]]
) -> None:
    content = bytearray(tiny.read_bytes())
    for place, value in flips:
        content[int(place * (len(content) - 1))] = value
    del content[int(keep * len(content)) :]
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)

    def read() -> None:
        try:
            header._read_model.__wrapped__((header._part(path, path),))
        except GgufError as error:
            assert path.name in str(error)

    assert is_ever(lambda: cpu_s(read) < 2)


# What it costs


def cpu_s(call: Callable[[], object]) -> float:
    """What others do on the machine meanwhile does not count."""
    begun = time.thread_time()
    call()
    return time.thread_time() - begun


def look_once_at_each_word(data: bytes, words: int) -> None:
    """No reader in Python can do less."""
    length_at = struct.Struct("<I").unpack_from
    for position in range(words):
        length_at(data, position)


def test_a_large_vocabulary_is_read_quickly_and_in_little_memory(tmp_path: Path) -> None:
    path = make_vocab_header(tmp_path / "vocabulary.gguf", 262_144)
    cheapest_s, times_s = [], []
    for _ in range(7):
        cheapest_s.append(cpu_s(partial(look_once_at_each_word, path.read_bytes(), 262_144)))
        header._read_model.cache_clear()
        times_s.append(cpu_s(lambda: read_header(path)))
    assert read_header(path).array_lengths["tokenizer.ggml.tokens"] == 262_144
    assert min(times_s) < 4 * min(cheapest_s)  # 1.4 times; with the gguf package hundreds of times

    header._read_model.cache_clear()
    tracemalloc.start()
    try:
        read_header(path)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4 * path.stat().st_size


def test_the_event_loop_is_not_held_up_by_a_large_vocabulary(tmp_path: Path) -> None:
    """Between two steps of its thread the interpreter may be taken from it: no step is long."""
    path = make_vocab_header(tmp_path / "vocabulary.gguf", 262_144)
    assert is_ever(lambda: longest_step_s(partial(read_anew, path)) < 0.02)


def read_anew(path: Path) -> None:
    header._read_model.cache_clear()
    read_header(path)


def longest_step_s(work: Callable[[], None]) -> float:
    """The most processor time between two lines of Python: of this thread, so that no other work is in it."""
    last_s, longest_s = 0.0, 0.0

    def look(frame: FrameType, event: str, arg: object) -> Callable[..., Any]:
        nonlocal last_s, longest_s
        longest_s = max(longest_s, time.thread_time() - last_s)
        last_s = time.thread_time()
        return look

    gc.disable()  # the router's has little to look at, this one's all tests
    last_s = time.thread_time()
    sys.settrace(look)
    try:
        work()
    finally:
        sys.settrace(None)
        gc.enable()
    return max(longest_s, time.thread_time() - last_s)
