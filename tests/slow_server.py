"""A llama-server that takes its time, as a big model does, and tells how far it is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

STEP_S = 0.05
STATE = {"stages": ["text_model"], "current": "text_model"}


def slow(folder: Path, llama_server: Path) -> Path:
    """The real one, but a model with LOAD_S in its `env` first reports for that long, 20 times a second.

    Meanwhile its port is bound and says that it loads, as the real one's does.
    With MUTE it is one that does not know the protocol of reports: it says nothing of its progress.
    With GATE it gets slower half-way, and never to its end until that file is there.
    """
    path = folder / "slow-llama-server"
    path.write_text(
        f"""#!{sys.executable}
import json, os, socket, sys, threading, time


def refuse(port):
    answer = b"HTTP/1.1 503 Service Unavailable\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n"
    with socket.create_server(("127.0.0.1", port)) as server:
        while True:
            with server.accept()[0] as client:
                client.recv(65536)
                client.sendall(answer)


def is_held_back():
    return "GATE" in os.environ and not os.path.exists(os.environ["GATE"])


def report(value):
    state = dict(state="loading", payload=dict({json.dumps(STATE)}, value=value))
    print("cmd_child_to_router:state:" + json.dumps(state), flush=True)
    time.sleep({STEP_S})


steps = int(float(os.environ.get("LOAD_S", 0)) / {STEP_S})
held = 0
if steps and "--port" in sys.argv:
    threading.Thread(target=refuse, args=[int(sys.argv[sys.argv.index("--port") + 1])], daemon=True).start()
for step in range(steps):
    report(step / steps)
    while 2 * step >= steps and is_held_back():
        held += 1
        report(step / steps + (1 - step / steps) * held / (held + 1000))
    if held:
        break
if "MUTE" in os.environ:
    os.environ.pop("LLAMA_SERVER_ROUTER_PORT", None)
    time.sleep(1)
    while is_held_back():
        time.sleep({STEP_S})
os.execv({str(llama_server)!r}, [{str(llama_server)!r}, *sys.argv[1:]])
"""
    )
    path.chmod(0o755)
    return path
