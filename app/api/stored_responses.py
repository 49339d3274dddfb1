"""Stored responses of `/v1/responses`: read and deleted, by the key that they were made with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from itertools import chain
from typing import Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response, StreamingResponse

from app.api.dependencies import services_of
from app.api.guard import client_of
from app.api.openapi import FOR_RESPONSES
from app.domain.errors import BadRequest
from app.proxy.dialects.json_pieces import PIECE
from app.proxy.dialects.responses.stored_responses import Items, Stored, Text, listed
from app.proxy.dialects.sse_format import as_json

router = APIRouter(tags=["responses"], responses=FOR_RESPONSES)

MOST_ITEMS = 100


@router.get("/v1/responses/{response_id}")
@router.get("/responses/{response_id}", include_in_schema=False)
async def read(request: Request, response_id: str, stream: bool = False) -> Response:
    """As it was answered."""
    if stream:
        raise BadRequest("a stored response is not streamed again; leave out 'stream'", param="stream")
    return _in_pieces(_stored(request, response_id).text())


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
) -> Response:
    """All that it was made from, what it referred to included; the newest first."""
    items = _stored(request, response_id).items
    page = _behind(items if order == "asc" else items[::-1], after)
    shown = page[:limit]
    names = [name for name, _ in shown]
    about = {
        "object": "list",
        "first_id": names[0] if names else "",
        "last_id": names[-1] if names else "",
        "has_more": len(page) > limit,
    }
    texts = listed(text for _, text in shown)
    return _in_pieces(chain([as_json(about)[:-1] + b',"data":['], texts, [b"]}"]))


def _in_pieces(texts: Iterable[Text]) -> Response:
    """JSON that is written already. A large text is given to the server bit by bit."""
    return StreamingResponse(_pieces(texts), media_type="application/json")


async def _pieces(texts: Iterable[Text]) -> AsyncIterator[bytes]:
    for text in texts:
        for at in range(0, len(text), PIECE):
            yield bytes(text[at : at + PIECE])
            await asyncio.sleep(0)


def _stored(request: Request, response_id: str) -> Stored:
    return services_of(request).stored.find(client_of(request).owner, response_id)


def _behind(items: Items, after: str | None) -> Items:
    if after is None:
        return items
    places = [place for place, (name, _) in enumerate(items) if name == after]
    if not places:
        raise BadRequest(f"'after' names no item of this response: {after[:80]!r}", param="after")
    return items[places[0] + 1 :]
