"""How a model's token vectors become one: the user's choice, else the file's, else the mean.

llama-server follows the file too, but answers `/v1/embeddings` with 400 where the file says nothing.
`--pooling` overrides the file, and wrong vectors look like right ones: so the router adds it there only.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from app.domain.model_spec import ModelSpec
from app.domain.status import ModelKind
from app.gguf.header import GgufHeader, Pooling

DEFAULT = Pooling.MEAN.flag
FLAG = "--pooling"
VARIABLE = "LLAMA_ARG_POOLING"


@dataclass(frozen=True)
class PoolingChoice:
    used: str | None
    """None where only llama-server knows."""

    source: str
    flag: str | None = None
    """The value of `--pooling` on the command line; None: llama-server is not told."""

    def __str__(self) -> str:
        advice = "; /v1/embeddings will be refused: set params.pooling" if self.used == "none" else ""
        return f"pooling {self.used or 'as llama-server decides'} ({self.source}){advice}"


def choose_pooling(spec: ModelSpec, header: GgufHeader | None) -> PoolingChoice:
    """Without a header llama-server decides: a request that it refuses is better than a wrong vector."""
    return _by_user(spec) or _by_file(spec, header)


def _by_user(spec: ModelSpec) -> PoolingChoice | None:
    """As llama-server ranks them: the last argument, and any argument before the environment."""
    chosen, environment = spec.params.pooling, dict(spec.env)
    extra = [value for name, value in pairwise(spec.extra_args) if name == FLAG]
    if extra:
        return PoolingChoice(extra[-1], "extra_args", chosen)
    if chosen is not None:
        return PoolingChoice(chosen, "params.pooling", chosen)
    if VARIABLE in environment:
        return PoolingChoice(environment[VARIABLE], f"env.{VARIABLE}")
    return None


def _by_file(spec: ModelSpec, header: GgufHeader | None) -> PoolingChoice:
    if spec.kind is ModelKind.CHAT:
        return PoolingChoice(None, "a chat model")
    if spec.kind is ModelKind.RERANK:
        return PoolingChoice(Pooling.RANK.flag, "a reranking model")
    if header is None:
        return PoolingChoice(None, "the file's header cannot be read")
    said = header.pooling_type
    if said is None:
        return PoolingChoice(DEFAULT, "the router's default: the file says nothing", DEFAULT)
    known = next((pooling.flag for pooling in Pooling if pooling.value == said), None)
    return PoolingChoice(known, f"the file says {said}" if known is None else "the file says so")
