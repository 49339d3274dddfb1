"""One model as it is to be run: all that most of the router knows of the configuration."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import Field

from app.domain.config_types import Count, PathText, Section, Text, Whole
from app.domain.priority import Priority
from app.domain.status import ModelKind

KeepCache = Literal["off", "ram", "disk"]
CacheType = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]
QUANTISED = frozenset({"q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"})
ALL_LAYERS = 99
CPU_ONLY = -1


class ModelParams(Section):
    n_gpu_layers: Whole = Field(ALL_LAYERS, ge=-1, description="99 or more: all layers; -1: CPU only")
    n_ctx: Whole = Field(4096, ge=1, le=2**27, description="tokens that one request may use")
    embedding: bool = Field(
        False, description="an embedding model; where neither this nor `rerank` is set, the file decides"
    )
    type_k: CacheType = Field("f16", description="KV cache type of K")
    type_v: CacheType = Field("f16", description="KV cache type of V")
    pooling: Literal["none", "mean", "cls", "last", "rank"] | None = Field(
        None, description="llama-server's `--pooling`; default: as the file says, `mean` if it says nothing"
    )
    n_batch: Count | None = Field(None, description="llama-server's `-b`")
    n_ubatch: Count | None = Field(None, description="llama-server's `-ub`")
    mmproj: PathText | None = Field(None, description="multimodal projector file")
    chat_template: Text | None = Field(None, description="llama-server's `--chat-template`")
    rerank: bool = Field(False, description="a reranking model; see `embedding`")

    @property
    def kind(self) -> ModelKind:
        if self.rerank:
            return ModelKind.RERANK
        return ModelKind.EMBEDDING if self.embedding else ModelKind.CHAT


@dataclass(frozen=True)
class ModelSpec:
    """One model with the system's defaults filled in. Two equal specs need no restart between them."""

    alias: str
    aliases: tuple[str, ...]
    path: Path
    kind: ModelKind
    pinned: bool
    idle_timeout_s: float | None
    request_timeout_s: float  # how long a slot may stand still; 0: for ever
    slots: int
    priority: Priority
    declared_mb: int | None
    gpu_devices: tuple[int | str, ...] | None  # None: all that are visible
    params: ModelParams
    flash_attention: str
    cpu_threads: int
    prompt_cache_mb: int
    keep_cache: KeepCache
    extra_args: tuple[str, ...]
    env: tuple[tuple[str, str], ...]

    @property
    def cpu_only(self) -> bool:
        return self.params.n_gpu_layers == CPU_ONLY

    def same_process(self, other: ModelSpec) -> bool:
        """They differ at most in what the router alone cares for, so a running process fits both."""
        return self == replace(
            other,
            aliases=self.aliases,
            pinned=self.pinned,
            idle_timeout_s=self.idle_timeout_s,
            request_timeout_s=self.request_timeout_s,
            priority=self.priority,
        )
