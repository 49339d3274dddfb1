"""Conversations are kept when a model stops and come back with it; nothing that fails there matters."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.core.config import Config
from app.domain.events import CacheMoved
from app.domain.model_spec import ModelSpec
from app.domain.status import Status, StopReason
from app.llama.command_line import BinaryInfo, build_command
from app.models.kv_cache import KvCache, validity
from app.models.kv_store import KvStore, file_of
from tests.fakes import World
from tests.router_process import until

BINARY = BinaryInfo(Path("/llama-server"), "1", frozenset({"--slot-save-path"}), "build 1")


class Slots:
    """llama-server's slot endpoints: `content` is what each slot holds, `log` what was asked."""

    def __init__(self) -> None:
        self.content = {0: b"a long conversation"}
        self.status = 200
        self.folder: Callable[[], Path] = Path
        self.log: list[str] = []
        self.restored: dict[int, bytes] = {}
        self.on_ask: Callable[[str], None] = lambda action: None
        self.answers = asyncio.Event()
        self.answers.set()

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        assert request.headers["authorization"] == "Bearer key"
        action, slot = request.url.params["action"], int(request.url.path.split("/")[-1])
        self.log.append(f"{action} {slot}")
        self.on_ask(action)
        await self.answers.wait()
        if self.status != 200:
            return httpx.Response(self.status, json={"error": {"message": "no"}})
        file = self.folder() / json.loads(request.content)["filename"]
        if action == "save":
            content = self.content.get(slot, b"")
            file.write_bytes(content or b"empty")
            return httpx.Response(200, json={"n_saved": len(content), "n_written": len(content or b"empty")})
        self.restored[slot] = file.read_bytes()
        return httpx.Response(200, json={"n_restored": len(self.restored[slot])})


@pytest.fixture
async def slots() -> Slots:
    return Slots()


Build = Callable[..., World]


@pytest.fixture
async def build(slots: Slots, tmp_path: Path) -> AsyncIterator[Build]:
    """A world with room for one of `a`, which keeps its conversations, and `b`, which does not."""
    async with httpx.AsyncClient(transport=httpx.MockTransport(slots)) as http:
        worlds: list[World] = []

        def make(binary: BinaryInfo = BINARY, **a: Any) -> World:
            def kv_cache(config: Config) -> KvCache:
                return KvCache(KvStore(tmp_path / "cache", tmp_path / "no tmpfs"), http, binary, config)

            models = {"a": {"keep_cache": "disk", **a}}
            worlds.append(
                World({"a": 6000, "b": 6000}, models=models, kv_cache=kv_cache, keep_cache_timeout_sec=5)
            )
            slots.folder = lambda: next((tmp_path / "cache").iterdir())
            return worlds[-1]

        yield make
        for world in worlds:
            await world.close()


async def eventually(world: World, condition: Callable[[], bool]) -> None:
    async def settled() -> bool:
        await world.settle()
        return condition()

    await until(settled)


async def serve(world: World, alias: str) -> None:
    await world.settle()  # the devices have been read
    request = world.request(alias)
    await eventually(world, request.granted.is_set)
    await request.finish()


def moves(world: World) -> list[tuple[str, str]]:
    return [(event.direction, event.result) for event in world.events if isinstance(event, CacheMoved)]


def kept_files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.rglob("slot-*"))


SAVED, RESTORED = ("saved", "success"), ("restored", "success")


# --- when ------------------------------------------------------------------------------------------


async def test_a_conversation_is_saved_at_a_swap_and_restored_before_the_next_request(
    build: Build, slots: Slots
) -> None:
    world = build()
    await serve(world, "a")
    seen: list[tuple[str, Status, bool]] = []
    slots.on_ask = lambda action: seen.append(
        (action, world.status("a"), world.launcher.newest("a") in world.launcher.live)
    )
    await serve(world, "b")
    assert seen == [("save", Status.STOPPING, True)]

    await serve(world, "a")
    assert seen[1][0] == "restore"
    assert seen[1][1] in (Status.STARTING, Status.LOADING)
    assert slots.restored == {0: b"a long conversation"}
    assert moves(world) == [SAVED, RESTORED]
    assert world.manager.instances["a"].view().kept.tokens == len(b"a long conversation")


