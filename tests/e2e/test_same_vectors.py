"""Vectors and ranks: what llama-server answers by hand it answers behind the router, byte for byte.

A vector of another pooling has the same length and status as the right one: nobody would notice. One slot
each: on several, inputs share a batch or not, by hand too, and the last digits depend on it.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from app.domain.status import ModelKind
from app.gguf.header import Pooling
from tests.ggufs import make_tiny
from tests.router_process import MakeRouter
from tests.same_answers import Pair, Settings, pairs
from tests.tiny_models import make_encoder

EMBEDDINGS, RERANK = "/v1/embeddings", "/v1/rerank"
CONTEXT = 1024
WHOLE_INPUT = ("-b", str(CONTEXT), "-ub", str(CONTEXT))
"""What llama-server, in its error, asks for where an input is longer than its batch. The router does it."""

SHORT = "the of and to"
LONG = "was that for you " * 150
TOO_LONG = "was that for you " * 400
FILES = ["cls", "mean", "last", "causal-last", "silent", "causal-silent"]


@pytest.fixture(scope="module")
def models(
    make_shared_router: MakeRouter, llama_server: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Pair]]:
    folder = tmp_path_factory.mktemp("models")
    files = {
        "cls": make_encoder(folder / "cls.gguf", Pooling.CLS),
        "mean": make_encoder(folder / "mean.gguf", Pooling.MEAN),
        "last": make_encoder(folder / "last.gguf", Pooling.LAST),
        "causal-last": make_tiny(folder / "causal-last.gguf", pooling_type=Pooling.LAST.value),
        "silent": make_encoder(folder / "silent.gguf", None),
        "causal-silent": make_tiny(folder / "causal-silent.gguf"),
    }
    ranks = make_encoder(folder / "ranks.gguf", Pooling.RANK)
    embeds, reranks = ModelKind.EMBEDDING, ModelKind.RERANK
    settings = {}
    for name, path in files.items():
        mean = ("--pooling", "mean") if "silent" in name else ()  # without it llama-server refuses
        settings[name] = Settings(path, embeds, CONTEXT, by_hand=mean)
        settings[f"{name}-whole"] = replace(settings[name], by_hand=(*mean, *WHOLE_INPUT))
    settings |= {
        "chosen": Settings(files["mean"], embeds, CONTEXT, pooling="cls"),
        "none": Settings(files["silent"], embeds, CONTEXT, pooling="none"),
        "ranks": Settings(ranks, reranks, CONTEXT),
        "ranks-whole": Settings(ranks, reranks, CONTEXT, by_hand=WHOLE_INPUT),
    }
    with pairs(make_shared_router, llama_server, folder, settings) as found:
        yield found


@pytest.mark.parametrize("name", [*FILES, "chosen"])
def test_embeddings(models: dict[str, Pair], name: str) -> None:
    many = [f"{SHORT} {number} {'is ' * number}" for number in range(20)]
    for given in (SHORT, [SHORT], many, [[7, 8, 9], [10]]):
        for encoding in ("float", "base64"):
            answer = models[name].same(EMBEDDINGS, {"input": given, "encoding_format": encoding})
            assert answer.status == 200
            assert b'"embedding":' in answer.body


@pytest.mark.parametrize("name", FILES)
def test_long_inputs(models: dict[str, Pair], name: str) -> None:
    """Longer than llama-server's own batch, which it has to be told to enlarge, and than the context."""
    pair = models[f"{name}-whole"]
    answer = pair.same(EMBEDDINGS, {"input": [LONG, SHORT]})
    assert answer.status == 200
    assert pair.same_refusal(EMBEDDINGS, {"input": TOO_LONG}) == 400


@pytest.mark.parametrize("name", FILES)
def test_the_larger_batch_changes_no_vector(models: dict[str, Pair], name: str) -> None:
    """Where llama-server answers without it, too."""
    by_hand, routed = models[name].ask_both(EMBEDDINGS, {"input": LONG})
    assert routed.status_code == 200
    if by_hand.status_code == 200:
        assert by_hand.content == routed.content
    else:
        assert "increase the physical batch size" in by_hand.text


def test_each_pooling_gives_a_vector_of_its_own(models: dict[str, Pair]) -> None:
    """Else the comparisons above would prove nothing."""
    vectors = [
        models[name].same(EMBEDDINGS, {"input": SHORT}).body for name in ("cls", "mean", "last", "silent")
    ]
    assert len({body.partition(b'"embedding":')[2] for body in vectors}) == 3
    chosen = models["chosen"].same(EMBEDDINGS, {"input": SHORT}).body
    assert chosen.partition(b'"embedding":')[2] == vectors[0].partition(b'"embedding":')[2]


def test_base64_holds_the_same_numbers(models: dict[str, Pair]) -> None:
    floats, encoded = (
        models["cls"].ask_both(EMBEDDINGS, {"input": SHORT, "encoding_format": encoding})[1].json()
        for encoding in ("float", "base64")
    )
    raw = base64.b64decode(encoded["data"][0]["embedding"])
    numbers = struct.unpack(f"<{len(raw) // 4}f", raw)
    assert numbers == pytest.approx(floats["data"][0]["embedding"], abs=1e-6)


def test_a_model_without_pooling_is_refused_and_gives_each_tokens_vector(models: dict[str, Pair]) -> None:
    assert models["none"].same_refusal(EMBEDDINGS, {"input": SHORT}) == 400
    answer = models["none"].same_through_tunnel("/embeddings", {"content": SHORT})
    assert answer.status == 200


@pytest.mark.parametrize("name", ["cls", "causal-last"])
def test_native_embeddings_through_the_tunnel(models: dict[str, Pair], name: str) -> None:
    assert models[name].same_through_tunnel("/embedding", {"content": [SHORT, "is"]}).status == 200
    assert models[name].same_through_tunnel("/props", method="GET").status == 200


def test_ranks(models: dict[str, Pair]) -> None:
    documents = ["and to", "in is you", SHORT, "he was for on are with they"]
    for path in (RERANK, "/rerank"):
        for more in ({}, {"top_n": 2}, {"return_text": True}):
            answer = models["ranks"].same(path, {"query": "the of", "documents": documents, **more})
            assert answer.status == 200
            assert b"relevance_score" in answer.body
    long = models["ranks-whole"].same(RERANK, {"query": "the of", "documents": [LONG, SHORT]})
    assert long.status == 200


@pytest.mark.parametrize(
    ("name", "path", "body"),
    [
        ("cls", EMBEDDINGS, {"input": SHORT, "encoding_format": "nonsense"}),
        ("cls", EMBEDDINGS, {}),
        ("cls", RERANK, {"query": "a", "documents": ["b"]}),
        ("ranks", RERANK, {"query": "a", "documents": []}),
        ("ranks", RERANK, {"documents": ["b"]}),
        ("ranks-whole", RERANK, {"query": "a", "documents": [TOO_LONG]}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_errors_through_the_tunnel(
    models: dict[str, Pair], name: str, path: str, body: dict[str, object]
) -> None:
    assert models[name].same_through_tunnel(path, body).status >= 400
