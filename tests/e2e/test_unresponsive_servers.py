"""A llama-server that lives but does not serve: it closes its port, or connections without an answer."""

from __future__ import annotations

import asyncio
import stat
import sys
from pathlib import Path

import httpx
import pytest

from tests.router_process import MakeRouter, RouterProcess, chat, until

ASK = "/v1/chat/completions"

FAKE = """\
#!{python} -S
import http.server, json, os, subprocess, sys, threading
if "--port" not in sys.argv:
    sys.exit(subprocess.call([{real!r}, *sys.argv[1:]]))
port = int(sys.argv[sys.argv.index("--port") + 1])
folder = os.environ["FAKE_FOLDER"]
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        ours = self.headers.get("Authorization") == "Bearer " + os.environ["LLAMA_API_KEY"]
        self.answer(200 if ours or self.path == "/health" else 401, b"{{}}")
    def do_POST(self):
        wish = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][0]["content"]
        first = not os.path.exists(os.path.join(folder, wish))
        open(os.path.join(folder, wish), "a").close()
        self.close_connection = True
        if wish == "closed port" and first:
            server.socket.close()
        elif wish == "hang up" and first or wish == "always hang up":
            pass
        elif wish == "no http" and first:
            self.wfile.write(b"I am not a web server\\r\\n\\r\\n")
        elif wish == "stuck" and self.is_first_process():
            threading.Event().wait()
        elif wish == "half":
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b'{{"choices": [')
        else:
            self.answer(200, b'{{"choices": []}}')
    def is_first_process(self):
        with open(os.path.join(folder, "pid"), "a+") as file:
            file.seek(0)
            pid = file.read() or str(os.getpid())
            file.write("" if file.tell() else pid)
        return pid == str(os.getpid())
    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass
class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request, client_address): pass
server = Server(("127.0.0.1", port), Handler)
print("listening", flush=True)
try:
    server.serve_forever()
finally:
    threading.Event().wait()
"""


@pytest.fixture(scope="module")
def router(
    make_shared_router: MakeRouter,
    llama_server: Path,
    tiny_gguf: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> RouterProcess:
    folder = tmp_path_factory.mktemp("fake")
    binary = folder / "fake-llama-server"
    binary.write_text(FAKE.format(python=sys.executable, real=str(llama_server)))
    binary.chmod(binary.stat().st_mode | stat.S_IXUSR)
    return make_shared_router(
        {"m": {"model_path": tiny_gguf, "env": {"FAKE_FOLDER": str(folder)}, "parallel_requests": 8}},
        binary=binary,
        system={"max_restarts": 1000, "request_timeout_sec": 5},
    )


async def ask(http: httpx.AsyncClient, content: str) -> httpx.Response:
    return await http.post(ASK, json=chat("m", content=content))


async def test_a_model_that_closed_its_port_is_replaced_and_nobody_notices(
    router: RouterProcess, http: httpx.AsyncClient
) -> None:
    router.load("m")
    before = router.status("m")["pid"]

    first = await ask(http, "closed port")
    others = await asyncio.gather(*(ask(http, f"other {i}") for i in range(8)))

    assert {answer.status_code for answer in (first, *others)} == {200}
    assert router.status("m")["pid"] != before
    assert "hung (it closed its port)" in router.log()


@pytest.mark.parametrize("fault", ["hang up", "no http"])
async def test_a_connection_that_broke_is_tried_once_more_and_the_process_stays(
    router: RouterProcess, http: httpx.AsyncClient, fault: str
) -> None:
    router.load("m")
    before = router.status("m")["pid"]
    assert (await ask(http, fault)).status_code == 200
    assert router.status("m")["pid"] == before


async def test_a_request_that_is_always_hung_up_on_ends_in_an_error(
    router: RouterProcess, http: httpx.AsyncClient
) -> None:
    answer = await ask(http, "always hang up")
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "model_crashed")
    await until(lambda: router.is_quiet("m"))


async def test_half_an_answer_is_not_passed_off_as_a_whole_one(
    router: RouterProcess, http: httpx.AsyncClient
) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        await ask(http, "half")
    await until(lambda: router.is_quiet("m"))
    assert (await ask(http, "fine")).status_code == 200


async def test_a_model_that_answers_only_probes_is_replaced(
    router: RouterProcess, http: httpx.AsyncClient
) -> None:
    router.load("m")
    before = router.status("m")["pid"]

    lost = await ask(http, "stuck")
    assert (lost.status_code, lost.json()["error"]["code"]) == (504, "upstream_timeout")
    assert lost.headers["x-should-retry"] == "false"

    assert (await ask(http, "stuck")).status_code == 200
    assert router.status("m")["pid"] != before
    assert "hung (nothing has moved for " in router.log()