@pytest.mark.parametrize("reason", [StopReason.MANUAL, StopReason.IDLE, StopReason.SHUTDOWN])
async def test_every_planned_stop_saves_also_one_that_cuts_a_request(
    build: Build, reason: StopReason
) -> None:
    world = build()
    request = world.request("a")
    await eventually(world, request.granted.is_set)
    world.manager.instances["a"].stop(reason)
    assert request.cut.is_set()
    await world.manager.instances["a"].until_gone()
    assert moves(world) == [SAVED]


async def test_a_crash_saves_nothing(build: Build, slots: Slots) -> None:
    world = build()
    await serve(world, "a")
    world.launcher.newest("a").die()
    await eventually(world, lambda: world.status("a") is Status.CRASHED)
    assert slots.log == []


async def test_a_model_that_served_nobody_or_is_still_loading_has_nothing_to_save(
    build: Build, slots: Slots
) -> None:
    world = build()
    world.launcher.slow = True
    request = world.request("a")
    await eventually(world, lambda: world.launcher.loads("a") == 1)
    world.manager.instances["a"].stop(StopReason.MANUAL)
    await world.manager.instances["a"].until_gone()
    await request.leave()

    world.launcher.slow = False
    world.manager.preload(["a"])
    await eventually(world, lambda: world.status("a") is Status.READY)
    await world.manager.eject(world.manager.instances["a"], now=True, timeout_s=5)
    assert slots.log == []


async def test_a_model_that_leaves_the_configuration_is_not_saved_and_its_files_go(
    build: Build, slots: Slots, tmp_path: Path
) -> None:
    world = build()
    await serve(world, "a")
    await serve(world, "b")
    await serve(world, "a")
    models = {alias: m for alias, m in world.config.models.items() if alias != "a"}
    world.manager.apply(world.config.model_copy(update={"models": models}))
    await eventually(world, lambda: not kept_files(tmp_path))
    await eventually(world, lambda: not world.launcher.live)
    assert slots.log == ["save 0", "restore 0"]


async def test_a_model_without_keep_cache_asks_and_writes_nothing(
    build: Build, slots: Slots, tmp_path: Path
) -> None:
    world = build(keep_cache="off")
    await serve(world, "a")
    await serve(world, "b")
    await serve(world, "a")
    assert slots.log == []
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "model",
    [{"params": {"mmproj": "/m.gguf"}}, {"params": {"embedding": True}}, {"extra_args": ["--mmproj", "x"]}],
)
async def test_a_model_that_cannot_is_served_without(build: Build, slots: Slots, model: Any) -> None:
    world = build(**model)
    await serve(world, "a")
    await serve(world, "b")
    assert slots.log == []


async def test_a_binary_that_cannot_is_used_without(build: Build, slots: Slots) -> None:
    world = build(binary=replace(BINARY, flags=frozenset()))
    await serve(world, "a")
    await serve(world, "b")
    assert slots.log == []


# --- what goes wrong -------------------------------------------------------------------------------


async def test_a_llama_server_that_does_not_support_it_is_not_asked_again(build: Build, slots: Slots) -> None:
    world = build()
    slots.status = 501
    for alias in ("a", "b", "a", "b"):
        await serve(world, alias)
    assert slots.log == ["save 0"]
    assert moves(world) == [("saved", "failed")]


async def test_a_refused_restore_drops_the_file_and_the_request_is_served(
    build: Build, slots: Slots, tmp_path: Path
) -> None:
    world = build()
    await serve(world, "a")
    await serve(world, "b")
    slots.status = 400
    await serve(world, "a")
    assert moves(world) == [SAVED, ("restored", "failed")]
    assert not kept_files(tmp_path)


async def test_a_file_that_kills_llama_server_is_not_tried_twice(build: Build, slots: Slots) -> None:
    world = build()
    await serve(world, "a")
    await serve(world, "b")

    def die(action: str) -> None:
        world.launcher.newest("a").die()
        raise httpx.ReadError("gone")

    slots.on_ask = die
    request = world.request("a")
    await eventually(world, lambda: world.status("a") in (Status.CRASHED, Status.READY))
    await world.pass_time(60)
    await eventually(world, request.granted.is_set)
    assert slots.log == ["save 0", "restore 0"]


