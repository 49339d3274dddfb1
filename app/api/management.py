"""Management: load, eject, reset, status, failures, plan, logs, and the status stream."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Literal

import anyio.to_thread
from fastapi import APIRouter, Query, Request
from sse_starlette import EventSourceResponse
from sse_starlette.sse import AppStatus
from starlette.responses import JSONResponse, PlainTextResponse, Response

from app.api import model_list
from app.api.dependencies import Services, services_of
from app.api.guard import client_of, require_admin
from app.api.openapi import FOR_MANAGEMENT, json_body
from app.api.request_json import json_object
from app.domain.status import Status
from app.domain.views import HOST
from app.models.instance import ModelInstance
from app.proxy.request_parameters import named_model
from app.scheduling.actions import Preview

# Its own watcher cuts streams off when a signal comes; ours end after their last event, in `app.main.drain`.
AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]

router = APIRouter(tags=["management"], responses=FOR_MANAGEMENT)

_BODY = json_body({"model": "qwen"}, "model")


@router.post("/v1/models/load", status_code=202, openapi_extra=_BODY)
async def load(request: Request, wait: bool = False) -> Response:
    """Load without a request: at once 202 and the status, or 200 when it is loaded with `?wait=true`."""
    services, instance = await _managed(request)
    await services.manager.load(instance, wait=wait)
    ready = instance.status is Status.READY
    return JSONResponse(_status(services, instance), status_code=200 if ready else 202)


@router.post("/v1/models/eject", openapi_extra=_BODY)
async def eject(request: Request, mode: Literal["drain", "now"] = "drain") -> dict[str, Any]:
    """Free its memory after the running requests, or with `?mode=now` without waiting for them."""
    services, instance = await _managed(request)
    timeout_s = services.config.system.drain_timeout_sec
    if not await services.manager.eject(instance, now=mode == "now", timeout_s=timeout_s):
        message = f"{instance.alias} is not loaded"
        return {"status": "not_found", "model_ejected": None, "message": message}
    message = f"{instance.alias} has been stopped and its memory freed"
    return {"status": "success", "model_ejected": instance.alias, "message": message}


@router.post("/models/load", openapi_extra=_BODY)
async def load_as_router_mode(request: Request) -> dict[str, Any]:
    """As in llama-server's router mode."""
    services, instance = await _managed(request)
    await services.manager.load(instance, wait=False)
    return {"success": True}


@router.get("/models/sse")
async def events_as_router_mode(request: Request) -> Response:
    """Server-sent events as in llama-server's router mode: what becomes of models."""
    return event_stream(services_of(request).peer_feed.stream())


@router.post("/models/unload", openapi_extra=_BODY)
async def unload_as_router_mode(request: Request) -> dict[str, Any]:
    """As in llama-server's router mode."""
    services, instance = await _managed(request)
    await services.manager.eject(instance, now=False, timeout_s=services.config.system.drain_timeout_sec)
    return {"success": True}


@router.get("/v1/models/failed")
async def failed(request: Request) -> dict[str, Any]:
    """Failed models; the tails of their logs for keys with `admin` only."""
    instances, admin = services_of(request).manager.instances.values(), client_of(request).admin
    return {"failed_models": [_failure(i, with_log=admin) for i in instances if i.status is Status.FAILED]}


@router.get("/v1/models/status")
async def status_of_all(request: Request) -> dict[str, Any]:
    return services_of(request).status.full()


@router.get("/v1/models/status/stream")
async def status_stream(request: Request) -> Response:
    """Server-sent events: `full_status`, then `model_update`, `server_update`, `heartbeat`."""
    return event_stream(services_of(request).feed.stream())


@router.post("/v1/models/{alias:path}/reset")
async def reset(request: Request, alias: str) -> dict[str, Any]:
    """Let a failed model be loaded again."""
    require_admin(request)
    instance = services_of(request).manager.fleet.find(alias)
    previous = instance.reset()
    if previous is None:
        message = f"{instance.alias} has not failed"
        return {"status": "not_found", "model": instance.alias, "message": message, "previous_error": None}
    message = f"{instance.alias} will be loaded again when it is asked for"
    return {"status": "success", "model": instance.alias, "message": message, "previous_error": previous}


@router.get("/v1/models/{alias:path}/status")
async def status_of_one(request: Request, alias: str) -> dict[str, Any]:
    services = services_of(request)
    return _status(services, services.manager.fleet.find(alias))


