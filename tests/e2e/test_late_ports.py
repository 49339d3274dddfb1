"""Processes that bind their port long after their start, as large builds on a cold disk do."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from tests.router_process import MakeRouter, chat

ROUNDS = int(os.environ.get("LATE_ROUNDS", "1"))
LATE_S = {"a": 2.9, "b": 3.0, "c": 3.1, "d": 5.5, "e": 5.5, "f": 5.5}
SAYS_IT_LOADS = 'cmd_child_to_router:state:{"state":"loading"}'


def late(folder: Path, llama_server: Path) -> Path:
    """The real one, but with LATE_S it says that it loads, and starts only after that time."""
    path = folder / "late-llama-server"
    path.write_text(
        f'#!/bin/sh\n[ -z "$LATE_S" ] || {{ echo \'{SAYS_IT_LOADS}\'; sleep "$LATE_S"; }}\n'
        f'exec "{llama_server}" "$@"\n'
    )
    path.chmod(0o755)
    return path


async def test_a_load_whose_port_opens_late_is_one_process_and_succeeds(
    make_router: MakeRouter, llama_server: Path, tiny_gguf: Path, tmp_path: Path
) -> None:
    router = make_router(
        {name: {"model_path": tiny_gguf, "env": {"LATE_S": str(s)}} for name, s in LATE_S.items()},
        binary=late(tmp_path, llama_server),
        system={"load_max_retries": 0, "max_concurrent_models": len(LATE_S)},
    )
    async with router.open_client() as http:
        for turn in range(1, ROUNDS + 1):
            asked = (http.post("/v1/chat/completions", json=chat(name)) for name in LATE_S)
            assert [answer.status_code for answer in await asyncio.gather(*asked)] == [200] * len(LATE_S)
            assert [router.loads(name) for name in LATE_S] == [turn] * len(LATE_S)
            router.eject(*LATE_S)
