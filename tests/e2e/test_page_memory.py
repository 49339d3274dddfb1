"""The page's picture of a graphics card: real llama-servers on the CPU beside a stub of the driver."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.browser import browser, chromium
from tests.e2e.pages import row
from tests.nvml import Driver, gpu, nvml_library, with_cuda
from tests.router_process import MakeRouter
from tests.slow_server import slow

__all__ = ["nvml_library"]

TOTAL_MB, OTHERS_MB, USED_MB = 8192, 1000, 2500


async def test_a_load_is_shown_as_coming_and_other_programs_beside_it(
    make_router: MakeRouter,
    llama_server: Path,
    tiny_gguf: Path,
    tmp_path: Path,
    nvml_library: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = Driver(nvml_library, tmp_path)
    for name, value in driver.env.items():
        monkeypatch.setenv(name, value)
    driver.show(gpu(0, TOTAL_MB, OTHERS_MB, mig=0))
    on_card = {"model_path": tiny_gguf, "params": {"n_gpu_layers": 99}}
    router = make_router(
        {
            "quick": {**on_card, "vram_mb": USED_MB},
            "big": {**on_card, "vram_mb": 3072, "env": {"LOAD_S": "2", "GATE": "/nonexistent/gate"}},
        },
        binary=with_cuda(tmp_path, slow(tmp_path, llama_server)),
    )
    router.load("quick")
    pid = router.status("quick")["pid"]
    driver.show(gpu(0, TOTAL_MB, OTHERS_MB + USED_MB, mig=0), f"proc GPU-0 {pid} {USED_MB}")
    async with browser(chromium()) as page:
        await page.open(router.url)
        await page.shows("GPU 0 · Stub-0", "#memory")
        await page.shows("quick\n2.4\u00a0GB", "#memory .key")
        await page.shows("other programs\n1.0\u00a0GB", "#memory .key")
        await page.click("Load big")
        await page.shows("Loading", row("big"))
        await page.shows("big, still loading\n3.0\u00a0GB", "#memory .key")
        await page.shows("other programs\n1.0\u00a0GB", "#memory .key")
        await page.shot("card")
        widths = await page.js("[...document.querySelectorAll('.stack span')].map(s => s.className)")
        assert widths == ["held", "coming", "other"]
        assert page.complaints == []
