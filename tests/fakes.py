"""Stand-ins at the two seams to the world: processes and GPUs. Everything inside is real."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from app.core.config import Config
from app.core.health_monitor import HealthMonitor
from app.core.manager import ModelManager
from app.core.vram_tracker import DeviceTracker
from app.domain.errors import RouterError
from app.domain.event_bus import EventBus
from app.domain.events import Event
from app.domain.file_identity import FileIdentity
from app.domain.model_spec import ModelSpec
from app.domain.priority import Priority
from app.domain.request_fingerprint import Work
from app.domain.status import Status
from app.domain.units import MIB
from app.domain.views import HOST, Placement
from app.judgement.evidence import Evidence
from app.llama.exit_reason import Failure, FailureKind
from app.llama.load_output import LoadLog
from app.llama.runner_interface import Exit, LoadError
from app.memory.amount_to_reserve import Footprint
from app.memory.estimate.estimate import MemoryEstimate, MemoryShare
from app.memory.ledger.kept_free import KeptFree
from app.memory.probes.fixed_cost import FixedCost
from app.memory.probes.interface import Reading
from app.models.kv_cache import KvCache

_pids = itertools.count(1000)


def failure(kind: FailureKind = FailureKind.UNKNOWN, message: str = "it broke.") -> Failure:
    return Failure(kind, message, 1, ("the last line",))


class FakeRunner:
    """A process that does what the test says: `become_ready`, `die`, `fail_to_load`.

    An immortal one ends by `die` only, whoever stops it.
    """

    def __init__(self, spec: ModelSpec, placement: Mapping[str, int], port: int) -> None:
        self.spec, self.layout, self.port = spec, placement, port
        self.placement = {d: mb for d, mb in placement.items() if d != HOST} or dict(placement)
        self.pid = next(_pids)
        self.api_key = "key"
        self.phase = Status.STARTING
        self.load_log = LoadLog()
        self.log: Any = None
        self.stopped = self.unkillable = False
        self.is_healthy = True
        self.is_immortal = False
        self.probes = 0
        self.evidence = Evidence(0.0, shows_slots=False)
        self.clock: Callable[[], float] = time.monotonic
        self.sees: Callable[[FakeRunner], None] = lambda runner: None  # what a look observes beside
        self.on_change: Callable[[Any], None] = lambda runner: None
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    async def ready(self) -> None:
        await asyncio.shield(self._ready)
        self.phase = Status.READY
        self.evidence.ready(self.clock())

    async def exited(self) -> Exit:
        return await asyncio.shield(self._exit)

    async def sample(self) -> None:
        self.evidence.used_processor(self.clock(), 0.0, is_stopped=False)

    async def look(self, *, at_slots: bool) -> None:
        self.probes += 1
        self.evidence.probe_begun(self.clock(), at_slots=at_slots)
        if self.is_healthy:
            self.evidence.probe_answered(self.clock())
        else:
            self.evidence.probe_missed(self.clock())
        self.sees(self)

    async def stop(self, grace_s: float = 2.0) -> None:
        if not self.is_immortal:
            self.die(failure(FailureKind.KILLED, "stopped."))
        elif not self.unkillable:
            self.unkillable = True
            self.on_change(self)

    def say(self, *lines: str) -> None:
        """Lines of its log."""
        for line in lines:
            if self.load_log.feed(line):
                self.on_change(self)

    def become_ready(self) -> None:
        self._ready.set_result(None)

    def fail_to_load(self, reason: Failure) -> None:
        self._ready.set_exception(LoadError(reason))

    def die(self, reason: Failure | None = None) -> None:
        if not self._exit.done():
            self.evidence.exited(self.clock())
            self._exit.set_result(Exit(1, reason or failure(FailureKind.KILLED, "killed.")))


class FakeLauncher:
    """Loads at once unless `slow`; `runners` holds every process ever started, newest last.

    A model's `logs` are what llama-server says of its memory; `takes` is what it uses of its first device,
    where that is not what it was given.
    """

    def __init__(self, port: int = 1) -> None:
        self.slow = False
        self.port = port
        self.clock: Callable[[], float] = time.monotonic
        self.runners: dict[str, list[FakeRunner]] = {}
        self.live: set[FakeRunner] = set()
        self.fail_next: list[Failure | Exception] = []
        self.unfit: dict[str, Failure] = {}
        self.preparing: list[str] = []
        self.logs: dict[str, Sequence[str]] = {}
        self.takes: dict[str, int] = {}

    async def check(self, spec: ModelSpec) -> None:
        if spec.alias in self.unfit:
            raise LoadError(self.unfit[spec.alias])

    async def prepare(self, spec: ModelSpec) -> None:
        self.preparing.append(spec.alias)
        try:
            await asyncio.Event().wait()
        finally:
            self.preparing.remove(spec.alias)

    @asynccontextmanager
    async def launch(
        self,
        spec: ModelSpec,
        placement: Mapping[str, int],
        on_change: Callable[[Any], None],
        slot_folder: Path | None = None,
    ) -> AsyncIterator[FakeRunner]:
        runner = FakeRunner(spec, placement, self.port)
        runner.on_change, runner.clock = on_change, self.clock
        if spec.alias in self.takes:
            runner.placement[next(iter(placement))] = self.takes[spec.alias]
        self.runners.setdefault(spec.alias, []).append(runner)
        self.live.add(runner)
        try:
            self._begin(runner)
            yield runner
        finally:
            if runner.is_immortal:
                with anyio.CancelScope(shield=True):
                    await runner.stop()
                    await runner.exited()
            self.live.discard(runner)
            runner.stopped = True

    def kill_all(self) -> None:
        for runner in tuple(self.live):
            runner.die()

    def _begin(self, runner: FakeRunner) -> None:
        runner.say(*self.logs.get(runner.spec.alias, ()))
        if not self.fail_next:
            if not self.slow:
                runner.become_ready()
            return
        trouble = self.fail_next.pop(0)
        if not isinstance(trouble, Failure):
            raise trouble
        runner.fail_to_load(trouble)

    def newest(self, alias: str) -> FakeRunner:
        return self.runners[alias][-1]

    def loads(self, alias: str) -> int:
        return len(self.runners.get(alias, []))


class FakeProbe:
    """GPUs of which the test sets the free memory; a process's own use follows what it was given."""

    reason: str | None = None
    poll_s = 0.05

    def __init__(self, *total_mb: int) -> None:
        self.total_mb = list(total_mb)
        self.others_mb = [0] * len(total_mb)
        self.error: Exception | None = None
        self.launcher: FakeLauncher | None = None

    def read(self) -> Sequence[Reading]:
        if self.error is not None:
            raise self.error
        return [self._reading(index, total) for index, total in enumerate(self.total_mb)]

    def expire(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _reading(self, index: int, total: int) -> Reading:
        live = self.launcher.live if self.launcher is not None else ()
        by_pid = {r.pid: r.placement[str(index)] for r in live if str(index) in r.placement}
        used = sum(by_pid.values()) + self.others_mb[index]
        names = str(index), f"GPU-{index}", f"Fake {index}"
        return Reading(*names, total, used, total - used, by_pid=by_pid, cost=NO_COST)


NO_COST = FixedCost(0, 0)
NOTHING_KEPT = KeptFree(0, {HOST: 0})


def wide_host(pids: Sequence[int] = ()) -> Reading:
    """More memory than any test can need."""
    return Reading(HOST, HOST, "host memory", 10**6, 0, 10**6)


class _Timer:
    def __init__(self, when: float, callback: Callable[[], object]) -> None:
        self.when, self.callback = when, callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class ManualTimers:
    """An event loop's timers; time passes when `advance` says so."""

    def __init__(self) -> None:
        self.now = 100.0
        self.made: list[_Timer] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], object], /) -> _Timer:
        self.made.append(_Timer(when, callback))
        return self.made[-1]

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [timer for timer in self.made if not timer.cancelled and timer.when <= end]:
            first = min(due, key=lambda timer: timer.when)
            self.now = max(self.now, first.when)
            first.cancelled = True
            first.callback()
        self.now = end


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def footprint(size_mb: int) -> Footprint:
    share = MemoryShare(weights_bytes=size_mb * MIB)
    with_gpu = MemoryEstimate(share, MemoryShare(), exact=True)
    on_host = MemoryEstimate(MemoryShare(), share, exact=True)
    header: Any = None
    return Footprint(
        file_mb=size_mb,
        identity=FileIdentity(1, size_mb),
        header=header,
        with_gpu=with_gpu,
        on_host=on_host,
    )


