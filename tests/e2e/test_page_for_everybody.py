"""The page for those who have no mouse, no sight, a small phone, or fifty models with long names."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.e2e.browser import Page, browser, chromium
from tests.e2e.pages import row
from tests.router_process import MakeRouter, RouterProcess, chat, until

LONG = "organisation/" + "a-very-long-name-without-an-end-" * 3 + "q4_k_m.gguf"
MARKUP = "<img src=x onerror=alert(1)><b>bold"

CONTRAST = """
(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3]));
  const light = (c) => {
    const [r, g, b] = c.map((v) => ((v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    const chain = [];
    for (let at = element; at; at = at.parentElement) chain.unshift(getComputedStyle(at).backgroundColor);
    return chain.reduce((under, top) => over(rgba(top), under), [255, 255, 255]);
  };
  const poor = [];
  for (const element of document.querySelectorAll('body *')) {
    const text = [...element.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data.trim()).join('');
    if (!text || !element.checkVisibility() || element.disabled || element.closest('noscript, .sr')) continue;
    const style = getComputedStyle(element), under = behind(element);
    const [a, b] = [light(over(rgba(style.color), under)), light(under)].sort((x, y) => y - x);
    const size = parseFloat(style.fontSize), ratio = (a + 0.05) / (b + 0.05);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    if (ratio >= (large ? 3 : 4.5)) continue;
    poor.push(`${ratio.toFixed(2)} ${element.className || element.tagName}: ${text.slice(0, 40)}`);
  }
  return [...new Set(poor)];
})()
"""


@pytest.fixture(scope="module")
def router(
    make_shared_router: MakeRouter, llama_server: Path, tiny_gguf: Path, models_dir: Path
) -> RouterProcess:
    broken = models_dir / f"{MARKUP}.gguf"
    broken.write_bytes(tiny_gguf.read_bytes()[:-1000])
    many = {f"model-{number:02}": {"model_path": tiny_gguf} for number in range(47)}
    return make_shared_router(
        {
            "quick": {"model_path": tiny_gguf, "pinned": True},
            LONG: {"model_path": tiny_gguf, "keep_cache": "disk", "params": {"embedding": False}},
            "broken": {"model_path": broken},
            **many,
        },
        system={"max_concurrent_models": 2},
    )


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    async with browser(chromium()) as page:
        yield page


async def busy(router: RouterProcess, page: Page) -> None:
    """All kinds of cards, pills and notes on one page."""
    router.load("quick", LONG)
    router.client.post("/v1/models/broken/reset")
    await page.open(router.url)
    await page.shows("Ready", row(LONG))
    router.client.post("/v1/chat/completions", json=chat("broken"))
    await page.shows("Failed", row("broken"))


async def test_nothing_is_wider_than_a_small_phone(router: RouterProcess, page: Page) -> None:
    await busy(router, page)
    await page.click(LONG)
    await page.shows("starting organisation", "dialog pre")
    for width in (360, 800, 1400):
        await page.size(width, 740)
        assert await page.js("document.documentElement.scrollWidth <= innerWidth"), width
        assert await page.js("(d => d.scrollWidth <= d.clientWidth)(document.querySelector('dialog'))"), width
        await page.shot(f"narrow-{width}-dialog")
    await page.click("Close", "dialog")
    await page.size(360, 740)
    await page.shot("narrow-360")
    assert await page.js("document.documentElement.scrollWidth <= innerWidth")
    small = (
        "[...document.querySelectorAll('button')].filter((b) => b.checkVisibility() && b.offsetHeight < 24)"
    )
    assert await page.js(f"{small}.map((b) => b.textContent)") == []


async def test_a_name_or_a_log_is_text_whatever_it_says(router: RouterProcess, page: Page) -> None:
    await busy(router, page)
    await page.shows(MARKUP, "#now")
    await page.shows(MARKUP, row("broken"))
    await page.shows(MARKUP, "#events")
    await page.click("broken", row("broken"))
    await page.shows(MARKUP, "dialog")
    assert await page.js("document.querySelectorAll('main img, main b > b, dialog img').length") == 0
    assert page.complaints == []


@pytest.mark.parametrize("dark", [False, True])
async def test_every_text_can_be_read(router: RouterProcess, page: Page, dark: bool) -> None:
    await busy(router, page)
    await page.size(1500, 950, dark=dark)
    await page.click("Load model-00")
    await page.shows("Load model-00?", "dialog")
    assert await page.js(CONTRAST) == []
    await page.click("Cancel", "dialog")
    await page.click("Reset broken")
    await page.click("Reset", "dialog")
    await page.shows("Off", row("broken"))


async def test_what_a_screen_reader_meets_has_a_name(router: RouterProcess, page: Page) -> None:
    await busy(router, page)
    await page.command("Accessibility.enable")
    found = (await page.command("Accessibility.getFullAXTree"))["nodes"]
    nodes = [node for node in found if not node["ignored"]]
    wanted = {"button", "link", "textbox", "searchbox", "progressbar", "img", "table", "region", "heading"}
    named = [
        (n["role"]["value"], n.get("name", {}).get("value", ""))
        for n in nodes
        if n["role"]["value"] in wanted
    ]
    assert [role for role, name in named if not name] == []
    assert {"button", "searchbox", "table", "region", "heading"} <= {role for role, _ in named}
    labels = [name for role, name in named if role == "button"]
    assert f"Eject {LONG}" in labels and "Reset broken" in labels
    rows = [n for n in nodes if n["role"]["value"] == "row"]
    assert len(rows) == 1 + 50
    assert [n for n in nodes if n["role"]["value"] == "cell"]


async def test_everything_can_be_done_with_keys(router: RouterProcess, page: Page) -> None:
    focus = "(e => e.ariaLabel ?? e.textContent)(document.activeElement)"
    router.eject("model-01", LONG)
    await page.open(router.url)
    await page.shows("Off", row("model-01"))
    await page.key("Tab")
    assert await page.js(focus) == "Skip to the models"
    await page.key("Enter")
    await page.key("Tab")
    assert await page.js(focus) == "Filter models by name"
    await page.type("model-01")
    for wanted in ("model-01", "Load model-01"):
        await page.key("Tab")
        assert await page.js(focus) == wanted
    assert await page.js("getComputedStyle(document.activeElement).outlineStyle") != "none"
    await page.key("Enter")
    await page.shows("Ready", row("model-01"))
    await until(lambda: page.js(f"{focus} === 'Eject model-01'"))  # the same button, and still in focus
    await page.key("Enter")
    await page.shows("Eject model-01?", "dialog")
    await page.key("Escape")
    await until(lambda: page.js("!document.querySelector('dialog')"))
    assert await page.js(focus) == "Eject model-01"
    assert router.state("model-01") == "ready"
