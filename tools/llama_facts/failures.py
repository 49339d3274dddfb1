"""Loads that fail: the exit code, and a log out of which the reason can be told."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.llama.exit_reason import Failure, FailureKind, classify
from tools.llama_facts.fact import Claims
from tools.llama_facts.server import Subject, ready, spec_of, started

TRIES = 12
"""llama-server does not wait for its own log: in up to a third of all failures the reason is lost."""

FAIL_TIMEOUT_S = 60.0
LITTLE_MEMORY = 3 << 30
_K = FailureKind


@dataclass(frozen=True)
class Case:
    name: str
    kind: FailureKind
    told: str  # in the message: what was taken out of the log
    model: Path
    words: Sequence[str] = ()  # of the command line
    params: tuple[tuple[str, Any], ...] = ()
    through: Sequence[str] = ()


def claims(subject: Subject) -> Claims:
    for case in _cases(subject):
        failure = _fail(subject, case)
        held = failure.kind is case.kind and case.told in failure.message and failure.exit_code == 1
        yield f"{case.name}: exit code 1, the log tells", held, (failure.message, failure.exit_code)
    with ready(subject, spec_of(subject.tiny)) as server:
        server.process.send_signal(signal.SIGKILL)
        code = server.exit_code()
    yield "SIGKILL ends it at once", code == -signal.SIGKILL, code


def _fail(subject: Subject, case: Case) -> Failure:
    """The first failure whose reason was not lost."""
    for _ in range(TRIES):
        spec = spec_of(case.model, **dict(case.params))
        with started(subject, spec, words=case.words, through=case.through) as server:
            code = server.exit_code(FAIL_TIMEOUT_S)
        failure = classify(0 if code is None else code, server.lines)
        if failure.kind is not FailureKind.CUT_SHORT:
            break
    return failure


def _cases(subject: Subject) -> Iterator[Case]:
    yield from _bad_files(subject)
    yield from _bad_arguments(subject)
    limited = [sys.executable, "-m", "tools.llama_facts.failures", str(LITTLE_MEMORY)]
    much = (("n_ctx", 1 << 25),)
    if sys.platform == "linux":  # no other system limits it
        yield Case("no memory for the cache", _K.OUT_OF_MEMORY, "MiB", subject.long, (), much, limited)


def _bad_files(subject: Subject) -> Iterator[Case]:
    whole = subject.tiny.read_bytes()

    def file(name: str, content: bytes) -> Path:
        path = subject.folder / f"{name}.gguf"
        path.write_bytes(content)
        return path

    missing = subject.folder / "missing.gguf"
    yield Case("missing file", _K.MISSING_FILE, "no file", missing)
    yield Case("no GGUF file", _K.BAD_MODEL, "invalid magic", file("garbage", b"this is no model" * 100))
    yield Case("empty file", _K.BAD_MODEL, "failed to read", file("empty", b""))
    yield Case("file cut short", _K.BAD_MODEL, "incomplete", file("short", whole[: len(whole) * 3 // 4]))
    yield Case("header cut short", _K.BAD_MODEL, "failed to read", file("head", whole[:2000]))
    misfit = file("misfit", whole.replace(b"output_norm.weight", b"output_nurm.weight"))
    yield Case("missing tensor", _K.BAD_MODEL, "output_norm.weight", misfit)
    unknown = file("unknown", whole.replace(b"llama", b"zlama"))
    yield Case("unknown architecture", _K.BAD_MODEL, "zlama", unknown)
    projector = (("mmproj", str(subject.tiny)),)
    yield Case("projector that is none", _K.BAD_MODEL, str(subject.tiny), subject.tiny, (), projector)


def _bad_arguments(subject: Subject) -> Iterator[Case]:
    tiny = subject.tiny
    yield Case("unknown flag", _K.BAD_FLAG, "--no-such-flag", tiny, ["--no-such-flag"])
    yield Case("bad number", _K.BAD_FLAG, "stoi", tiny, ["--ctx-size", "many"])
    yield Case("bad choice", _K.BAD_FLAG, "--pooling", tiny, ["--pooling", "banana"])
    yield Case("no value", _K.BAD_FLAG, "expected value", tiny, ["--ctx-size"])
    yield Case("removed flag", _K.BAD_FLAG, "removed", tiny, ["--draft-max", "4"])
    yield Case("unknown device", _K.BAD_FLAG, "CUDA7", tiny, ["--device", "CUDA7"])
    yield Case("bad template", _K.BAD_FLAG, "chat_template", tiny, (), (("chat_template", "{% if"),))
    quantised = (("type_v", "q8_0"),)
    yield Case("V cache without flash attention", _K.BAD_FLAG, "flash", tiny, ["-fa", "off"], quantised)


def main() -> None:
    """`python -m tools.llama_facts.failures BYTES COMMAND...`: the command, with that much address space."""
    import os
    import resource  # POSIX only

    limit = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    os.execv(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
