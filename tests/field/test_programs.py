"""The programs themselves: curl, Java's HttpClient, nginx as it is installed."""

from __future__ import annotations

import asyncio
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.e2e import nginx
from tests.event_loops import on_the_loop_of_production
from tests.field.environment import ANSWER, CHAT, JSON, LARGE, LOAD, SMALL, ask, start, upstream
from tests.real_parts import CURL, JAVA, need
from tests.serving import soon
from tests.stand_in import StandIn

__all__ = ["on_the_loop_of_production", "start", "upstream"]


async def run(*command: str) -> str:
    """What a program prints; it must not fail."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    out, err = await soon(process.communicate())
    assert process.returncode == 0, err.decode() + out.decode()
    return out.decode()


# --- H4, R6


async def test_curl_asks_for_heads(start: Any) -> None:
    port = await start()
    curl = need(CURL)
    for path in ("/", "/health", "/v1/models"):
        for version in ("--http1.1", "--http1.0", "--http2"):
            told = await run(curl, "-sS", "-I", "--fail", version, f"http://127.0.0.1:{port}{path}")
            assert told.split()[1] == "200", (path, version)


# --- H1, R13


async def test_curl_that_offers_http2_is_served(start: Any, upstream: StandIn, tmp_path: Path) -> None:
    port = await start()
    body = tmp_path / "body.json"
    body.write_bytes(LARGE)
    command = [need(CURL), "-sS", "--fail", "--http2", "-H", JSON, "--data-binary", f"@{body}"]
    assert await run(*command, f"http://127.0.0.1:{port}{CHAT}") == ANSWER.decode()
    assert upstream.requests[-1].endswith(LARGE)


_JAVA = """
import java.net.URI;
import java.net.http.*;
public class Ask {
    public static void main(String[] given) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        for (String path : new String[] {"/v1/chat/completions", "/v1/models/load", "/v1/chat/completions"}) {
            HttpRequest request = HttpRequest.newBuilder(URI.create(given[0] + path))
                .header("Content-Type", "application/json")
                .POST(HttpRequest.BodyPublishers.ofString("{\\"model\\":\\"tiny\\"}")).build();
            System.out.println(client.send(request, HttpResponse.BodyHandlers.ofString()).statusCode());
        }
        HttpRequest models = HttpRequest.newBuilder(URI.create(given[0] + "/v1/models")).build();
        System.out.println(client.send(models, HttpResponse.BodyHandlers.ofString()).statusCode());
    }
}
"""


async def test_javas_http_client_is_served(start: Any, tmp_path: Path) -> None:
    port = await start()
    source = tmp_path / "Ask.java"
    source.write_text(_JAVA)
    told = await run(need(JAVA), str(source), f"http://127.0.0.1:{port}")
    assert told.split() == ["200"] * 4


async def test_behind_nginx_as_it_is_installed(start: Any, tmp_path: Path, upstream: StandIn) -> None:
    """It speaks HTTP/1.0, closes each connection, and sends a Host of its own."""
    port = await start()
    block = "location /llm/ { proxy_pass http://127.0.0.1:8000/; }"
    with ExitStack() as stack:
        fronted = nginx.in_front(tmp_path, f"http://127.0.0.1:{port}", block)
        url = await asyncio.to_thread(stack.enter_context, fronted)
        front = int(url.rpartition(":")[2])
        for body in (SMALL, LARGE):
            assert (await ask(front, "POST", f"/llm{CHAT}", JSON, body=body)).body == ANSWER
            assert upstream.requests[-1].endswith(body)
        assert (await ask(front, "POST", f"/llm{LOAD}", JSON, body=SMALL)).status == 200
        for method in ("GET", "HEAD"):
            for path in ("/", "/health", "/v1/models"):
                assert (await ask(front, method, f"/llm{path}")).status == 200, path
