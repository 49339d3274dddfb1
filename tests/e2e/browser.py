"""A headless Chromium, driven over its own protocol: no driver, no extra package."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.patience import exit_code
from tests.ports import free_port
from tests.real_parts import CHROMIUM, need
from tests.router_process import until

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"]
COMPLAINTS = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")


def chromium() -> str:
    return need(CHROMIUM)


class Page:
    """One tab. `complaints` is all that it wrote to its console, blocked resources included."""

    def __init__(self, socket: Any) -> None:
        self.complaints: list[str] = []
        self._socket = socket
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._reading = asyncio.create_task(self._read())

    async def open(self, url: str) -> None:
        for domain in ("Page", "Log", "Runtime"):
            await self.command(f"{domain}.enable")
        await self.size(1500, 950)
        await self.go(url)

    async def go(self, url: str) -> None:
        await self.command("Page.navigate", url=url)

    async def command(self, method: str, **params: Any) -> dict[str, Any]:
        number = len(self._answers) + 1
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        found: dict[str, Any] = await answer
        return found

    async def js(self, expression: str) -> Any:
        found = await self.command(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def text(self, selector: str = "body") -> str:
        return str(await self.js(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    async def shows(self, text: str, selector: str = "body") -> None:
        """Returns when it stands there."""
        seen = ""

        async def found() -> bool:
            nonlocal seen
            seen = await self.text(selector)
            return text in seen

        try:
            await until(found)
        except AssertionError:
            raise AssertionError(f"{text!r} is not in {selector}: {seen!r}") from None

    async def click(self, label: str, within: str = "body") -> None:
        """The button with this text or aria-label."""
        wanted, root = json.dumps(label), json.dumps(within)
        button = f"""[...document.querySelector({root})?.querySelectorAll('button') ?? []].find(
            b => !b.disabled && (b.ariaLabel ?? b.textContent) === {wanted})"""
        await until(lambda: self.js(f"Boolean({button})"))
        await self.js(f"({button}).click()")

    async def type(self, text: str) -> None:
        await self.command("Input.insertText", text=text)

    async def type_into(self, selector: str, text: str) -> None:
        """When it is there."""
        field = f"document.querySelector({json.dumps(selector)})"
        await until(lambda: self.js(f"Boolean({field})"))
        await self.js(f"{field}.focus()")
        await self.type(text)

    async def key(self, name: str) -> None:
        """One key, pressed and released; `Enter`, `Tab`, `Escape`."""
        code = {"Enter": 13, "Tab": 9, "Escape": 27}[name]
        text = {"text": "\r"} if name == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            more = text if kind == "keyDown" else {}
            await self.command(
                "Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code, **more
            )

    async def size(self, width: int, height: int, *, dark: bool = False) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.command("Emulation.setEmulatedMedia", features=[scheme])
        phone = width < 700
        await self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )

    async def shot(self, name: str) -> None:
        """A picture, where SCREENSHOTS names a folder for it."""
        if folder := os.environ.get("SCREENSHOTS"):
            found = await self.command("Page.captureScreenshot", format="png")
            (Path(folder) / f"{name}.png").write_bytes(base64.b64decode(found["data"]))

    async def close(self) -> None:
        self._reading.cancel()
        await self._socket.close()

    async def _read(self) -> None:
        async for message in self._socket:
            told = json.loads(message.data)
            if "id" in told:
                self._answers[told["id"]].set_result(told.get("result", told))
            elif told["method"] in COMPLAINTS:
                self.complaints.append(json.dumps(told["params"])[:600])


@asynccontextmanager
async def browser(binary: str, *flags: str) -> AsyncIterator[Page]:
    port = free_port()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [binary, *FLAGS, *flags, f"--user-data-dir={profile}", f"--remote-debugging-port={port}"]
        process = _started([*command, "about:blank"])
        try:
            async with aiohttp.ClientSession() as session:
                page = Page(await session.ws_connect(await _first_tab(session, port), max_msg_size=0))
                try:
                    yield page
                finally:
                    await page.close()
        finally:
            process.terminate()
            exit_code(process)


def _started(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


async def _first_tab(session: aiohttp.ClientSession, port: int) -> str:
    async def found() -> list[str]:
        try:
            async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                tabs = await answer.json()
        except aiohttp.ClientError:
            return []
        return [tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page"]

    tabs: list[str] = await until(found)
    return tabs[0]
