"""A real nginx in front of the router, with what docs/deployment.md tells to write."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.node import ROOT
from tests.patience import exit_code
from tests.ports import free_port
from tests.real_parts import NGINX, need
from tests.router_process import until_now

FOLDERS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def nginx() -> str:
    """Its path."""
    return need(NGINX)


@contextmanager
def in_front(folder: Path, router_url: str, block: str | None = None) -> Iterator[str]:
    """The address of an nginx with this block for the prefix `/llm/`, or else with the documented one."""
    port, config = free_port(), folder / "nginx.conf"
    block = (block or _documented()).replace("http://127.0.0.1:8000", router_url)
    config.write_text(_config(folder, port, block))
    command = [nginx(), "-p", str(folder), "-c", str(config), "-e", str(folder / "error.log")]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        until_now(lambda: _serves(url))
        yield url
    finally:
        process.terminate()
        exit_code(process)


def _serves(url: str) -> bool:
    try:
        return httpx.get(f"{url}/llm/health", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _documented() -> str:
    document = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```nginx\n(    location /llm/ .*?)^```", document, re.M | re.S)
    assert "http://127.0.0.1:8000/;" in block
    return str(block)


def _config(folder: Path, port: int, block: str) -> str:
    temporary = "\n".join(f"{name}_temp_path {folder / name};" for name in FOLDERS)
    return f"""
        daemon off; master_process off; pid {folder / "nginx.pid"};
        events {{}}
        http {{
            access_log off; {temporary}
            server {{ listen 127.0.0.1:{port}; {block} }}
        }}
    """
