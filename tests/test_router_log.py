"""The router's own log: one event, one line, whatever a client sent."""

from __future__ import annotations

import inspect
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from uvicorn.protocols.http import httptools_impl

from app.observability import router_log

NASTY = "model\n12:00:00 INFO    admin logged in\r\x1b[31m\u2028\x00"


def record(message: str, *args: object, error: BaseException | None = None, **more: Any) -> logging.LogRecord:
    info = (type(error), error, None) if error is not None else None
    made = logging.LogRecord("app.x", logging.WARNING, __file__, 1, message, args, info)
    made.__dict__.update(more)
    return made


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)


def test_text_has_a_time_a_level_and_the_message() -> None:
    time, level, message = router_log.TextFormatter().format(record("%s: ready", "qwen")).split(maxsplit=2)
    assert len(time) == len("12:00:00")
    assert (level, message) == ("WARNING", "qwen: ready")


def test_what_a_client_sent_starts_no_line_of_its_own() -> None:
    line = router_log.TextFormatter().format(record("no model %s", NASTY))
    assert line.isprintable()
    assert r"\n12:00:00" in line
    assert r"\x1b[31m" in line


def test_a_traceback_is_indented_so_that_it_forges_no_line() -> None:
    first, *rest = router_log.TextFormatter().format(record("failed", error=ValueError(NASTY))).splitlines()
    assert first.endswith("failed")
    assert rest
    assert all(line.startswith("    ") and line.isprintable() for line in rest)


def test_a_traceback_that_uvicorn_logs_as_a_message_stays_readable() -> None:
    made = record("Traceback\n  File x\nValueError: %s", "\r\x1b")
    made.name = "uvicorn.error"
    first, *rest = router_log.TextFormatter().format(made).splitlines()
    assert first.endswith("Traceback")
    assert rest == ["      File x", "    ValueError: ", r"    \x1b"]


def test_json_is_one_object_a_line() -> None:
    line = router_log.JsonFormatter().format(record("no model %s", NASTY))
    assert "\n" not in line
    found = json.loads(line)
    assert found["message"] == f"no model {NASTY}"
    assert (found["level"], found["logger"]) == ("warning", "app.x")
    assert found["time"].endswith("Z")


def test_a_record_of_several_lines_is_one_for_each() -> None:
    several = record("requests", lines=[{"model": NASTY, "path": router_log}, {"model": "m"}])
    first, second = router_log.TextFormatter().format(several).split("\n")
    assert (first.isprintable(), second.endswith(" WARNING model=m")) == (True, True)
    found = [json.loads(line) for line in router_log.JsonFormatter().format(several).split("\n")]
    assert [line["model"] for line in found] == [NASTY, "m"]
    assert found[1]["message"] == "model=m"


def test_json_carries_a_traceback() -> None:
    line = router_log.JsonFormatter().format(record("failed", error=ValueError("why")))
    assert "ValueError: why" in json.loads(line)["traceback"]


@pytest.mark.parametrize(
    ("style", "kind"), [("text", router_log.TextFormatter), ("json", router_log.JsonFormatter)]
)
def test_configure_leaves_one_handler_on_stderr(
    root: logging.Logger, style: Literal["text", "json"], kind: type
) -> None:
    router_log.configure("debug", style)
    router_log.configure("warning", style)
    (handler,) = root.handlers
    assert isinstance(handler, logging.StreamHandler)
    assert handler.stream is sys.stderr
    assert isinstance(handler.formatter, kind)
    assert root.level == logging.WARNING


def test_libraries_do_not_chatter(root: logging.Logger) -> None:
    router_log.configure("info", "text")
    assert not logging.getLogger("httpx").isEnabledFor(logging.INFO)
    assert logging.getLogger("app.core.manager").isEnabledFor(logging.INFO)


def test_an_answer_that_is_cut_on_purpose_is_no_error_of_the_server(
    root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    router_log.configure("info", "text")
    assert f'"{router_log.CUT_ON_PURPOSE}"' in inspect.getsource(httptools_impl)  # said as it is looked for
    logging.getLogger("uvicorn.error").error(router_log.CUT_ON_PURPOSE)
    logging.getLogger("uvicorn.error").error("Exception in ASGI application\n")
    assert "ASGI callable" not in (said := capsys.readouterr().err)
    assert "ERROR   Exception in ASGI application" in said
