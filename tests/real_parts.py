"""The programs beside Python that some tests need: what lacks here is named once, at the top of a run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

_CHROMIUM = ("/usr/lib/chromium/chromium", "chromium", "chromium-browser", "google-chrome")
_SOFTWARE_VULKAN = Path("/usr/share/vulkan/icd.d")


@dataclass(frozen=True)
class Part:
    """`find` gives its path. Without it `lost` is not tested: a failure on CI, where `wanted_on_ci`."""

    name: str
    find: Callable[[], str | None]
    remedy: str
    lost: str
    wanted_on_ci: bool = True

    @property
    def missing(self) -> str:
        return f"{self.name} is missing ({self.remedy}): {self.lost} NOT tested"


def need(part: Part) -> str:
    """Its path. Without one the test is skipped; on CI it fails."""
    return part.find() or lacks(part)


def lacks(part: Part) -> str:
    """Skips or fails the test: the part is of no use here."""
    if part.wanted_on_ci and os.environ.get("CI") == "true":
        pytest.fail(part.missing, pytrace=False)
    pytest.skip(part.missing)


def header() -> list[str]:
    return [part.missing for part in PARTS if part.find() is None]


def _first_of(*names: str) -> str | None:
    return next((path for name in names if (path := shutil.which(name))), None)


def _prometheus() -> str | None:
    return _first_of("prometheus") if _first_of("promtool") else None


def _compiler() -> str | None:
    return _first_of("cc", "gcc", "clang") if sys.platform == "linux" else None


def _vulkan() -> str | None:
    return next((str(path) for path in _SOFTWARE_VULKAN.glob("lvp_icd*")), None)


def _nginx() -> str | None:
    return shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")


def _typescript() -> str | None:
    compiler = Path(__file__).parents[1] / "node_modules" / "typescript" / "bin" / "tsc"
    return str(compiler) if compiler.exists() else None


def _compose() -> str | None:
    """Its client needs no daemon; without its plugin `docker` does not know the command."""
    docker = _first_of("docker")
    known = docker and subprocess.run([docker, "compose", "version"], capture_output=True).returncode == 0
    return docker if known else None


CHROMIUM = Part("Chromium", lambda: _first_of(*_CHROMIUM), "apt-get install chromium", "the page is")
PROMTOOL = Part(
    "promtool", lambda: _first_of("promtool"), "apt-get install prometheus", "PromQL and the rules are"
)
PROMETHEUS = Part("Prometheus", _prometheus, "apt-get install prometheus", "panels and alerts are")
COMPILER = Part(
    "A C compiler on Linux",
    _compiler,
    "apt-get install gcc libc6-dev",
    "NVML and jumps of the clock are",
)
VULKAN = Part(
    "A Vulkan device in software", _vulkan, "apt-get install mesa-vulkan-drivers", "devices by Vulkan are"
)
NGINX = Part("nginx", _nginx, "apt-get install nginx-light", "the page behind a prefix is")
NODE = Part("Node", lambda: _first_of("node"), "apt-get install nodejs npm", "the page's scripts are")
TYPESCRIPT = Part("TypeScript", _typescript, "npm ci", "the types of the page's scripts are")
CURL = Part("curl", lambda: _first_of("curl"), "apt-get install curl", "its way to speak HTTP is")
JAVA = Part(
    "A Java development kit",
    lambda: _first_of("javac") and _first_of("java"),
    "apt-get install default-jdk-headless",
    "its HttpClient is",
)
COMPOSE = Part(
    "docker compose", _compose, "it comes with Docker", "docker-compose.monitoring.yml is", wanted_on_ci=False
)
PARTS = (CHROMIUM, NODE, TYPESCRIPT, NGINX, PROMTOOL, PROMETHEUS, COMPILER, VULKAN, CURL, JAVA, COMPOSE)
