"""Ollama's endpoints that ask no model: what is there, what is loaded, what a file says."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from app.configuration.file import parse
from app.gguf.digest import digest
from app.main import create_app
from app.proxy.dialects.ollama.number_format import duration_ns, parameter_size, quantization, timestamp
from app.proxy.dialects.ollama.tagged_names import asked_for, tagged
from tests.event_loops import on_the_loop_of_the_way, way
from tests.fakes import FakeLauncher, FakeProbe
from tests.serving import Browser, reached_by

__all__ = ["on_the_loop_of_the_way", "way"]  # fixtures

TO_PROGRAMS = {"Accept": "*/*"}


@pytest.fixture
async def client(way: str, tiny_gguf: Path, tmp_path: Path) -> AsyncIterator[Browser]:
    tree = {
        "system": {"log_dir": str(tmp_path / "logs"), "idle_timeout_sec": 300},
        "models": {
            "Chat": {"model_path": str(tiny_gguf), "aliases": ["gpt-4:mini"], "params": {"n_ctx": 512}},
            "me/embed": {"model_path": str(tiny_gguf), "params": {"embedding": True}},
            "twin": {"model_path": str(tiny_gguf), "params": {"n_ctx": 512}},
            "gone": {"model_path": str(tmp_path / "gone.gguf")},
        },
    }
    config = parse(json.dumps(tree), tmp_path, {})
    app = create_app(config, launcher=FakeLauncher(), probe=FakeProbe(10_000))
    async with reached_by(way, app) as reached, reached.client() as browser:
        yield browser


# --- pure


@pytest.mark.parametrize(
    ("name", "shown"),
    [("a", "a:latest"), ("a:7b", "a:7b"), ("me/a", "me/a:latest"), ("host:1/a", "host:1/a:latest")],
)
def test_a_list_shows_every_name_with_a_tag(name: str, shown: str) -> None:
    assert tagged(name) == shown


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("a", "a"),
        (" a:latest ", "a:latest"),
        ("library/a", "library/a"),
        ("host.example/library/a:7b", "library/a:7b"),
        ("https://host.example/library/a", "library/a"),
        ("one/two/three", "one/two/three"),
    ],
)
def test_the_address_of_a_library_is_left_out_of_a_name(name: str, read: str) -> None:
    assert asked_for(name) == read


@pytest.mark.parametrize(
    ("count", "size"),
    [(134_515_008, "134.52M"), (145_920, "146K"), (8_000_000_000, "8B"), (8_190_735_360, "8.2B"), (12, "12")],
)
def test_a_count_of_parameters_is_rounded_as_people_say_it(count: int, size: str) -> None:
    assert parameter_size(count) == size


@pytest.mark.parametrize(
    ("file_type", "level"),
    [("Q4_K - Medium", "Q4_K_M"), ("F16", "F16"), ("all F32", "F32"), ("IQ3_S mix - 3.66 bpw", "IQ3_M"),
     ("IQ2_XXS - 2.0625 bpw", "IQ2_XXS"), ("MXFP4 MoE", "MXFP4"), (None, "unknown")],
)  # fmt: skip
def test_a_quantisation_has_its_short_name(file_type: str | None, level: str) -> None:
    assert quantization(file_type) == level


def test_times_have_nanoseconds_and_no_duration_is_zero() -> None:
    assert timestamp(1_764_256_509_194_288_140) == "2025-11-27T15:15:09.194288140Z"
    assert (duration_ns(0.0), duration_ns(1.5)) == (1, 1_500_000_000)


def test_a_digest_changes_with_any_block_and_with_the_size(tmp_path: Path) -> None:
    file, content = tmp_path / "m.gguf", bytearray(5_000_000)
    found = set()
    for change in (None, 0, 4_999_999):
        if change is not None:
            content[change] = 1
        file.write_bytes(content)
        found.add(digest([file]))
    file.write_bytes(content + b"\0")
    found.add(digest([file]))
    assert len(found) == 4
    assert all(re.fullmatch("[0-9a-f]{64}", one) for one in found)


# --- over HTTP


async def test_a_program_hears_that_something_runs_and_a_browser_gets_the_page(client: Browser) -> None:
    for method in ("GET", "HEAD"):
        answer = await client.request(method, "/", headers=TO_PROGRAMS)
        assert (answer.status_code, answer.headers["content-length"]) == (200, "17")
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.text == ("Ollama is running" if method == "GET" else "")
    page = await client.get("/", headers={"Accept": "text/html,application/xhtml+xml"})
    assert (page.headers["content-type"], page.headers["vary"]) == ("text/html; charset=utf-8", "Accept")


async def test_the_version_is_one_that_programs_can_compare(client: Browser) -> None:
    told = (await client.get("/api/version")).json()
    assert re.fullmatch(r"\d+\.\d+\.\d+", told["version"])
    assert told["router"]
    assert (await client.head("/api/version")).status_code == 200
    assert (await client.get("/api/status")).json()["cloud"]["disabled"] is True


async def test_the_configured_models_are_listed(client: Browser) -> None:
    answer = await client.get("/api/tags")
    chat, other, embed, twin, gone = models = answer.json()["models"]
    names = ["Chat:latest", "gpt-4:mini", "me/embed:latest", "twin:latest", "gone:latest"]
    assert [model["name"] for model in models] == names
    for model in models:
        assert model["model"] == model["name"]
        assert re.fullmatch("[0-9a-f]{64}", model["digest"])
        assert datetime.fromisoformat(re.sub(r"\.\d+Z", "+00:00", model["modified_at"]))
        assert type(model["size"]) is int
    assert {**chat, "name": "", "model": ""} == {**other, "name": "", "model": ""}
    assert chat["capabilities"] == ["completion", "tools"]
    assert chat["details"].pop("parameter_size").endswith(("K", "M"))
    assert chat["details"] == {
        "parent_model": "",
        "format": "gguf",
        "family": "llama",
        "families": ["llama"],
        "quantization_level": "unknown",
        "context_length": 4096,
        "embedding_length": 64,
    }
    assert embed["capabilities"] == ["embedding"]
    assert embed["digest"] != chat["digest"]
    assert twin["digest"] != chat["digest"], "names of one digest are one model to programs"
    assert (gone["size"], gone["details"]["families"]) == (0, [])


async def test_what_is_loaded_is_listed_with_the_time_when_it_goes(client: Browser) -> None:
    assert (await client.get("/api/ps")).json() == {"models": []}
    await client.post("/v1/models/load?wait=true", json={"model": "Chat"})
    (model,) = (await client.get("/api/ps")).json()["models"]
    assert (model["name"], model["context_length"]) == ("Chat:latest", 512)
    assert model["size"] >= model["size_vram"] > 0
    assert set(model["details"]) == {
        "parent_model", "format", "family", "families", "parameter_size", "quantization_level",
    }  # fmt: skip
    left = datetime.fromisoformat(re.sub(r"\.\d+Z", "+00:00", model["expires_at"])) - datetime.now(
        timezone.utc
    )
    assert timedelta(0) < left <= timedelta(seconds=300)
    instance = client.way.app.state.services.manager.fleet.find("Chat")
    instance.ttl_s = float("inf")
    (model,) = (await client.get("/api/ps")).json()["models"]
    assert int(model["expires_at"][:4]) > datetime.now(timezone.utc).year + 290


NAMES = ("Chat", "chat:latest", "library/CHAT", "gpt-4:mini", "x.example/library/chat")


async def test_a_models_file_is_shown_under_every_name_of_it(client: Browser) -> None:
    for field, name in (("model", NAMES[0]), *(("name", name) for name in NAMES)):
        body = json.dumps({"model": "", field: name})
        answer = await client.post("/api/show", content=body, headers={"Content-Type": "text/plain"})
        assert answer.status_code == 200, (field, name, answer.text)
        shown = answer.json()
    info = shown["model_info"]
    assert not {"general.name", "tokenizer.chat_template"} & set(info)
    assert info["general.architecture"] == "llama"
    assert info[f"{info['general.architecture']}.context_length"] == 4096
    assert info["general.parameter_count"] > 0
    assert info["tokenizer.ggml.tokens"] is None
    assert all(tensor.keys() == {"name", "type", "shape"} for tensor in shown["tensors"])
    assert "token_embd.weight" in {tensor["name"] for tensor in shown["tensors"]}
    assert shown["parameters"] == "num_ctx                        512"
    assert "im_start" in shown["template"]
    assert shown["capabilities"] == ["completion", "tools"]
    assert shown.keys() >= {"modelfile", "details", "modified_at"}
    assert shown.keys().isdisjoint({"system", "license", "projector_info", "messages"})


async def test_what_is_asked_for_beside_it_counts_for_this_answer(client: Browser) -> None:
    more = {"verbose": True, "system": "Be kind.", "options": {"stop": ["a b"], "temperature": 0.5}}
    shown = (await client.post("/api/show", json={"model": "chat", **more})).json()
    assert shown["model_info"]["tokenizer.ggml.tokens"][0] == "<unk>"
    assert shown["system"] == "Be kind."
    for line in ('SYSTEM """Be kind."""', 'PARAMETER stop "a b"', "PARAMETER temperature 0.5"):
        assert line in shown["modelfile"].splitlines()
    assert "temperature" not in shown["parameters"]
    plain = (await client.post("/api/show", json={"model": "chat"})).json()
    assert "Be kind" not in plain["modelfile"]


async def test_a_file_that_is_gone_is_shown_empty(client: Browser) -> None:
    shown = (await client.post("/api/show", json={"model": "gone"})).json()
    assert (shown["model_info"], shown["tensors"]) == ({}, [])


MISTAKES = {b"": 400, b"{": 400, b"[]": 400, b"{}": 400, b'{"model":""}': 400, b'{"model":5}': 400,
            b'{"model":"nope"}': 404}  # fmt: skip


async def test_an_error_is_a_text(client: Browser) -> None:
    for body, status in MISTAKES.items():
        answer = await client.post("/api/show", content=body)
        assert (answer.status_code, answer.json().keys()) == (status, {"error"}), body
        assert isinstance(answer.json()["error"], str)
    assert answer.json()["error"].startswith("model 'nope' not found")


async def test_what_would_need_a_store_says_what_to_do_instead(client: Browser) -> None:
    for method, path in (
        ("POST", "/api/pull"),
        ("POST", "/api/push"),
        ("POST", "/api/create"),
        ("POST", "/api/copy"),
        ("DELETE", "/api/delete"),
        ("POST", "/api/blobs/sha256:00"),
        ("HEAD", "/api/blobs/sha256:00"),
    ):
        answer = await client.request(method, path, content=b"{}" if method != "HEAD" else None)
        assert answer.status_code == 501, path
        if method != "HEAD":
            assert "router" in answer.json()["error"]
    for method, path, status in (("GET", "/api/nope", 404), ("PUT", "/api/show", 405)):
        answer = await client.request(method, path)
        assert (answer.status_code, answer.json().keys()) == (status, {"error"})