async def test_a_stop_waits_for_saving_no_longer_than_its_budget(
    build: Build, slots: Slots, tmp_path: Path
) -> None:
    world = build()
    await serve(world, "a")
    system = world.config.system.model_copy(update={"keep_cache_timeout_sec": 0.01})
    world.manager.apply(world.config.model_copy(update={"system": system}))
    slots.answers.clear()
    await serve(world, "b")
    assert moves(world) == [("saved", "timeout")]
    assert not kept_files(tmp_path)


async def test_a_stop_during_the_restore_ends_the_load(build: Build, slots: Slots) -> None:
    world = build()
    await serve(world, "a")
    await serve(world, "b")
    slots.answers.clear()
    request = world.request("a")
    await eventually(world, lambda: "restore 0" in slots.log)
    world.manager.instances["a"].stop(StopReason.MANUAL)
    await world.manager.instances["a"].until_gone()
    slots.answers.set()
    await eventually(world, request.granted.is_set)
    assert slots.log == ["save 0", "restore 0", "restore 0"]


async def test_an_empty_slot_is_not_kept(build: Build, slots: Slots, tmp_path: Path) -> None:
    world = build(parallel_requests=2)
    await serve(world, "a")
    await serve(world, "b")
    assert kept_files(tmp_path) == ["slot-0.json", "slot-0.kv"]


async def test_a_file_that_is_shorter_than_llama_server_says_is_not_kept(
    build: Build, slots: Slots, tmp_path: Path
) -> None:
    world = build()
    await serve(world, "a")
    slots.folder = lambda: tmp_path  # as if it were written elsewhere
    await serve(world, "b")
    assert moves(world) == [("saved", "failed")]
    assert not kept_files(tmp_path / "cache")


# --- what makes it valid ---------------------------------------------------------------------------


@pytest.fixture
def spec(tmp_path: Path) -> ModelSpec:
    (tmp_path / "a.gguf").write_bytes(b"model")
    (tmp_path / "lora.gguf").write_bytes(b"lora")
    extra = ["--lora", str(tmp_path / "lora.gguf")]
    model = {"model_path": str(tmp_path / "a.gguf"), "extra_args": extra}
    return Config.model_validate({"models": {"a": model}}).spec("a")


@pytest.mark.parametrize("name", ["a.gguf", "lora.gguf"])
def test_another_file_makes_another_entry(spec: ModelSpec, tmp_path: Path, name: str) -> None:
    before = validity(spec, "build")
    os.utime(tmp_path / name, (1, 1))
    assert validity(spec, "build") != before


def test_another_build_or_set_of_parameters_makes_another_entry(spec: ModelSpec) -> None:
    before = validity(spec, "build")
    params = spec.params.model_copy
    others = [
        replace(spec, params=params(update={"n_ctx": 8192})),
        replace(spec, params=params(update={"type_k": "q8_0"})),
        replace(spec, slots=2),
        replace(spec, flash_attention="off"),
        replace(spec, extra_args=("--rope-scaling", "yarn")),
        replace(spec, env=(("GGML_X", "1"),)),
    ]
    assert before not in {validity(other, "build") for other in others}
    assert validity(spec, "another build") != before


def test_what_the_router_alone_cares_for_makes_no_other_entry(spec: ModelSpec) -> None:
    same = replace(spec, pinned=True, cpu_threads=3, prompt_cache_mb=7, aliases=("x",))
    assert validity(same, "build") == validity(spec, "build")


def test_the_flag_is_given_only_with_a_folder(spec: ModelSpec) -> None:
    flags = "--host --port -m -c -np -ngl --api-key --slot-save-path"
    binary = replace(BINARY, flags=frozenset(flags.split()))
    without = build_command(binary, spec, {}, 1, "k", {})
    with_it = build_command(binary, spec, {}, 1, "k", {}, slot_folder=Path("/kept"))
    assert "--slot-save-path" not in without.argv
    assert with_it.argv[with_it.argv.index("--slot-save-path") + 1] == "/kept"


