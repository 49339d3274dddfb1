"""Where each thing that was recorded of a real Ollama is compared with the router, or why it is not.

The record has sections with rows; each stands here once. What is named: a row of `tests/ollama_rows.py` (by
the beginning of its id), a test, or a line of the table of differences in docs/ollama.md (by its beginning).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.ollama_rows import ROWS

TESTS = Path(__file__).parent


class Seen(NamedTuple):
    rows: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()


def compared(*ids: str) -> Seen:
    return Seen(rows=ids)


def in_tests(*names: str) -> Seen:
    return Seen(tests=names)


def differs(*lines: str) -> Seen:
    return Seen(differs=lines)


FRAME: Mapping[str, Seen] = {
    "GET and HEAD of the root": compared("/ ", "/ HEAD"),
    "version, status": compared("version ", "version HEAD", "status "),
    "an unknown path": Seen(rows=("nope ", "/v1 "), differs=("an unknown path",)),
    "the wrong method": compared("chat with another method", "version with another method"),
    "a slash at the end": Seen(rows=("version/",), differs=("a slash at the end",)),
    "HEAD elsewhere": Seen(rows=("tags HEAD", "ps HEAD"), differs=("`HEAD /api/ps`",)),
    "errors are a text": compared("generate body", "chat body", "embed body", "embeddings body", "show body"),
    "errors of the inner server": differs("errors of the inner server"),
    "streams of lines": compared("chat streamed", "generate streamed", "generate stream null", "chat whole"),
    "nothing comes while one waits": in_tests("test_nothing_is_sent_while_one_waits"),
    "an error after the first line": in_tests(
        "test_an_error_in_a_stream_is_a_line_and_there_is_no_last_one",
        "test_a_stream_whose_process_dies_ends_with_an_error_line",
    ),
    "bodies that are none": compared(
        "generate body b''", "generate body b'{'", "generate body b'[]'", "generate null"
    ),
    "no model named": Seen(
        rows=("generate body b'{}'", "chat body b'{}'"), differs=("a model without a name",)
    ),
    "names that cannot be": Seen(rows=("chat the name 'a b'",), differs=("a name that cannot be one",)),
    "options of another type": compared(
        "chat options {'temperature': 'x'}", "embed an option of another type"
    ),
    "the waiting list is full": differs("`server busy`"),
    "the process dies before the first line": in_tests(
        "test_a_killed_model_under_32_requests_loses_only_the_answers_that_had_begun"
    ),
    "files that are gone or cut": Seen(
        rows=("chat a file that is gone", "chat a file that is cut", "chat a file without a header"),
        differs=("a model that cannot be loaded", "a model whose file is gone"),
    ),
    "unknown models": compared(
        *(f"{path} an unknown model" for path in ("chat", "generate", "embed", "embeddings", "show"))
    ),
    "field names in any case, text behind": Seen(
        rows=("chat names in any case", "generate text behind it"),
        differs=("text behind the JSON value", "half of a surrogate pair"),
    ),
    "content type and key are not looked at": Seen(
        rows=("chat no Content-Type", "chat another Content-Type", "chat an Authorization"),
        differs=("`Authorization` is ignored",),
    ),
    "origins": Seen(
        rows=(
            "tags from http://localhost",
            "show from app://",
            "chat from null",
            "chat from chrome-extension",
        ),
        differs=("any page of this machine",),
    ),
    "preflights": Seen(
        rows=(
            "chat before it from http://localhost",
            "chat before it from null",
            "chat OPTIONS without an origin",
        ),
        differs=("a preflight is answered by 204",),
    ),
    "hosts": compared(
        "version as localhost", "version as a.internal", "version as example.com", "version as 8.8.8.8"
    ),
    "its port": in_tests("test_a_second_port_serves_the_same"),
}
NAMES: Mapping[str, Seen] = {
    "parts and defaults": in_tests(
        "test_a_list_shows_every_name_with_a_tag", "test_the_address_of_a_library_is_left_out_of_a_name"
    ),
    "found in any case": Seen(
        rows=(
            "chat the name 'ONE'",
            "chat the name 'library/one'",
            "show the name ' one '",
            "chat another namespace",
        ),
        differs=("a name of another namespace",),
    ),
    "echoed as asked": in_tests(
        "test_names_of_one_model_share_a_process_and_each_answer_has_the_name_asked_for"
    ),
}
LISTS: Mapping[str, Seen] = {
    "tags": Seen(
        rows=("tags ",),
        tests=("test_the_configured_models_are_listed",),
        differs=("`digest` is that of a manifest", "times in the server's time zone"),
    ),
    "ps": Seen(rows=("ps ",), tests=("test_what_is_loaded_is_listed_with_the_time_when_it_goes",)),
    "show": Seen(
        rows=("show the model", "show by its old field", "show all of it", "show a system text"),
        differs=("`modelfile`, `parameters`", "`template` of `show`", "arrays of the header"),
    ),
}
GENERATE: Mapping[str, Seen] = {
    "lines and the last one": compared("generate streamed", "generate whole"),
    "no prompt": compared(
        "generate no prompt", "generate an image and no prompt", "generate an unknown model let go"
    ),
    "raw": compared("generate raw", "generate raw with system", "generate raw with context"),
    "context": Seen(rows=("generate a foreign context",), differs=("`context` holds tokens",)),
    "template": Seen(rows=("generate a broken template",), differs=("`template` in a request",)),
    "suffix": Seen(
        rows=("generate a suffix, no ability",),
        tests=("test_a_model_with_marks_of_infill_in_its_vocabulary_fills_in",),
    ),
    "images": Seen(
        rows=("generate an image, no ability", "generate an image that is none"),
        differs=("images with `raw`", "base 64 of an image"),
    ),
    "a model for vectors": compared("generate a model for vectors", "chat a model for vectors"),
    "think": compared("generate think, no ability", "generate think 'huge'", "generate think false"),
    "format": compared("generate format 'json'", "generate format 'xml'", "generate a schema that cannot"),
    "only rendered": Seen(rows=("generate only rendered",), differs=("`_debug_render_only`",)),
    "logprobs": compared("generate logprobs", "generate top_logprobs 21"),
    "equal tokens": differs("equal tokens 31 times"),
}
CHAT: Mapping[str, Seen] = {
    "messages": compared("chat messages [{'role': 'USER'", "chat messages [{'role': 'user', 'content': 5}]"),
    "no messages": compared("chat no messages", "chat let go"),
    "a last message of the assistant": differs("a last message of the assistant"),
    "thinking": in_tests("test_a_model_that_thinks_says_so_apart_unless_it_shall_not"),
    "tools": Seen(
        rows=("chat tools, no ability", "chat no tools", "chat an answer of a tool"),
        tests=("test_a_call_of_a_function_comes_in_a_line_of_its_own",),
        differs=("`tools` without a name",),
    ),
    "too long a prompt": Seen(
        rows=("chat a prompt that is too long", "chat a prompt that is too long, as it is"),
        tests=("test_a_prompt_that_is_too_long_is_shortened",),
        differs=("a `system` of",),
    ),
}
OPTIONS: Mapping[str, Seen] = {
    "sampling": Seen(
        tests=("test_options_have_llama_servers_names",),
        differs=("values of its own", "`repeat_last_n` below 0"),
    ),
    "of the process": Seen(rows=("chat a larger context",), differs=("`num_ctx`, `num_gpu`",)),
    "unknown, null, fractions": compared(
        "chat options {'mirostat'", "chat options {'num_gpu': None}", "chat options {'top_k': 40.9}"
    ),
    "no limit": in_tests("test_a_limit_of_nothing_is_none"),
    "a full context": differs("a full context is shifted"),
}
KEEP_ALIVE: Mapping[str, Seen] = {
    "its forms": compared("generate keep_alive 900", "generate keep_alive '1h30m'", "generate keep_alive -1"),
    "what is none": compared(
        "generate keep_alive '-1'", "generate keep_alive '1d'", "generate keep_alive True"
    ),
    "it stays in force": in_tests("test_a_model_is_loaded_kept_and_let_go"),
    "of /v1": differs("`keep_alive` of `/v1`"),
}
EMBEDDINGS: Mapping[str, Seen] = {
    "embed": compared(
        "embed of one", "embed of several", "embed dimensions 4", "embed input ''", "embed input 5"
    ),
    "too long": Seen(
        rows=(
            "embed too long",
            "embed too long, as it is",
            "embed a smaller context",
            "embed a smaller context, as it is",
        ),
        tests=("test_what_is_too_long_to_embed_is_cut_at_its_tokens",),
    ),
    "embeddings": Seen(
        rows=("embeddings of one", "embeddings prompt ''", "embeddings too long"),
        differs=("`/api/embeddings` answers 500",),
    ),
    "other models": Seen(
        rows=("embed another kind", "embeddings another kind"), differs=("a model is one for vectors",)
    ),
}
STORE: Mapping[str, Seen] = {
    "all of it": in_tests("test_what_would_need_a_store_says_what_to_do_instead"),
}
SCHEDULING: Mapping[str, Seen] = {
    "how many at once": differs("three models a device"),
    "copies share a process": Seen(
        tests=("test_names_of_one_model_share_a_process_and_each_answer_has_the_name_asked_for",),
        differs=("names with the same content",),
    ),
    "who makes room": Seen(
        tests=("test_a_request_for_another_model_does_not_kill_a_running_stream",),
        differs=("the idle model with the shortest",),
    ),
    "steady traffic": Seen(
        tests=("test_traffic_without_a_pause_does_not_keep_another_model_waiting_for_ever",),
        differs=("a request for a loaded model is never held back",),
    ),
    "the waiting list": differs("512 requests may wait"),
    "clients that leave": Seen(
        tests=(
            "test_leaving_the_queue_leaves_no_trace",
            "test_leaving_during_a_load_leaves_no_lease",
            "test_leaving_a_stream_ends_the_generation",
            "test_leaving_a_plain_request_ends_the_generation",
            "test_mixed_requests_over_both_apis_lose_nothing_and_leave_nothing",
        ),
        differs=("a load stops when its client leaves",),
    ),
    "let go while it answers": in_tests(
        "test_letting_go_of_a_model_that_answers_cuts_nothing_and_keeps_nobody_out"
    ),
    "killed while idle": in_tests("test_a_process_that_was_killed_while_idle_is_started_again"),
    "a process that hangs": in_tests("test_a_main_loop_that_hangs_is_found_although_health_answers"),
    "signals": Seen(
        tests=(
            "test_sigterm_lets_a_stream_finish_and_refuses_everybody_else",
            "test_a_router_that_is_killed_takes_its_llama_servers_along",
        ),
        differs=("SIGTERM cuts streams",),
    ),
}
OF_OPENAI: Mapping[str, Seen] = {
    "errors": compared("/v1/chat/completions an empty body", "/v1/chat/completions an unknown model"),
    "models": Seen(
        rows=("/v1/models ", "/v1/models/one", "/v1/models/nope"), differs=("`/v1` has Ollama's shapes",)
    ),
    "chat": compared("/v1/chat/completions a name with a tag", "/v1/chat/completions probabilities"),
    "its stream": in_tests("test_mixed_requests_over_both_apis_lose_nothing_and_leave_nothing"),
    "its parameters": compared(
        "/v1/chat/completions seed", "/v1/chat/completions options", "/v1/chat/completions n"
    ),
    "its refusals": Seen(
        rows=("/v1/chat/completions an empty conversation", "/v1/chat/completions the content 5"),
        differs=("`/v1` refuses an empty conversation",),
    ),
    "completions": Seen(rows=("/v1/completions text",), differs=("text of `/v1/completions`",)),
    "embeddings": compared("/v1/embeddings vectors", "/v1/embeddings in base 64", "/v1/embeddings of tokens"),
    "responses": compared("/v1/responses an answer", "/v1/responses after another", "/v1/responses "),
    "messages": compared(
        "/v1/messages a message", "/v1/messages without a limit", "/v1/messages/count_tokens"
    ),
    "killed in a stream": in_tests(
        "test_a_killed_model_under_32_requests_loses_only_the_answers_that_had_begun"
    ),
}
CLIENTS: Mapping[str, Seen] = {
    "of Python": in_tests("test_it_finds_the_models", "test_it_is_told_what_is_wrong"),
    "the command line's empty fields": compared("show as the command line asks"),
    "what apps ask at their start": in_tests(
        "test_a_program_hears_that_something_runs_and_a_browser_gets_the_page"
    ),
}
SECTIONS = (
    FRAME,
    NAMES,
    LISTS,
    GENERATE,
    CHAT,
    OPTIONS,
    KEEP_ALIVE,
    EMBEDDINGS,
    STORE,
    SCHEDULING,
    OF_OPENAI,
    CLIENTS,
)
CASES = [pytest.param(seen, id=case) for section in SECTIONS for case, seen in section.items()]


@pytest.mark.parametrize("seen", CASES)
def test_what_was_recorded_of_ollama_is_looked_at(seen: Seen) -> None:
    assert any(seen)
    ids, names, lines = [row.id for row in ROWS], _test_names(), _differences()
    missing = [row for row in seen.rows if not any(id_.startswith(row) for id_ in ids)]
    missing += [name for name in seen.tests if name not in names]
    missing += [line for line in seen.differs if not any(found.startswith(line) for found in lines)]
    assert not missing


def test_every_difference_of_the_table_belongs_to_something_that_was_recorded() -> None:
    told = [line for section in SECTIONS for seen in section.values() for line in seen.differs]
    assert [line for line in _differences() if not any(map(line.startswith, told))] == []


def _test_names() -> set[str]:
    text = "".join(path.read_text() for path in TESTS.rglob("test_*.py"))
    return set(re.findall(r"def (test_\w+)", text))


def _differences() -> list[str]:
    """Each by what Ollama does, without the head of the table."""
    told = (TESTS.parent / "docs" / "ollama.md").read_text().split("## What is different", 1)[1]
    return [line.removeprefix("| ") for line in told.splitlines() if line.startswith("| ")][1:]
