"""`--version`, `--help`, `--list-devices`, and every flag that the router writes."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from app.llama.command_line import BinaryInfo
from app.llama.flags import FLAGS, Flag
from app.memory.probes.list_devices import parse_devices
from tools.llama_facts.fact import Claims
from tools.llama_facts.server import Subject

ASK_TIMEOUT_S = 60.0
ESSENTIAL = ("--api-key", "LLAMA_API_KEY")
_NO_DEVICE = re.compile(r"\(0 MiB|^\s*\(none\)$")


def claims(subject: Subject) -> Claims:
    version, text, devices = (_say(subject.binary.path, f) for f in ("--version", "--help", "--list-devices"))
    yield "--version tells `version: ...`", subject.binary.version != "unknown", version
    removed = "argument has been removed" in " ".join(text.split())
    yield "--help says of a flag that it was removed", removed, "no such words"
    listed = [line for line in devices.splitlines() if line.startswith("  ") and not _NO_DEVICE.search(line)]
    held = len(listed) == len(parse_devices(devices))
    yield "--list-devices shows `ID: NAME (N MiB, N MiB free)`", held, listed
    for word in (*ESSENTIAL, *sorted({flag.variable for flag in FLAGS} - {""})):
        yield f"--help names {word}", word in text, "it does not"
    for flag in FLAGS:
        kind = "with a value" if flag.value else "as a switch"
        yield f"{flag.names[0]} {kind}", _is_known(flag, subject.binary), "another kind of flag, or unknown"


def _is_known(flag: Flag, binary: BinaryInfo) -> bool:
    """In a spelling that the router knows too."""
    with_a_value = binary.flags - binary.switches
    return any(name in (with_a_value if flag.value else binary.switches) for name in flag.names)


def _say(binary: Path, flag: str) -> str:
    done = subprocess.run(
        [str(binary), flag],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=ASK_TIMEOUT_S,
        check=True,
        encoding="utf-8",
        errors="replace",
    )
    return done.stdout
