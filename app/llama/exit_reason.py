"""Why a llama-server ended, from its exit code and its last lines: what to tell, and whether to try again."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from app.domain.units import MIB

TAIL_LINES = 40  # kept for the user
LOOK_BACK = 80  # a cause stands among the last lines; a usage text or a backtrace may follow it


class FailureKind(str, Enum):
    OUT_OF_MEMORY = "out_of_memory"
    BAD_MODEL = "bad_model"
    MISSING_FILE = "missing_file"
    BAD_FLAG = "bad_flag"
    BAD_BINARY = "bad_binary"
    PORT_TAKEN = "port_taken"
    KILLED = "killed"  # a signal from outside
    TIMEOUT = "timeout"
    LOG_FOLDER = "log_folder"
    OUT_OF_FILES = "out_of_files"  # the router's own lack, for which no model can be blamed
    CUT_SHORT = "cut_short"  # it failed, but its last lines, with the reason, were lost
    UNKNOWN = "unknown"

    @property
    def may_heal(self) -> bool:
        """Trying again later can succeed without anybody changing anything."""
        return self in _HEALING


_HEALING = frozenset(
    {
        FailureKind.OUT_OF_MEMORY,
        FailureKind.PORT_TAKEN,
        FailureKind.TIMEOUT,
        FailureKind.KILLED,
        FailureKind.OUT_OF_FILES,
        FailureKind.CUT_SHORT,  # the next time it will probably tell
    }
)


@dataclass(frozen=True)
class Failure:
    """The cause and the next step as one message; `log_tail` is what llama-server said last.

    Once it has served, its log holds what clients made it say: `served` tells that the tail is for admins.
    """

    kind: FailureKind
    message: str
    exit_code: int | None
    log_tail: tuple[str, ...]
    served: bool = False

    @property
    def is_crash(self) -> bool:
        """The process ended by itself: it was not told to, and nobody outside killed it."""
        return bool(self.exit_code) and self.kind not in (FailureKind.KILLED, FailureKind.TIMEOUT)


@dataclass(frozen=True)
class _Rule:
    kind: FailureKind
    pattern: re.Pattern[str]
    message: str  # a template over the pattern's groups


def _rule(kind: FailureKind, pattern: str, message: str) -> _Rule:
    return _Rule(kind, re.compile(pattern), message)


_FREE_MEMORY = "Lower params.n_ctx or parallel_requests, quantise the KV cache, or free memory."
_UPDATE = "Install a newer llama-server, or use another conversion of the model."
_AGAIN = "Download it again."
_K = FailureKind

# A cause names itself. Not here: "failed to load model", "failed to fit params to free device memory" and
# "exiting due to model loading error", which stand in the log of nearly every failure.
_CAUSES = (
    _rule(
        _K.MISSING_FILE,
        r"failed to open GGUF file '(?P<file>.*)' \(No such file",
        "There is no file {file}. Correct the path in the configuration.",
    ),
    _rule(
        _K.MISSING_FILE,
        r"failed to open GGUF file '(?P<file>.*)' \((?P<why>[^)]*)\)",
        "{file} cannot be opened: {why}. Correct its permissions.",
    ),
    _rule(
        _K.BAD_MODEL,
        r"tensor '(?P<tensor>[^']*)' data is not within the file bounds",
        "The model file is incomplete (tensor {tensor} lies beyond its end). " + _AGAIN,
    ),
    _rule(
        _K.BAD_MODEL,
        r"gguf_init_from\w*: (?P<why>failed to read [^\n]*|invalid magic[^\n]*|[^\n]*version[^\n]*)",
        "The model file is not a whole GGUF file ({why}). " + _AGAIN,
    ),
    _rule(
        _K.BAD_MODEL,
        r"unknown (?:model|pre-tokenizer|projector)[ \w]*: '?(?P<what>[^']*)'?",
        "This llama-server does not know the model's type {what}. " + _UPDATE,
    ),
    _rule(
        _K.BAD_MODEL,
        r"error loading model: (?P<why>(?:missing tensor|check_tensor_dims|done_getting_tensors"
        r"|error loading model (?:hyperparameters|vocabulary)|key not found|invalid split)[^\n]*)",
        "The model file does not suit this llama-server ({why}). " + _UPDATE,
    ),
    _rule(
        _K.OUT_OF_MEMORY,
        r"failed to allocate (?P<what>[\w ]*buffer) of size (?P<size>\d+)",
        "There was not enough memory for a {what}{size}. " + _FREE_MEMORY,
    ),
    _rule(
        _K.OUT_OF_MEMORY,
        r"(?P<what>cudaMalloc failed: out of memory|CUDA error: out of memory|ErrorOutOf(?:Device|Host)Memory"
        r"|std::bad_alloc|unable to allocate [\w ]*buffer|insufficient memory|Cannot allocate memory)",
        "There was not enough memory ({what}). " + _FREE_MEMORY,
    ),
    _rule(
        _K.OUT_OF_MEMORY,
        r"what\(\):\s+(?P<what>Resource temporarily unavailable)",
        "A thread could not be started ({what}): memory or the limit of processes is used up.",
    ),
    _rule(
        _K.PORT_TAKEN,
        r"couldn't bind HTTP server socket, hostname: \S+ port: (?P<port>\d+)",
        "Port {port} was taken by another program. Another port is tried.",
    ),
    _rule(
        _K.BAD_FLAG,
        r"error: invalid argument: (?P<flag>\S+)",
        "This llama-server does not know the argument {flag}. Correct extra_args, or update llama-server.",
    ),
    _rule(
        _K.BAD_FLAG,
        r"error while handling argument \"(?P<flag>[^\"]*)\": (?P<why>.*)",
        "llama-server refused the argument {flag}: {why}. Correct the model's params or extra_args.",
    ),
    _rule(
        _K.BAD_FLAG,
        r"error: the supplied chat template is not supported",
        "The chat template could not be understood. Correct params.chat_template.",
    ),
    _rule(
        _K.BAD_FLAG,
        r"quantized V cache requires flash_attn",
        "A quantised V cache needs flash attention. "
        'Set system.flash_attention to "on" or params.type_v to "f16".',
    ),
    _rule(
        _K.BAD_BINARY,
        r"error while loading shared libraries: (?P<why>.*)",
        "llama-server could not start: {why}. Install it whole, with its libraries.",
    ),
    _rule(
        _K.BAD_BINARY,
        r"(?P<why>no CPU backend found)",
        "llama-server has no code for this processor ({why}). Install a build that was made for it.",
    ),
    _rule(
        _K.BAD_BINARY,
        r"(?P<why>version `\w+_[\d.]+' not found|cannot execute[\w ]*|Exec format error"
        r"|CUDA driver version is insufficient[\w ]*|no kernel image is available[\w ]*)",
        "llama-server cannot run on this machine ({why}). Install a build that was made for it.",
    ),
)

# Said when something went wrong deeper down; the deeper reason is better, if it was told.
_SYMPTOMS = (
    _rule(
        _K.OUT_OF_MEMORY,
        r"failed to allocate (?P<what>[\w ]*buffers?\b[\w ]*)",
        "There was not enough memory ({what}). " + _FREE_MEMORY,
    ),
    _rule(
        _K.BAD_MODEL,
        r"[Ff]ailed to load (?:CLIP|multimodal) model(?: from|,) '?(?P<file>[^'\n]*?)\.?'?$",
        "The projector {file} could not be loaded. Use the mmproj file that belongs to this model.",
    ),
    _rule(
        _K.BAD_MODEL,
        r"error loading model: (?P<why>.*)",
        "llama-server could not load the model ({why}). " + _UPDATE,
    ),
)


def classify(exit_code: int, log_lines: Sequence[str]) -> Failure:
    """The last line that names a cause decides; without one, the signal does."""
    lines = [line.rstrip() for line in log_lines[-LOOK_BACK:]]
    tail = tuple(lines[-TAIL_LINES:])
    number = _signal(exit_code)
    # Killed from outside it had no time to say why, and what it said before is not the reason.
    told = None if number in _FROM_OUTSIDE else _look(lines, _CAUSES) or _look(lines, _SYMPTOMS)
    kind, message = told or _by_code(exit_code, number, lines)
    return Failure(kind, message, exit_code, tail)


def of_exit_alone(exit_code: int, log_lines: Sequence[str]) -> Failure:
    """For a process that has served. A client can make it say anything: no line is a cause, but for that of a
    process that was told twice to end, which excuses the requests that ran. A request that crashes
    llama-server does not make it exit with 1. Its logging thread may still say something after that line."""
    number = _signal(exit_code)
    kind, message = _by_signal_or_code(exit_code, number)
    if exit_code == 1 and any(_TOLD_TWICE in line for line in log_lines[-TAIL_LINES:]):
        kind, message = FailureKind.KILLED, "llama-server was told to end from outside the router, twice."
    return Failure(kind, message, exit_code, tuple(log_lines[-TAIL_LINES:]), served=True)


def _by_signal_or_code(code: int, number: int | None) -> tuple[FailureKind, str]:
    if number in _FROM_OUTSIDE:
        return FailureKind.KILLED, _FROM_OUTSIDE[number]
    if number in _OWN_FAULT:
        kind, why = _OWN_FAULT[number]
        return kind, f"llama-server crashed: {why}"
    if number is not None:
        return FailureKind.UNKNOWN, f"llama-server crashed ({_signal_name(number)}). Its log may tell why."
    if code == 0:
        return FailureKind.UNKNOWN, "llama-server ended by itself, without an error."
    return FailureKind.UNKNOWN, f"llama-server ended with exit code {code}. Its log may tell why."


def _look(lines: Sequence[str], rules: Sequence[_Rule]) -> tuple[FailureKind, str] | None:
    for line in reversed(lines):
        for rule in rules:
            found = rule.pattern.search(line)
            if found:
                return rule.kind, rule.message.format(**_readable(found.groupdict()))
    return None


def _readable(groups: dict[str, str | None]) -> dict[str, str]:
    shown = {name: (value or "").strip() for name, value in groups.items()}
    if shown.get("size"):
        shown["size"] = f" of {int(shown['size']) / MIB:.0f} MiB"
    return shown


# llama-server logs through a thread that it does not wait for: in a tenth to a third of all failures
# (measured on b10434) the end of its log is missing, this line and mostly the reason with it.
_LAST_WORDS = "exiting due to"

_TOLD_TWICE = "Received second interrupt, terminating immediately."

_FROM_OUTSIDE = {
    9: "llama-server was killed by SIGKILL. Often the kernel does that when memory runs out: see dmesg.",
    15: "llama-server was ended by SIGTERM from outside the router.",
    2: "llama-server was ended by SIGINT from outside the router.",
    1: "llama-server was ended by SIGHUP from outside the router.",
}
_OWN_FAULT = {
    4: (
        FailureKind.BAD_BINARY,
        "it was built for another processor, and this one lacks some of its instructions (SIGILL). Install a "
        "build for this one: `make demo` finds one, or build llama.cpp here.",
    ),
    7: (FailureKind.BAD_MODEL, "the model file shrank while it was read, or its disk failed (SIGBUS)."),
}


def _by_code(code: int, number: int | None, lines: Sequence[str]) -> tuple[FailureKind, str]:
    kind, message = _by_signal_or_code(code, number)
    if kind is FailureKind.UNKNOWN and number is not None:
        said = next((line for line in reversed(lines) if line.strip()), "nothing")
        return kind, f"llama-server crashed ({_signal_name(number)}). It said last: {said}"
    if code in (126, 127):
        return FailureKind.BAD_BINARY, "llama-server could not be executed. Check system.llama_server_path."
    if code == 0:  # nobody told it to: the next time it will serve, or tell what is wrong
        return FailureKind.CUT_SHORT, message
    if code == 1 and not any(_LAST_WORDS in line for line in lines):
        return FailureKind.CUT_SHORT, "llama-server failed before its log told why."
    return kind, message


def _signal(code: int) -> int | None:
    """Also as a shell reports it (128 + n), when the binary is a wrapper script."""
    if code < 0:
        return -code
    return code - 128 if 128 < code <= 192 else None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