# --- the files -------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> KvStore:
    (tmp_path / "shm").mkdir()
    return KvStore(tmp_path / "cache", tmp_path / "shm")


def keep(store: KvStore, alias: str, *, mode: str = "disk", size: int = 1000, used: float = 0) -> Path:
    folder = store.open(mode, alias, "key")
    file_of(folder, 0).write_bytes(b"x" * size)
    store.publish(folder, 0, 10)
    os.utime(folder / "slot-0.json", (used, used))
    return folder


def test_files_and_folders_are_private(store: KvStore) -> None:
    for mode in ("disk", "ram"):
        folder = keep(store, "a", mode=mode)
        assert [path.stat().st_mode & 0o777 for path in sorted(folder.iterdir())] == [0o600, 0o600]
        assert [p.stat().st_mode & 0o777 for p in (folder, folder.parent)] == [0o700, 0o700]


def test_memory_means_the_tmpfs_where_there_is_one(store: KvStore, tmp_path: Path) -> None:
    assert (tmp_path / "shm") in keep(store, "a", mode="ram").parents
    elsewhere = KvStore(tmp_path / "cache", tmp_path / "no tmpfs")
    assert (tmp_path / "cache") in keep(elsewhere, "a", mode="ram").parents


def test_a_folder_that_somebody_else_made_is_refused(store: KvStore, tmp_path: Path) -> None:
    folder = keep(store, "a")
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(PermissionError):
        store.open("disk", "a", "key")


def test_what_was_kept_is_read_again(store: KvStore) -> None:
    kept, damaged = store.read(keep(store, "a"))
    assert ([(k.slot, k.tokens, k.size) for k in kept], damaged) == ([(0, 10, 1000)], 0)


@pytest.mark.parametrize("content", [b"x" * 999, b"y" + b"x" * 999, b""])
def test_a_changed_file_is_dropped(store: KvStore, content: bytes) -> None:
    folder = keep(store, "a")
    file_of(folder, 0).write_bytes(content)
    assert store.read(folder) == ([], 1)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("note", ["", "[]", "{}", '{"version": 1, "slot": 0}', "[" * 99_999, "\x00"])
def test_a_broken_note_is_dropped(store: KvStore, note: str) -> None:
    folder = keep(store, "a")
    (folder / "slot-0.json").write_text(note)
    assert store.read(folder) == ([], 1)
    assert list(folder.iterdir()) == []


def test_what_an_interrupted_save_left_is_removed(store: KvStore) -> None:
    folder = store.open("disk", "a", "key")
    file_of(folder, 3).write_bytes(b"half")
    assert store.open("disk", "a", "key") == folder
    assert list(folder.iterdir()) == []


def test_the_least_recently_used_go_when_the_limit_is_reached(store: KvStore) -> None:
    old, new, newest = (keep(store, alias, used=used) for alias, used in (("b", 1), ("a", 2), ("c", 3)))
    assert store.trim(2500, live=[]) == [old]
    assert [folder.exists() for folder in (old, new, newest)] == [False, True, True]


def test_the_folder_of_a_live_process_is_emptied_but_stays(store: KvStore) -> None:
    folder = keep(store, "a")
    assert store.trim(1, live=[folder]) == [folder]
    assert list(folder.iterdir()) == []


def test_only_what_is_no_longer_wanted_is_cleaned(store: KvStore) -> None:
    wanted, gone = keep(store, "a"), keep(store, "b")
    moved = keep(store, "c", mode="ram")
    assert store.clean([("disk", "a"), ("disk", "c")], live=[]) == 2
    assert [folder.exists() for folder in (wanted, gone, moved)] == [True, False, False]


def test_nothing_of_anybody_else_is_ever_removed(store: KvStore, tmp_path: Path) -> None:
    folder = keep(store, "a")
    others = [
        tmp_path / "cache" / "letters" / "slot-0.kv",
        tmp_path / "cache" / "letter.txt",
        folder / "mine",
    ]
    for file in others:
        file.parent.mkdir(exist_ok=True)
        file.touch()
    store.clean([], live=[])
    store.trim(0, live=[])
    assert all(file.exists() for file in others)
    assert not file_of(folder, 0).exists()
