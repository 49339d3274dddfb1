"""Finding a llama-server, and asking it what it is."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from app.domain.file_identity import FileIdentity
from app.llama.command_line import BinaryInfo, parse_help, parse_switches, parse_version
from app.llama.exit_reason import classify

INSPECT_TIMEOUT_S = 30.0  # a cold CUDA binary reads gigabytes of libraries first
BUILDS_FOLDER = Path(sys.prefix) / "llama"
"""Where `app.llama.builds` puts the builds that it installs, each into a folder of its own."""

SELECTED = "selected"
"""The file there that names the one which passed its self-test."""


class BinaryNotFound(Exception):
    """There is no usable llama-server. The message says what to do."""


def find_binary(configured: str | None, path: str | None = None, builds: Path = BUILDS_FOLDER) -> Path:
    """The configured one, else that in PATH, else `make demo`'s. Raises `BinaryNotFound`."""
    if configured is not None:
        found = shutil.which(configured, path=path)
        if found is None:
            raise BinaryNotFound(f"system.llama_server_path: {configured} is not there or not executable.")
        return Path(found)
    binary = in_path(path) or _selected(builds)
    if binary is None:
        raise BinaryNotFound(
            "There is no llama-server. Set system.llama_server_path, put llama-server into PATH, "
            "or let `make demo` install one."
        )
    return binary


def in_path(path: str | None = None) -> Path | None:
    found = shutil.which("llama-server", path=path)
    return Path(found) if found else None


def inspect_binary(path: Path) -> BinaryInfo:
    """Ask the binary what it is and which flags it knows. Blocking, remembered. Raises `BinaryNotFound`."""
    try:
        identity = FileIdentity.of(path.stat())
    except OSError as error:
        raise BinaryNotFound(f"{path}: {error.strerror}. Check system.llama_server_path.") from error
    return _inspect(path, identity)


@functools.lru_cache(maxsize=8)
def _inspect(path: Path, file: FileIdentity) -> BinaryInfo:
    with ThreadPoolExecutor(2) as pool:  # GPU libraries take their time to be loaded
        said, text = pool.map(functools.partial(_ask, path), ("--version", "--help"))
    version = parse_version(said)
    flags = parse_help(text)
    if not flags:
        raise BinaryNotFound(f"{path} --help lists no flags: it is no llama-server. It said: {text[-500:]}")
    return BinaryInfo(
        path, version, flags, f"{version}; {file.size} bytes; {file.mtime_ns}", parse_switches(text)
    )


def _ask(path: Path, flag: str) -> str:
    """Its answer; GPU libraries put their own lines on stderr, and old builds the version too."""
    try:
        done = subprocess.run(
            [str(path), flag],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=INSPECT_TIMEOUT_S,
            encoding="utf-8",
            errors="replace",
        )
    except subprocess.TimeoutExpired as error:
        raise BinaryNotFound(f"{path} {flag} did not answer within {INSPECT_TIMEOUT_S:.0f} s.") from error
    except OSError as error:
        raise BinaryNotFound(f"{path} cannot be executed: {error.strerror or error}.") from error
    said = f"{done.stderr}\n{done.stdout}"
    if done.returncode != 0:
        raise BinaryNotFound(f"{path} {flag} failed: {classify(done.returncode, said.splitlines()).message}")
    return said


def _selected(builds: Path) -> Path | None:
    try:
        binary = builds / (builds / SELECTED).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    return binary if binary.is_file() else None
