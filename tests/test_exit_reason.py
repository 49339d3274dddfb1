"""What is made of a dead llama-server's last words. `data/logs` holds real ones, each provoked once."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.llama.exit_reason import TAIL_LINES, FailureKind, classify, of_exit_alone

LOGS = Path(__file__).parent / "data" / "logs"

REAL = {
    "missing": (FailureKind.MISSING_FILE, "/nowhere/missing.gguf"),
    "no_permission": (FailureKind.MISSING_FILE, "Permission denied"),
    "mmproj_missing": (FailureKind.MISSING_FILE, "/nowhere/p.gguf"),
    "mmproj_wrong": (FailureKind.BAD_MODEL, "projector tiny.gguf"),
    "truncated": (FailureKind.BAD_MODEL, "incomplete"),
    "truncated_header": (FailureKind.BAD_MODEL, "failed to read key-value pairs"),
    "not_gguf": (FailureKind.BAD_MODEL, "'hell'"),
    "empty": (FailureKind.BAD_MODEL, "failed to read magic"),
    "unknown_arch": (FailureKind.BAD_MODEL, "zlama"),
    "bad_flag": (FailureKind.BAD_FLAG, "--definitely-not-a-flag"),
    "bad_value": (FailureKind.BAD_FLAG, "-c: stoi"),
    "bad_enum": (FailureKind.BAD_FLAG, "banana"),
    "missing_value": (FailureKind.BAD_FLAG, "expected value"),
    "removed_flag": (FailureKind.BAD_FLAG, "has been removed"),
    "bad_device": (FailureKind.BAD_FLAG, "CUDA7"),
    "bad_template": (FailureKind.BAD_FLAG, "chat_template"),
    "quantised_v_without_flash_attention": (FailureKind.BAD_FLAG, "flash attention"),
    "port_taken": (FailureKind.PORT_TAKEN, "23003"),
    "oom_kv_cache": (FailureKind.OUT_OF_MEMORY, "12207 MiB"),
    "oom_compute": (FailureKind.OUT_OF_MEMORY, "2 MiB"),
    "oom_weights": (FailureKind.OUT_OF_MEMORY, "AMX buffer"),
    "oom_thread": (FailureKind.OUT_OF_MEMORY, "temporarily unavailable"),
    "missing_library": (FailureKind.BAD_BINARY, "libllama-server-impl.so"),
}


def lines_of(name: str) -> list[str]:
    return (LOGS / f"{name}.txt").read_text().splitlines()


@pytest.mark.parametrize("name", sorted(REAL))
def test_a_real_log_names_its_cause(name: str) -> None:
    kind, words = REAL[name]
    failure = classify(1, lines_of(name))
    assert failure.kind is kind
    assert words in failure.message


def test_the_table_covers_every_stored_log() -> None:
    stored = {path.stem for path in LOGS.glob("*.txt")}
    assert stored == set(REAL) | {"sigkill", "load_ready"}


def test_a_kill_from_outside_is_not_blamed_on_the_log() -> None:
    assert classify(-9, lines_of("sigkill")).kind is FailureKind.KILLED
    assert classify(-9, lines_of("oom_kv_cache")).kind is FailureKind.KILLED
    assert classify(137, lines_of("sigkill")).kind is FailureKind.KILLED


def test_a_log_that_lost_its_end_is_worth_another_try() -> None:
    whole = lines_of("unknown_arch")
    cause = next(n for n, line in enumerate(whole) if "unknown model architecture" in line)
    assert classify(1, whole[:cause]).kind is FailureKind.CUT_SHORT
    assert classify(1, whole[: cause + 1]).kind is FailureKind.BAD_MODEL
    assert classify(1, []).kind is FailureKind.CUT_SHORT


def test_a_healthy_log_holds_no_cause() -> None:
    failure = classify(2, lines_of("load_ready"))
    assert failure.kind is FailureKind.UNKNOWN
    assert "exit code 2" in failure.message


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        # As llama.cpp's source writes them; not provoked here.
        ("ggml_backend_cuda_buffer_type_alloc_buffer: allocating 21504.00 MiB on device 0: "
         "cudaMalloc failed: out of memory", FailureKind.OUT_OF_MEMORY),
        ("CUDA error: out of memory", FailureKind.OUT_OF_MEMORY),
        ("terminate called after throwing an instance of 'std::bad_alloc'", FailureKind.OUT_OF_MEMORY),
        ("E llama_model_load: error loading model: missing tensor 'output_norm'", FailureKind.BAD_MODEL),
        ("server: /lib/libc.so.6: version `GLIBC_2.38' not found (required by x)", FailureKind.BAD_BINARY),
    ],
)  # fmt: skip
def test_a_line_names_a_cause(line: str, kind: FailureKind) -> None:
    assert classify(-6, ["noise", line, "main: exiting due to model loading error"]).kind is kind


def test_words_that_every_failing_log_contains_decide_nothing() -> None:
    common = [
        "W common_fit_params: failed to fit params to free device memory: abort",
        "E llama_model_load_from_file_impl: failed to load model",
        "E srv  llama_server: exiting due to model loading error",
    ]
    assert classify(1, common).kind is FailureKind.UNKNOWN


def test_the_last_cause_wins() -> None:
    old = lines_of("missing")
    assert classify(1, [*old, *lines_of("port_taken")]).kind is FailureKind.PORT_TAKEN


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (-11, FailureKind.UNKNOWN, "SIGSEGV"),
        (-4, FailureKind.BAD_BINARY, "processor"),
        (127, FailureKind.BAD_BINARY, "llama_server_path"),
        (0, FailureKind.CUT_SHORT, "without an error"),
        (3, FailureKind.UNKNOWN, "exit code 3"),
        (0xC0000005, FailureKind.UNKNOWN, "exit code"),
    ],
)
def test_without_a_word_the_code_decides(code: int, kind: FailureKind, words: str) -> None:
    failure = classify(code, ["all slots are idle"])
    assert failure.kind is kind
    assert words in failure.message
    assert failure.exit_code == code


@pytest.mark.parametrize("name", sorted(REAL))
def test_after_the_load_no_line_is_a_cause(name: str) -> None:
    failure = of_exit_alone(1, lines_of(name))
    assert (failure.kind, failure.message) == (
        FailureKind.UNKNOWN,
        "llama-server ended with exit code 1. Its log may tell why.",
    )


@pytest.mark.parametrize(
    ("code", "kind"), [(-9, FailureKind.KILLED), (-4, FailureKind.BAD_BINARY), (-6, FailureKind.UNKNOWN)]
)
def test_after_the_load_the_signal_still_tells(code: int, kind: FailureKind) -> None:
    failure = of_exit_alone(code, ["SECRET"])
    assert failure.kind is kind
    assert "SECRET" not in failure.message


@pytest.mark.parametrize(("code", "kind"), [(1, FailureKind.KILLED), (-6, FailureKind.UNKNOWN)])
def test_told_twice_to_end_excuses_the_requests_unless_it_crashed(code: int, kind: FailureKind) -> None:
    log = ["Received second interrupt, terminating immediately.", "slot print_timing: id 0"]
    assert of_exit_alone(code, log).kind is kind


def test_a_failure_without_any_output_is_still_a_failure() -> None:
    assert classify(1, []).log_tail == ()


def test_the_tail_is_short() -> None:
    assert len(classify(1, ["x"] * 500).log_tail) == TAIL_LINES


def test_only_what_may_pass_by_itself_is_tried_again() -> None:
    healing = {kind for kind in FailureKind if kind.may_heal}
    assert healing == {
        FailureKind.OUT_OF_MEMORY,
        FailureKind.PORT_TAKEN,
        FailureKind.TIMEOUT,
        FailureKind.KILLED,
        FailureKind.OUT_OF_FILES,
        FailureKind.CUT_SHORT,
    }
