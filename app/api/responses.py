"""Stored responses of `/v1/responses`: read and deleted, by the key that they were made with."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Query, Request

from app.api.dependencies import services_of
from app.api.documentation import FOR_RESPONSES
from app.api.guard import client_of
from app.domain.errors import BadRequest
from app.proxy.dialects.responses.items import Item
from app.proxy.dialects.responses.stored_responses import Stored

router = APIRouter(tags=["responses"], responses=FOR_RESPONSES)

MOST_ITEMS = 100


@router.get("/v1/responses/{response_id}")
@router.get("/responses/{response_id}", include_in_schema=False)
async def read(request: Request, response_id: str, stream: bool = False) -> dict[str, Any]:
    """As it was answered."""
    if stream:
        raise BadRequest("a stored response is not streamed again; leave out 'stream'", param="stream")
    return _stored(request, response_id).body()


@router.delete("/v1/responses/{response_id}")
@router.delete("/responses/{response_id}", include_in_schema=False)
async def delete(request: Request, response_id: str) -> dict[str, Any]:
    services_of(request).stored.delete(client_of(request).owner, response_id)
    return {"id": response_id, "object": "response", "deleted": True}


@router.get("/v1/responses/{response_id}/input_items")
@router.get("/responses/{response_id}/input_items", include_in_schema=False)
async def input_items(
    request: Request,
    response_id: str,
    limit: int = Query(20, ge=1, le=MOST_ITEMS),
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> dict[str, Any]:
    """All that it was made from, what it referred to included; the newest first."""
    items = _stored(request, response_id).input_items()
    if order == "desc":
        items.reverse()
    page = _behind(items, after)
    names = [item["id"] for item in page[:limit]]
    return {
        "object": "list",
        "data": page[:limit],
        "first_id": names[0] if names else "",
        "last_id": names[-1] if names else "",
        "has_more": len(page) > limit,
    }


def _stored(request: Request, response_id: str) -> Stored:
    return services_of(request).stored.find(client_of(request).owner, response_id)


def _behind(items: list[Item], after: str | None) -> list[Item]:
    if after is None:
        return items
    places = [place for place, item in enumerate(items) if item["id"] == after]
    if not places:
        raise BadRequest(f"'after' names no item of this response: {after[:80]!r}", param="after")
    return items[places[0] + 1 :]
