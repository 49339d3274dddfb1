"""Which llama-server the tests run with: what LLAMA_BUILD names, never whatever lies in PATH."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from app.llama.binary import BinaryNotFound
from app.llama.builds.install import BuildUnavailable, of_role, provide
from app.llama.builds.known_builds import Role
from app.llama.command_line import BinaryInfo, CommandError
from app.llama.self_test import SelfTestFailed, check_binary

CHOICE = os.environ.get("LLAMA_BUILD") or Role.CURRENT.value
"""`current`, `oldest`, or the path of a llama-server of one's own."""


def of(choice: str = CHOICE) -> Path:
    """Its path, installed on first use. Raises `BuildUnavailable`."""
    if choice in {role.value for role in Role}:
        return provide(of_role(Role(choice)))
    path = Path(choice).expanduser()
    if not path.is_file():
        names = " or ".join(role.value for role in Role)
        raise BuildUnavailable(f"LLAMA_BUILD is {choice}: neither {names} nor a file")
    return path.absolute()


def that_computes() -> BinaryInfo | str:
    """The chosen one, or in one line why it is of no use here."""
    try:
        return check_binary(of())
    except (BuildUnavailable, BinaryNotFound, CommandError, SelfTestFailed) as error:
        return str(error)


def acting(folder: Path, script: str, devices: str | None = None) -> Path:
    """The chosen one as long as it is only asked what it is; started to serve, it does what the script says.

    In the script `$real` is its path. `devices`: what it lists instead of the real ones.
    """
    path = folder / "llama-server"
    listed = "" if devices is None else f"[ \"$1\" = --list-devices ] && printf '{devices}' && exit\n"
    asked = 'case "$1" in --help|--version|--list-devices) exec "$real" "$@";; esac'
    path.write_text(f"#!/bin/sh\nulimit -c 0\nreal={shlex.quote(str(of()))}\n{listed}{asked}\n{script}\n")
    path.chmod(0o755)
    return path