@router.get("/v1/models/{alias:path}/plan")
async def plan(request: Request, alias: str) -> dict[str, Any]:
    """What a load would do now: where it would go, who would be stopped, how much it would take."""
    services = services_of(request)
    instance = services.manager.fleet.find(alias)
    found = await services.manager.preview(instance)
    return _plan(services, instance, found)


@router.get("/v1/models/{alias:path}/logs")
async def logs(
    request: Request, alias: str, lines: int = Query(200, ge=1, le=10000), follow: bool = False
) -> Response:
    """The end of the process's log as text, or with `?follow=true` as server-sent events while it grows."""
    require_admin(request)
    services = services_of(request)
    instance = services.manager.fleet.find(alias)
    if follow:
        return event_stream(_followed(services, instance.alias, lines))
    in_file = await anyio.to_thread.run_sync(services.logs.read_tail, instance.alias, lines)
    tail = in_file or services.logs.open(instance.alias).tail(lines)  # the folder may not be writable
    return PlainTextResponse("\n".join(tail) + ("\n" if tail else ""))


@router.get("/v1/models/{alias:path}")
async def one_model(request: Request, alias: str) -> dict[str, Any]:
    services = services_of(request)
    instance = services.manager.fleet.find(alias)
    cards = await services.cards.of({instance.alias: instance.spec})
    own = model_list.entry(instance, cards.get(instance.alias), services.started_unix)
    return model_list.renamed(own, alias) if alias in instance.spec.aliases else own


def event_stream(events: AsyncIterator[Any]) -> EventSourceResponse:
    """Comments keep proxies from closing it; a reader that takes nothing for a minute is left."""
    stream = EventSourceResponse(events, ping=15, send_timeout=60, headers={"Cache-Control": "no-cache"})
    del stream.headers["Connection"]  # the server's to say
    return stream


async def _managed(request: Request) -> tuple[Services, ModelInstance]:
    require_admin(request)
    services = services_of(request)
    return services, named_model(services.manager.fleet, await json_object(request))


async def _followed(services: Services, alias: str, lines: int) -> AsyncIterator[dict[str, str]]:
    log = services.logs.open(alias)
    with log.subscribe() as follower:
        for line in log.tail(lines):
            yield {"event": "log", "data": line}
        async for line in follower:
            yield {"event": "log", "data": line}


def _status(services: Services, instance: ModelInstance) -> dict[str, Any]:
    return {"model": instance.alias, **services.status.whole(instance.view())}


def _failure(instance: ModelInstance, *, with_log: bool) -> dict[str, Any]:
    failure = instance.lifecycle.failure
    return {
        "model": instance.alias,
        "attempts": instance.lifecycle.restarts.attempts,
        "error": failure.message if failure else None,
        "kind": failure.kind.value if failure else None,
        "exit_code": failure.exit_code if failure else None,
        "log_tail": list(failure.log_tail) if failure and with_log else [],
    }


def _plan(services: Services, instance: ModelInstance, found: Preview) -> dict[str, Any]:
    devices = {d.id: d for d in services.tracker.ledger.devices()}
    places = instance.need and dict.fromkeys(instance.need.devices, instance.need.mb)
    targets = found.placement or places or {}
    on_gpus = {device: mb for device, mb in targets.items() if device != HOST}
    return {
        "model": instance.alias,
        "status": instance.status.public,
        "fits": found.fits,
        "devices": [
            {"index": devices[d].index, "need_mb": mb, "free_mb": max(devices[d].free_mb, 0)}
            for d, mb in (on_gpus or targets).items()
            if d in devices
        ],
        "evicts": list(found.victims),
        "wait_sec": round(found.wait_s, 1),
        "estimate_mb": instance.memory.estimated_mb,
        "estimate_exact": instance.need.exact if instance.need else None,
        "measured_mb": instance.memory.measured_mb,
        "need_mb": instance.need.mb if instance.need else None,
        "host_mb": targets.get(HOST, 0),
        "need_note": instance.need.note if instance.need else None,
        "reason": _plan_reason(services, instance, found),
    }


def _plan_reason(services: Services, instance: ModelInstance, found: Preview) -> str:
    if instance.status.has_process:
        return f"it is {instance.status.public} already"
    if found.refusal is not None:
        return services.manager.scheduler.refusal_error(found.refusal).message
    if found.victims:
        return f"after stopping {', '.join(found.victims)}"
    return "there is room" if found.placement or found.wait_s == 0 else "other models have to be waited for"
