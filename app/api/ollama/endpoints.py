"""Ollama's endpoints that ask no model, and those that keep a store of models, which the router has none of.

Those that ask a model stand with the others in `app/proxy/routes.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse

from app.api.dependencies import Services, services_of
from app.api.ollama import tags_and_ps
from app.api.ollama.show import shown
from app.api.openapi import FOR_OLLAMA, FOR_SHOW, FOR_STORE, json_body
from app.api.request_json import json_object
from app.domain.errors import BadRequest, NotSupported
from app.domain.model_spec import ModelSpec
from app.proxy.dialects.ollama.ollama_errors import OLLAMA, wrong_type
from app.proxy.dialects.ollama.tagged_names import asked_for


class Json(JSONResponse):
    """Its type as Ollama writes it."""

    def init_headers(self, headers: Mapping[str, str] | None = None) -> None:
        super().init_headers({**(headers or {}), "content-type": OLLAMA.json_type.decode()})


router = APIRouter(tags=["ollama"], responses=FOR_OLLAMA, default_response_class=Json)
store = APIRouter(tags=["ollama"], responses=FOR_STORE)

OLLAMA_VERSION = "0.33.0"
"""The one whose answers these are. Programs compare it with what they need."""


@router.get("/api/version")
async def version(request: Request) -> dict[str, Any]:
    return {"version": OLLAMA_VERSION, "router": request.app.version}


@router.get("/api/status")
async def status() -> dict[str, Any]:
    """There is no cloud behind it."""
    return {"cloud": {"disabled": True, "source": "env"}}


@router.get("/api/tags")
async def tags(request: Request) -> dict[str, Any]:
    """The configured models."""
    services = services_of(request)
    models, cards = list(services.manager.instances.values()), await services.cards.of(_specs(services))
    with_aliases = services.config.api.list_aliases
    return {"models": tags_and_ps.available(models, cards, with_aliases=with_aliases)}


@router.get("/api/ps")
async def ps(request: Request) -> dict[str, Any]:
    """The loaded models."""
    services = services_of(request)
    cards = await services.cards.of(_specs(services))
    return {"models": tags_and_ps.running(services.manager.instances.values(), cards)}


@router.post("/api/show", responses=FOR_SHOW, openapi_extra=json_body({"model": "qwen"}, "model"))
async def show(request: Request) -> dict[str, Any]:
    """What a model's file says."""
    services, asked = services_of(request), _asked(await json_object(request, any_type=True))
    name = asked["model"] or asked["name"]
    if not name:
        raise BadRequest("model is required", param="model")
    spec = services.manager.fleet.find(asked_for(name)).spec
    card = (await services.cards.of({spec.alias: spec})).get(spec.alias)
    return await anyio.to_thread.run_sync(shown, spec, card, asked)


_SHOW_TYPES: Mapping[str, tuple[type, str]] = {
    "model": (str, "a text"),
    "name": (str, "a text"),
    "system": (str, "a text"),
    "template": (str, "a text"),
    "options": (dict, "an object"),
    "verbose": (bool, "true or false"),
}


def _asked(given: Mapping[str, Any]) -> dict[str, Any]:
    """All the fields of a request to show something. Raises `BadRequest`."""
    found = {name.lower(): value for name, value in given.items() if value is not None}
    asked = {name: found.get(name, kind()) for name, (kind, _) in _SHOW_TYPES.items()}
    for name, (kind, wanted) in _SHOW_TYPES.items():
        if not isinstance(asked[name], kind):
            raise wrong_type(name, wanted)
    return asked


def _specs(services: Services) -> dict[str, ModelSpec]:
    return {alias: instance.spec for alias, instance in services.manager.instances.items()}


# --- the store

_INSTEAD = {
    ("POST", "/api/pull"): "download the GGUF file, and add it to `models` of the configuration",
    ("POST", "/api/push"): "copy the GGUF file to where it is wanted",
    ("POST", "/api/create"): "add a model with its `params` to the configuration",
    ("POST", "/api/copy"): "add a name to the model's `aliases` in the configuration",
    ("DELETE", "/api/delete"): "take the model out of the configuration, and delete its file",
    ("POST", "/api/blobs/{digest}"): "copy the GGUF file to this machine, and add it to the configuration",
    ("GET", "/api/blobs/{digest}"): "models are files here: look at GET /api/tags",
    ("POST", "/api/me"): "there are no accounts here: api.api_keys says who may ask",
    ("POST", "/api/signout"): "there are no accounts here: api.api_keys says who may ask",
}


def _without(method: str, path: str, instead: str) -> None:
    error = f"{path} keeps a store, and this router has none: {instead}"

    async def refuse() -> None:
        raise NotSupported(error)

    async def refuse_blob(digest: str) -> None:
        raise NotSupported(error)

    store.add_api_route(
        path,
        refuse_blob if "{digest}" in path else refuse,
        methods=[method],
        name=path,
        summary=instead.capitalize(),
        status_code=501,
    )


for (_method, _path), _instead in _INSTEAD.items():
    _without(_method, _path, _instead)