class World:
    """A manager over fakes. `sizes` are the models' needs in MB; the device has `gpu_mb`."""

    def __init__(
        self,
        sizes: Mapping[str, int],
        *,
        gpu_mb: Sequence[int] = (10_000,),
        models: Any = None,
        kv_cache: Callable[[Config], KvCache] | None = None,
        host: Reading | None = None,
        **system: Any,
    ) -> None:
        settings = {"vram_multiplier": 1.0, "min_free_vram_mb": 0, "foreign_wait_sec": 0}
        tree = {
            "system": {**settings, **system},
            "models": {a: {"model_path": f"/{a}.gguf", **(models or {}).get(a, {})} for a in sizes},
        }
        self.config = Config.model_validate(tree)
        self.sizes = dict(sizes)
        self.footprints: dict[str, Footprint] = {}
        self.clock = Clock()
        self.launcher = FakeLauncher()
        self.launcher.clock = self.clock
        self.probe = FakeProbe(*gpu_mb)
        self.probe.launcher = self.launcher
        self.bus = EventBus()
        self.events: list[Event] = []
        self.bus.subscribe(self.events.append)
        self.requests: list[Request] = []
        self.broken: dict[str, Failure] = {}
        self.host = host
        self.tracker = DeviceTracker(
            self.probe, kept_free=NOTHING_KEPT, clock=self.clock, bus=self.bus, read_host=self._read_host
        )
        self.manager = ModelManager(
            self.config,
            launcher=self.launcher,
            tracker=self.tracker,
            bus=self.bus,
            clock=self.clock,
            inspect_file=self._inspect,
            kv_cache=kv_cache(self.config) if kv_cache is not None else None,
        )

    def _inspect(self, spec: ModelSpec) -> Footprint:
        if spec.alias in self.broken:
            raise LoadError(self.broken[spec.alias])
        return self.footprints.get(spec.alias) or footprint(self.sizes[spec.alias])

    def _read_host(self, pids: Sequence[int]) -> Reading:
        return self.host or wide_host(pids)

    def reserved(self, alias: str) -> Placement:
        """Of the devices that it runs on."""
        process = self.manager.instances[alias].view().process
        return process.on_devices if process is not None else {}

    def status(self, alias: str) -> Status:
        return self.manager.instances[alias].status

    def request(self, alias: str, priority: Priority = Priority.NORMAL) -> Request:
        """A client: waits for its slot, then keeps it until `finish` or `leave`."""
        self.requests.append(Request(self, alias, priority))
        return self.requests[-1]

    async def close(self) -> None:
        """Every client leaves and every process ends."""
        for request in self.requests:
            request.task.cancel()
        await asyncio.gather(*(r.task for r in self.requests), return_exceptions=True)
        await self.manager.stop_all()
        assert not self.launcher.live, "a process was left behind"

    async def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds
        self.manager.scheduler.reconcile_soon()
        await self.settle()

    async def settle(self) -> None:
        """Until nothing moves any more: threads have answered, and every callback has run."""
        for _ in range(3):
            await self.tracker.refresh()
            self.manager.scheduler.reconcile_soon()
            for _ in range(20):
                await asyncio.sleep(0)
            inspections = [t for t in asyncio.all_tasks() if t.get_name().startswith("inspect ")]
            await asyncio.gather(*inspections)

    async def check_health(self, monitor: HealthMonitor) -> None:
        """One look at each loaded model."""
        for instance in self.manager.instances.values():
            if instance.status in (Status.READY, Status.DRAINING) and instance.runner is not None:
                await monitor.check(instance, instance.runner)


