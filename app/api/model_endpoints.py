"""The model-routed endpoints as the framework knows them: described, and closed to other methods.

`app/proxy` answers their requests before the framework sees one.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api import model_list
from app.api.dependencies import services_of
from app.api.openapi import FOR_MODELS, FOR_OLLAMA_MODELS, MODEL_IN_QUERY, form_body, json_body
from app.domain.errors import InternalError
from app.proxy.routes import ENDPOINTS, INFO_PATHS, TUNNEL, TUNNEL_METHODS

router = APIRouter(responses=FOR_MODELS)
ollama = APIRouter(responses=FOR_OLLAMA_MODELS)


async def _described(request: Request) -> Response:
    raise InternalError("this request should have gone to a model")


async def upstream(request: Request, target: str) -> Response:
    """Any other path of a model's llama-server, queued and loaded like every request."""
    return await _described(request)


def _describe(method: str, path: str, summary: str, extra: dict[str, Any], among: APIRouter = router) -> None:
    among.add_api_route(
        path,
        _described,
        methods=[method],
        summary=summary,
        tags=["models"],
        name=path,
        response_model=None,
        openapi_extra=extra,
    )


for _endpoint in ENDPOINTS:
    _body = (form_body if _endpoint.is_upload else json_body)(_endpoint.example)
    _describe("POST", _endpoint.path, _endpoint.summary, _body, ollama if _endpoint.any_type else router)

for _info in INFO_PATHS:
    if not _info.is_ours_without_model:  # else there is a route of ours
        _describe("GET", _info.path, _info.summary, MODEL_IN_QUERY)

for _method in TUNNEL_METHODS:
    router.add_api_route(
        TUNNEL + "{target:path}", upstream, methods=[_method], tags=["tunnel"], response_model=None
    )


@router.get("/v1/models", tags=["models"])
async def list_models(request: Request) -> dict[str, Any]:
    services = services_of(request)
    listed = list(services.manager.instances.values())
    specs = {instance.alias: instance.spec for instance in listed}
    cards = await services.cards.of(specs)
    with_aliases = services.config.api.list_aliases
    return model_list.listed(listed, cards, services.started_unix, with_aliases=with_aliases)
