"""Forms with a file: which model they are for, and that a large one takes no memory."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from app.access.header_lookup import RequestHeaders
from app.configuration.file import parse
from app.core.config import Config
from app.domain.errors import BadRequest, Overloaded, RouterError
from app.main import create_app
from app.proxy.request_body import Spool
from app.proxy.request_memory_limit import ClientMemory
from app.proxy.upload import HELD_BYTES, UploadBody, boundary_of, form_fields
from tests.fakes import FakeLauncher, FakeProbe
from tests.serving import Browser, reached_by
from tests.stand_in import StandIn, llama_server_stand_in

AUDIO = "/v1/audio/transcriptions"
BOUNDARY = b"--x-1"


def form(*parts: tuple[str, bytes]) -> bytes:
    """Each the rest of its Content-Disposition, and its content."""
    lines = [
        b"--%b\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % (BOUNDARY, head.encode(), data)
        for head, data in parts
    ]
    return b"".join(lines) + b"--%b--\r\n" % BOUNDARY


FILE = ('name="file"; filename="a.wav"', os.urandom(100_000) + b"\r\n--nearly")
MODEL = ('name="model"', b"tiny")


@pytest.mark.parametrize("parts", [(MODEL, FILE), (FILE, MODEL), (('name="x"', b"1" * 9999), FILE, MODEL)])
def test_the_model_is_found_wherever_it_stands(parts: tuple[tuple[str, bytes], ...]) -> None:
    stream = ('name="stream"', b"true")
    assert form_fields(BOUNDARY, form(*parts, stream)) == {"model": "tiny", "stream": True}


def test_a_file_that_is_called_model_names_none() -> None:
    assert form_fields(BOUNDARY, form(('name="model"; filename="model"', b"tiny"))) == {}


@pytest.mark.parametrize("broken", [b"", b"{}", form(MODEL)[:-4], form(MODEL)[5:], form(*[MODEL] * 1001)])
def test_what_is_no_whole_form_is_told(broken: bytes) -> None:
    with pytest.raises(BadRequest):
        form_fields(BOUNDARY, broken)


@pytest.mark.parametrize(
    "given",
    [
        "application/json",
        "",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/mixed; boundary=x",
    ],
)
def test_other_types_are_refused(given: str) -> None:
    with pytest.raises(RouterError):
        boundary_of(RequestHeaders([(b"content-type", given.encode())]))


def test_a_large_upload_is_in_a_file_and_a_small_one_is_not() -> None:
    memory = ClientMemory(Config(), machine_mb=1000)
    body, pieces = UploadBody(memory, 8 * HELD_BYTES), [os.urandom(HELD_BYTES // 3) for _ in range(24)]
    body.add(pieces[0])
    assert isinstance(body.data, (bytes, bytearray))
    for piece in pieces[1:]:
        body.add(piece)
    whole = b"".join(pieces)
    assert isinstance(body.data, Spool)
    assert len(body) == len(whole)
    assert body.data[:] == whole
    assert body.data[1000:2000] == whole[1000:2000]
    assert memory.held == HELD_BYTES
    del body
    assert memory.held == 0


def test_uploads_in_files_have_a_bound_too() -> None:
    """Their folder may be in memory."""
    memory = ClientMemory(Config(), machine_mb=16)
    assert memory.limit == 4 * HELD_BYTES
    first = UploadBody(memory)
    for _ in range(3):
        first.add(b"a" * HELD_BYTES)
    second = UploadBody(memory)
    second.add(b"b" * HELD_BYTES)  # in memory
    with pytest.raises(Overloaded):
        second.add(b"b" * HELD_BYTES)
    assert memory.spooled <= 4 * HELD_BYTES
    del first, second
    assert (memory.spooled, memory.held) == (0, 0)


# --- over HTTP


@pytest.fixture
async def upstream() -> AsyncIterator[StandIn]:
    async with llama_server_stand_in(b'{"text":"hello"}') as found:
        yield found


@pytest.fixture(params=["socket", "asgi"])
async def client(
    request: pytest.FixtureRequest, tiny_gguf: Path, tmp_path: Path, upstream: StandIn
) -> AsyncIterator[Browser]:
    kinds: dict[str, Any] = {"tiny": {}, "embed": {"params": {"embedding": True}}}
    tree = {
        "api": {"max_body_mb": 4},
        "system": {"log_dir": str(tmp_path / "logs")},
        "models": {alias: {"model_path": str(tiny_gguf), **model} for alias, model in kinds.items()},
    }
    config = parse(json.dumps(tree), tmp_path, {})
    app = create_app(config, launcher=FakeLauncher(upstream.port), probe=FakeProbe(10_000))
    async with reached_by(request.param, app) as way, way.client() as found:
        yield found


@pytest.mark.parametrize("size", [10, 3_000_000])
async def test_an_upload_reaches_its_model_byte_for_byte(
    client: Browser, upstream: StandIn, size: int
) -> None:
    sent = form(('name="file"; filename="a.wav"', os.urandom(size)), ('name="model"', b"Tiny"))
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY.decode()}"}
    for path in (AUDIO, "/audio/transcriptions"):
        answer = await client.post(path, content=sent, headers=headers)
        assert (answer.status_code, answer.json()) == (200, {"text": "hello"})
        head, _, body = upstream.requests[-1].partition(b"\r\n\r\n")
        assert head.startswith(b"POST /v1/audio/transcriptions ")
        assert headers["Content-Type"].encode() in head
        assert body == sent


async def test_what_is_wrong_with_an_upload_is_told(client: Browser) -> None:
    sound = {"file": ("a.wav", b"abc")}
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({"data": {"model": "nobody"}, "files": sound}, 404, "model_not_found"),
        ({"data": {"model": "embed"}, "files": sound}, 400, "wrong_model_kind"),
        ({"json": {"model": "tiny"}}, 415, "unsupported_media_type"),
        (
            {"data": {"model": "tiny"}, "files": {"file": ("a.wav", bytes(5_000_000))}},
            413,
            "request_too_large",
        ),
    ]
    for request, status, code in cases:
        answer = await client.post(AUDIO, **request)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert (await client.post(AUDIO, files=sound)).status_code == 200  # by the only model of its kind