class Runs:
    """Owns the ticket of a request that runs."""

    generated: int | None = None

    def __init__(self, cut: asyncio.Event, quiet_since: float | None = None) -> None:
        self._cut, self.quiet_since = cut, quiet_since

    def granted(self) -> None: ...

    def refused(self, error: RouterError) -> None: ...

    def cut(self) -> None:
        self._cut.set()

    def asks_for(self) -> Work | None:
        return None


class Request:
    def __init__(self, world: World, alias: str, priority: Priority) -> None:
        self._world = world
        self._instance = world.manager.fleet.find(alias)
        self.ticket = world.manager.ticket(priority)
        self.granted = asyncio.Event()
        self.cut = asyncio.Event()
        self._done = asyncio.Event()
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        manager = self._world.manager
        manager.enter(self._instance, self.ticket)
        try:
            assert await self.ticket.wait(3600)
            self.ticket.owner = Runs(self.cut)
            self.granted.set()
            await self._done.wait()
        finally:
            manager.leave(self._instance, self.ticket)

    async def finish(self) -> None:
        self._done.set()
        await self.task
        await self._world.settle()

    async def leave(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self._world.settle()


MakeWorld = Callable[..., Awaitable[World]]
"""Models of these sizes, by alias, around a real manager; closed at the end of the test."""
