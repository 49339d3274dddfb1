"""Prometheus metrics: what happened is counted when it happens, what is is read at scrape time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import anyio.to_thread
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from app.domain.errors import RequestCrashesModel
from app.domain.event_bus import EventBus
from app.domain.events import (
    CacheMoved,
    Event,
    Evicted,
    LoadFinished,
    LoadResult,
    MoveDirection,
    MoveResult,
    Outcome,
    Replayed,
    RequestFinished,
    Restarted,
)
from app.domain.priority import Priority
from app.domain.status import Health, Status, StopReason
from app.domain.units import MIB
from app.domain.views import DeviceView, ModelView
from app.observability.metric_series import Count, Distribution, Family, counter, gauge, histogram, label_text

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
DURATION_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
WAIT_BUCKETS = (0.001, 0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300)
LOAD_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300)
MOVE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SPEED_BUCKETS = (1, 2.5, 5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000, 2000)
PUBLIC_STATUSES = tuple(dict.fromkeys(status.public for status in Status))
_STATUSES = [(name, label_text([("status", name)])) for name in PUBLIC_STATUSES]
_PRIORITIES = [(level, label_text([("priority", level.label)])) for level in Priority]


class _RequestSeries(NamedTuple):
    """What a request counts in: looked up once for all requests that are alike."""

    requests: Count
    duration: Distribution
    wait: Distribution
    ttft: Distribution
    prompt: Count
    generated: Count
    cached: Count
    speed: Distribution


class Metrics:
    """One registry for one router; the labels are the configured aliases and closed sets.

    Who shows its figures calls `EventBus.flush` first: asking here publishes nothing.
    """

    def __init__(
        self,
        bus: EventBus,
        *,
        views: Callable[[], Sequence[ModelView]],
        devices: Callable[[], Sequence[DeviceView]],
        clients: Callable[[], Mapping[str, int]],
    ) -> None:
        """`clients`: bytes that are held for them, by kind."""
        self._views, self._devices, self._clients = views, devices, clients
        self._of_requests: dict[tuple[str, str, Outcome, Priority], _RequestSeries] = {}
        self._make_counters()
        self._make_histograms()
        self._families: tuple[Family[Count] | Family[Distribution], ...] = tuple(
            family for family in vars(self).values() if isinstance(family, Family)
        )
        self._reading = asyncio.Lock()
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)  # memory, CPU and open files of the router itself
        self.start_at_zero([view.alias for view in views()])
        bus.subscribe(self._on_event)

    async def render(self) -> bytes:
        async with self._reading:  # who asks at once is answered in turns: `text` computes
            process = await anyio.to_thread.run_sync(generate_latest, self._process)  # reads /proc
        return self.text().encode() + process

    def text(self) -> str:
        """Everything but the process; with 50 busy models a matter of 2 ms, so the loop can spare it."""
        texts = [family.text() for family in self._families]
        devices = self._devices()
        texts += [*_model_gauges(self._views()), *_gpu_gauges(devices), _host_gauge(devices, self._clients())]
        return "".join(texts)

    def _make_counters(self) -> None:
        self._requests = counter("router_requests", "Total requests processed", "model", "status")
        self._tokens = counter("router_tokens", "Tokens of finished answers", "model", "kind")
        self._loads = counter("router_model_loads", "Model loads by their result", "model", "result")
        self._evictions = counter(
            "router_model_evictions", "Loaded models that were stopped", "model", "reason"
        )
        self._restarts = counter("router_model_restarts", "Restarts after a crash", "model")
        self._cache_saves = counter(
            "router_kv_cache_saves", "Conversations kept at a stop", "model", "result"
        )
        self._cache_restores = counter(
            "router_kv_cache_restores", "Conversations brought back after a load", "model", "result"
        )
        self._cache_bytes = counter("router_kv_cache_bytes", "Saved and restored cache", "model", "direction")
        self._replays = counter("router_request_replays", "Requests replayed after a crash", "model")
        self._quarantined = counter(
            "router_requests_quarantined", "Requests refused because they crash llama-server", "model"
        )

    def _make_histograms(self) -> None:
        self._duration = histogram(
            "router_request_duration_seconds", "Arrival to last byte", DURATION_BUCKETS, "model", "endpoint"
        )
        self._wait = histogram(
            "router_queue_wait_seconds", "Arrival to grant", WAIT_BUCKETS, "model", "priority"
        )
        self._ttft = histogram(
            "router_time_to_first_token_seconds", "Arrival to first byte", DURATION_BUCKETS, "model"
        )
        self._cache_move = histogram(
            "router_kv_cache_seconds", "Time to save or restore", MOVE_BUCKETS, "model", "direction"
        )
        self._load = histogram("router_model_load_seconds", "Spawn to ready", LOAD_BUCKETS, "model")
        self._speed = histogram(
            "router_generation_tokens_per_second", "Generation speed of an answer", SPEED_BUCKETS, "model"
        )

    def start_at_zero(self, aliases: Iterable[str]) -> None:
        """A counter that appears with its first event hides that event from `rate()`."""
        for alias in aliases:
            self._touch(alias)

    def _touch(self, alias: str) -> None:
        for outcome in Outcome:
            self._requests.labels(alias, outcome.value)
        for kind in ("prompt", "generated", "cached"):
            self._tokens.labels(alias, kind)
        for load in LoadResult:
            self._loads.labels(alias, load.value)
        for reason in StopReason:
            if reason is not StopReason.SHUTDOWN:
                self._evictions.labels(alias, reason.value)
        for result in MoveResult:
            self._cache_restores.labels(alias, result.value)
            if result is not MoveResult.DAMAGED:
                self._cache_saves.labels(alias, result.value)
        for direction in MoveDirection:
            self._cache_bytes.labels(alias, direction.value)
        self._restarts.labels(alias)
        self._replays.labels(alias)
        self._quarantined.labels(alias)
        for figure in (self._load, self._ttft, self._speed):
            figure.labels(alias)

    def _on_event(self, event: Event) -> None:
        if isinstance(event, RequestFinished):
            self._finished(event)
        elif isinstance(event, LoadFinished):
            self._loads.labels(event.alias, event.result.value).inc()
            if event.result is LoadResult.SUCCESS:
                self._load.labels(event.alias).observe(event.seconds)
        elif isinstance(event, Evicted):
            self._evictions.labels(event.alias, event.reason.value).inc()
        elif isinstance(event, Restarted):
            self._restarts.labels(event.alias).inc()
        elif isinstance(event, CacheMoved):
            self._cache_moved(event)
        elif isinstance(event, Replayed):
            self._replays.labels(event.alias).inc()

    def _cache_moved(self, event: CacheMoved) -> None:
        direction = event.direction.value
        saved = event.direction is MoveDirection.SAVED
        (self._cache_saves if saved else self._cache_restores).labels(event.alias, event.result.value).inc()
        self._cache_bytes.labels(event.alias, direction).inc(event.size)
        self._cache_move.labels(event.alias, direction).observe(event.seconds)

    def _series_of(self, event: RequestFinished) -> _RequestSeries:
        alias = event.alias
        return _RequestSeries(
            self._requests.labels(alias, event.outcome.value),
            self._duration.labels(alias, event.endpoint),
            self._wait.labels(alias, event.priority.label),
            self._ttft.labels(alias),
            self._tokens.labels(alias, "prompt"),
            self._tokens.labels(alias, "generated"),
            self._tokens.labels(alias, "cached"),
            self._speed.labels(alias),
        )

    def _finished(self, event: RequestFinished) -> None:
        usage, key = event.usage, (event.alias, event.endpoint, event.outcome, event.priority)
        series = self._of_requests.get(key)
        if series is None:
            series = self._of_requests[key] = self._series_of(event)
        series.requests.inc()
        series.duration.observe(event.duration_s)
        if event.error == RequestCrashesModel.code:
            self._quarantined.labels(event.alias).inc()
        if event.queue_wait_s is not None:
            series.wait.observe(event.queue_wait_s)
        if event.ttft_s is not None:
            series.ttft.observe(event.ttft_s)
        if usage.prompt:
            series.prompt.inc(usage.prompt)
        if usage.generated:
            series.generated.inc(usage.generated)
        if usage.cached:
            series.cached.inc(usage.cached)
        if usage.generation_tps is not None:
            series.speed.observe(usage.generation_tps)


def _model_gauges(views: Sequence[ModelView]) -> Iterator[str]:
    names = [label_text([("model", view.alias)]) for view in views]
    shown = list(zip(names, views, strict=True))

    def each(name: str, text: str, value: Callable[[ModelView], float]) -> str:
        return gauge(name, text, [(model, value(view)) for model, view in shown])

    yield each("router_model_vram_bytes", "VRAM usage per model", lambda v: (v.vram_mb or 0) * MIB)
    yield each("router_queue_depth", "Current queue depth per model", lambda v: v.waiting)
    yield gauge(
        "router_queue_depth_by_priority",
        "Waiting requests",
        [(f"{m},{label}", v.waiting_by_level[level]) for m, v in shown for level, label in _PRIORITIES],
    )
    yield each("router_requests_in_flight", "Requests in a slot", lambda v: v.in_flight)
    yield gauge(
        "router_model_status",
        "1 for the status that it has",
        [(f"{m},{label}", v.status.public == name) for m, v in shown for name, label in _STATUSES],
    )
    yield gauge(
        "router_model_memory_estimate_bytes",
        "Estimated need, safety factor included",
        [(m, v.estimated_mb * MIB) for m, v in shown if v.estimated_mb is not None],
    )
    yield each(
        "router_model_memory_reserved_bytes",
        "Reserved for it now",
        lambda v: MIB * sum(p.reserved_mb for p in v.processes),
    )
    yield gauge(
        "router_model_healthy",
        "Verdict on a loaded model",
        [(m, p.health is Health.HEALTHY) for m, v in shown if (p := v.process) and p.health is not None],
    )
    loaded = sum(view.status in (Status.READY, Status.DRAINING) for view in views)
    yield gauge("router_models_loaded", "Models that are loaded", [("", loaded)])


def _gpu_gauges(devices: Sequence[DeviceView]) -> Iterator[str]:
    gpus = [(label_text([("gpu", device.id)]), device) for device in devices if device.is_gpu]
    yield gauge(
        "router_gpu_memory_bytes",
        "Memory of a GPU",
        [(f'{gpu},kind="{kind}"', mb * MIB) for gpu, device in gpus for kind, mb in _figures(device)],
    )
    yield gauge(
        "router_gpu_utilization_ratio",
        "Load of a GPU, 0 to 1",
        [(gpu, device.utilization) for gpu, device in gpus if device.utilization is not None],
    )


def _host_gauge(devices: Sequence[DeviceView], clients: Mapping[str, int]) -> str:
    host = [(k, mb * MIB) for device in devices if not device.is_gpu for k, mb in _figures(device)]
    return gauge(
        "router_host_memory_bytes",
        "The machine's own memory, or what its control group may use of it, and what is held for clients",
        [(label_text([("kind", kind)]), size) for kind, size in [*host, *clients.items()]],
    )


def _figures(device: DeviceView) -> Iterable[tuple[str, int]]:
    yield "total", device.total_mb
    yield "used", device.used_mb
    yield "reserved", device.reserved_mb
    yield "free", max(device.free_mb, 0)
