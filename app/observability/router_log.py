"""The router's own log, on stderr, as text for people or as JSON for machines."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Literal

from app.core.config import Config
from app.domain.printable_text import one_line

TAKES = ("system.log_format", "system.log_level")

CUT_ON_PURPOSE = "ASGI callable returned without completing response."
"""uvicorn's word, as an error, for an answer that is ended in its middle, which is ASGI's only way to let its
client know that it isn't whole. The line of its request says why."""

Lines = Sequence[Mapping[str, object]]
"""A record of the access log brings several, each the fields of a request."""


class TextFormatter(logging.Formatter):
    """`12:00:01 INFO  qwen: ready, loaded in 1.2 s`; what a client sent cannot start a line of its own."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        lines: Lines | None = record.__dict__.get("lines")
        if lines is None:
            return super().format(record)
        head = f"{self.formatTime(record, self.datefmt)} {record.levelname:<7} "
        return "\n".join([head + one_line(_text(line)) for line in lines])

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802, the name is logging's
        lines = [record.message]
        if record.name.startswith("uvicorn"):  # it logs a traceback of the start as a message
            lines = record.message.splitlines()
        record.message = "\n    ".join(map(one_line, lines))
        return super().formatMessage(record)

    def formatException(self, ei: logging._SysExcInfoType) -> str:  # noqa: N802
        """Indented: an exception's text may hold what a client sent, line breaks included."""
        return "\n".join(f"    {one_line(line)}" for line in super().formatException(ei).splitlines())


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        head = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        lines: Lines | None = record.__dict__.get("lines")
        if lines is not None:
            return "\n".join([_json({**head, "message": _text(line), **line}) for line in lines])
        fields = {**head, "message": record.getMessage()}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return _json(fields)


def apply(config: Config) -> None:
    configure(config.system.log_level, config.system.log_format)


def configure(level: str, style: Literal["text", "json"]) -> None:
    handler = logging.StreamHandler()
    handler.addFilter(lambda record: record.msg != CUT_ON_PURPOSE)
    handler.setFormatter(TextFormatter() if style == "text" else JsonFormatter())
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False  # shown nowhere
    logging._srcfile = None  # where the caller stands: logging's HOWTO says so
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("httpx", "httpcore", "asyncio", "uvicorn.error", "sse_starlette"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))


def _text(line: Mapping[str, object]) -> str:
    return " ".join([f"{key}={value}" for key, value in line.items()])


def _json(fields: Mapping[str, object]) -> str:
    return json.dumps(fields, default=str)
