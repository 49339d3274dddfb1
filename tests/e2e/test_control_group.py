"""A control group of 4 GB: models on the CPU are planned within it, and the kernel has nobody to kill."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ggufs import make_tiny
from tests.router_process import MakeRouter, RouterProcess, chat, until_now

LIMIT_MB = 4096
GROUPS = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))  # of the first version, of the second


@pytest.fixture
def group(request: pytest.FixtureRequest) -> Iterator[Path]:
    """An empty group with that limit, where this machine lets us make one."""
    folder = next((g / f"router-test-{os.getpid()}" for g in GROUPS if (g / "cgroup.procs").exists()), None)
    if folder is None:
        pytest.skip("there are no control groups here")
    try:
        folder.mkdir()
        names = ("memory.limit_in_bytes", "memory.max")
        limit = next(folder / name for name in names if (folder / name).exists())
        limit.write_text(str(LIMIT_MB << 20))
    except (OSError, StopIteration):
        pytest.skip("control groups cannot be made here")
    try:
        yield folder
    finally:
        until_now(lambda: not (folder / "cgroup.procs").read_text().strip())
        folder.rmdir()


@pytest.fixture(scope="module")
def large_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 1.5 GB, nearly all of it the cache of a long context: it takes no disk."""
    path = tmp_path_factory.mktemp("models") / "large.gguf"
    return make_tiny(path, layers=16, width=128, heads=2, heads_kv=2, context=1 << 20)


def move(pid: int, group: Path) -> None:
    (group / "cgroup.procs").write_text(str(pid))


def kills(group: Path) -> int:
    """By the kernel, for want of memory."""
    for name, key in (("memory.oom_control", "oom_kill "), ("memory.events", "oom_kill ")):
        if (group / name).exists():
            lines = (group / name).read_text().splitlines()
            return sum(int(line.removeprefix(key)) for line in lines if line.startswith(key))
    return 0


def test_the_third_model_takes_the_place_of_another_and_nobody_is_killed(
    group: Path, make_router: MakeRouter, large_gguf: Path
) -> None:
    params = {"n_gpu_layers": -1, "n_ctx": 163_840}
    models = {alias: {"model_path": large_gguf, "params": params} for alias in ("a", "b", "c")}
    router: RouterProcess = make_router(models, system={"prompt_cache_mb": 1024, "max_concurrent_models": 9})
    move(router.pid, group)
    until_now(lambda: router.get("/vram")["host"]["total_mb"] == LIMIT_MB)
    assert router.get("/v1/models/a/plan")["need_mb"] > 1500
    for alias in ("a", "b", "c"):
        answer = router.client.post("/v1/chat/completions", json=chat(alias, max_tokens=2))
        assert answer.status_code == 200, answer.text
    states = [router.state(alias) for alias in ("a", "b", "c")]
    assert states.count("ready") == 2 and states[2] == "ready"
    assert router.metric("router_host_memory_bytes", kind="total") == LIMIT_MB << 20
    assert 3000 << 20 < router.metric("router_host_memory_bytes", kind="reserved") <= LIMIT_MB << 20
    assert kills(group) == 0
    assert router.stop() == 0
