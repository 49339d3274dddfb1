"""Conversations survive swaps: slots are saved before a planned stop, restored before the first request."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx

from app.core.config import Config
from app.domain.events import MoveResult
from app.domain.file_identity import FileIdentity
from app.domain.model_spec import ModelSpec
from app.domain.status import ModelKind
from app.domain.units import MIB
from app.gguf.header import GgufError
from app.gguf.split_model import split_parts
from app.llama.command_line import BinaryInfo
from app.llama.runner_interface import Runner
from app.memory.ledger.kept_free import KeptFree
from app.memory.probes.host_memory import host_reading
from app.memory.probes.interface import Reading
from app.models.kv_store import Kept, KvStore, file_of

logger = logging.getLogger(__name__)

FLAG = "--slot-save-path"
NOT_SUPPORTED = 501
GB = 10**9


class SlotRefused(Exception):
    """llama-server did not do it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{message} ({status})")
        self.status = status


_TROUBLE = (SlotRefused, httpx.HTTPError, OSError, ValueError, KeyError, TypeError)


@dataclass(frozen=True)
class Moved:
    """How saving or restoring went, in tokens, bytes and seconds."""

    result: MoveResult
    tokens: int
    size: int
    seconds: float


class KvCache:
    """The kept conversations of all models. Whatever goes wrong here is a log line, never an error."""

    TAKES = ("system.cache_max_gb", "system.keep_cache_timeout_sec", "system.min_free_vram_mb")

    def __init__(
        self,
        store: KvStore,
        http: httpx.AsyncClient,
        binary: BinaryInfo,
        config: Config,
        read_host: Callable[[], Reading] = host_reading,
    ) -> None:
        self._store, self._http, self._binary = store, http, binary
        self._read_host = read_host
        self._live: dict[str, tuple[Path, str]] = {}
        self._refused: set[str] = set()
        self.apply(config)

    def apply(self, config: Config) -> None:
        """Take a configuration; `clean` then removes what it no longer wants."""
        self._limit_bytes = int(config.system.cache_max_gb * GB)
        self._timeout_s = config.system.keep_cache_timeout_sec
        self._kept_free = KeptFree.parse(config.system.min_free_vram_mb)
        specs = config.specs().values()
        self._wanted: list[tuple[str, str]] = [
            (s.keep_cache, s.alias) for s in specs if s.keep_cache != "off"
        ]

    async def clean(self) -> None:
        wanted, live = self._wanted, [folder for folder, _ in self._live.values()]
        count = await anyio.to_thread.run_sync(self._store.clean, wanted, live)
        if count:
            logger.info("kept conversations of %d models removed: they are no longer wanted", count)
        if wanted is not self._wanted:  # another configuration came meanwhile
            await self.clean()
        await self._trim()

    async def open(self, spec: ModelSpec) -> Path | None:
        """Where the process that is about to start may save its slots; None: it is served without."""
        self._live.pop(spec.alias, None)
        if spec.keep_cache == "off" or (reason := self._cannot(spec)):
            if spec.keep_cache != "off":
                logger.info("%s: conversations are not kept: %s", spec.alias, reason)
            return None
        try:
            key = await anyio.to_thread.run_sync(validity, spec, self._binary.identity)
            if key in self._refused:
                return None
            folder = await anyio.to_thread.run_sync(self._store.open, spec.keep_cache, spec.alias, key)
        except (OSError, GgufError) as error:
            logger.warning("%s: conversations are not kept: %s", spec.alias, error)
            return None
        self._live[spec.alias] = (folder, key)
        return folder

    def close(self, spec: ModelSpec) -> None:
        """Its process is gone."""
        self._live.pop(spec.alias, None)

    async def restore(self, spec: ModelSpec, runner: Runner) -> Moved | None:
        """What was kept, into the slots that it came from; None where there is nothing."""
        if spec.alias not in self._live:
            return None
        folder, key = self._live[spec.alias]
        begun, done = time.monotonic(), list[Kept]()
        result: MoveResult | None = MoveResult.TIMEOUT
        with anyio.move_on_after(self._timeout_s):
            result = await self._restore(spec, runner, folder, key, done)
        if result is None:
            return None
        if result in (MoveResult.TIMEOUT, MoveResult.FAILED):
            await anyio.to_thread.run_sync(self._forget, spec, folder)
        return self._report(spec, "restored", result, done, begun)

    async def save(self, spec: ModelSpec, runner: Runner, slot_bytes: int = 0) -> Moved | None:
        """Every slot with content, as far as the time allows. The process must live and serve nobody.

        A full slot takes `slot_bytes`; what is kept in memory is kept only where that is free.
        """
        if spec.alias not in self._live:
            return None
        folder, key = self._live[spec.alias]
        begun, done, result = time.monotonic(), list[Kept](), MoveResult.TIMEOUT
        with anyio.move_on_after(self._timeout_s):
            result = await self._save(spec, runner, folder, key, done, slot_bytes)
        await anyio.to_thread.run_sync(self._store.tidy, folder)
        return self._report(spec, "kept", result, done, begun)

    # --- inside

    def _cannot(self, spec: ModelSpec) -> str | None:
        if FLAG not in self._binary.flags:
            return f"this llama-server does not know {FLAG}"
        if spec.kind is not ModelKind.CHAT:
            return "it holds none"
        if spec.params.mmproj or _has_flag(spec, "--mmproj", "-mm", "--mmproj-url", "-mmu"):
            return "llama-server cannot do it for multimodal models"
        return f"its extra_args have {FLAG}" if _has_flag(spec, FLAG) else None

    async def _restore(
        self, spec: ModelSpec, runner: Runner, folder: Path, key: str, done: list[Kept]
    ) -> MoveResult | None:
        """None: there is nothing."""
        try:
            if await anyio.to_thread.run_sync(validity, spec, self._binary.identity) != key:
                self._live.pop(spec.alias)  # its file changed while it was being read
                return None
            kept, damaged = await anyio.to_thread.run_sync(self._store.read, folder, abandon_on_cancel=True)
            if damaged:
                logger.warning("%s: %d kept conversations were damaged and are dropped", spec.alias, damaged)
            for entry in kept:
                await self._ask(runner, "restore", folder, entry.slot)
                done.append(entry)
            await anyio.to_thread.run_sync(self._store.touch, folder)
        except _TROUBLE as error:
            logger.warning("%s: kept conversations are dropped: %s", spec.alias, error or repr(error))
            return MoveResult.FAILED
        if damaged:
            return MoveResult.DAMAGED
        return MoveResult.SUCCESS if kept else None

    async def _save(
        self, spec: ModelSpec, runner: Runner, folder: Path, key: str, done: list[Kept], slot_bytes: int
    ) -> MoveResult:
        try:
            for slot in range(spec.slots):
                await anyio.to_thread.run_sync(self._store.drop, folder, slot)
                if spec.keep_cache == "ram":
                    await anyio.to_thread.run_sync(self._need_room, slot_bytes)
                answer = await self._ask(runner, "save", folder, slot)
                if tokens := int(answer["n_saved"]):
                    done.append(await self._publish(folder, slot, tokens, int(answer["n_written"])))
            await self._trim(folder)
        except _TROUBLE as error:
            logger.warning("%s: conversations could not be kept: %s", spec.alias, error or repr(error))
            if isinstance(error, SlotRefused) and error.status == NOT_SUPPORTED:
                self._refused.add(key)
                self._live.pop(spec.alias, None)
            return MoveResult.FAILED
        return MoveResult.SUCCESS

    def _need_room(self, size: int) -> None:
        """Raises `OSError`. Blocking. A tmpfs is the machine's memory: no process is killed for it."""
        host = self._read_host()
        free_mb = host.free_mb - self._kept_free.of(host)
        if free_mb * MIB < size:
            raise OSError(f"up to {size // MIB} MB are needed, the machine can spare {max(free_mb, 0)} MB")

    async def _publish(self, folder: Path, slot: int, tokens: int, written: int) -> Kept:
        publish = self._store.publish
        kept = await anyio.to_thread.run_sync(publish, folder, slot, tokens, abandon_on_cancel=True)
        if kept.size != written:  # a full disk
            await anyio.to_thread.run_sync(self._store.drop, folder, slot)
            raise OSError(f"{written} bytes were saved, {kept.size} are there")
        return kept

    async def _ask(self, runner: Runner, action: str, folder: Path, slot: int) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {runner.api_key}", "Connection": "close"}
        answer = await self._http.post(
            f"http://127.0.0.1:{runner.port}/slots/{slot}?action={action}",
            json={"filename": file_of(folder, slot).name},
            headers=headers,
            timeout=None,  # the caller's budget counts
        )
        tree = answer.json()
        if answer.status_code != httpx.codes.OK:
            raise SlotRefused(answer.status_code, str(tree["error"]["message"]))
        if not isinstance(tree, dict):
            raise ValueError(f"llama-server answered {answer.text[:200]}")
        return tree

    async def _trim(self, own: Path | None = None) -> None:
        live = [folder for folder, _ in self._live.values()]
        for folder in await anyio.to_thread.run_sync(self._store.trim, self._limit_bytes, live):
            level = logging.WARNING if folder == own else logging.DEBUG
            logger.log(level, "kept conversations in %s removed: system.cache_max_gb is reached", folder)

    def _forget(self, spec: ModelSpec, folder: Path) -> None:
        for slot in range(spec.slots):
            self._store.drop(folder, slot)

    def _report(
        self, spec: ModelSpec, what: str, result: MoveResult, done: list[Kept], begun: float
    ) -> Moved:
        moved = Moved(
            result, sum(k.tokens for k in done), sum(k.size for k in done), time.monotonic() - begun
        )
        level = _LEVELS.get(result, logging.INFO)
        text = "%s: %d tokens of conversation %s in %.2f s (%.1f MB)%s"
        late = ", the rest took too long" if result is MoveResult.TIMEOUT else ""
        logger.log(level, text, spec.alias, moved.tokens, what, moved.seconds, moved.size / 1e6, late)
        return moved


_LEVELS = {MoveResult.TIMEOUT: logging.WARNING, MoveResult.FAILED: logging.DEBUG}


def validity(spec: ModelSpec, build: str) -> str:
    """Everything that a kept cache depends on, as text: with anything else it is another entry. Blocking."""
    values = [arg.rpartition("=")[2] for arg in spec.extra_args]  # adapters, overrides, draft models
    files = [*split_parts(spec.path), *(Path(v) for v in values if "/" in v or v.endswith(".gguf"))]
    tree = {
        "build": build,
        "files": {str(file): FileIdentity.at(file) for file in files},
        "params": spec.params.model_dump(mode="json"),
        "slots": spec.slots,
        "flash_attention": spec.flash_attention,
        "extra_args": spec.extra_args,
        "env": spec.env,
    }
    return json.dumps(tree, sort_keys=True)


def _has_flag(spec: ModelSpec, *flags: str) -> bool:
    return any(arg.partition("=")[0].replace("_", "-") in flags for arg in spec.extra_args)
