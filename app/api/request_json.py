"""The body of a request that is not for a model: one JSON object, of a bounded size."""

from __future__ import annotations

from typing import Any

from fastapi import Request

from app.api.guard import client_of, memory_of, rules_of
from app.domain.errors import RequestTooLarge
from app.proxy.asgi import pieces_of_body
from app.proxy.content_encoding import gunzip, is_gzip
from app.proxy.json_fields import SMALL_BYTES, fields_of
from app.proxy.request_body import RequestBody, Spool
from app.proxy.request_parameters import check_media_type

MANAGEMENT_BYTES = SMALL_BYTES


async def json_object(
    request: Request, most_bytes: int = MANAGEMENT_BYTES, *, any_type: bool = False
) -> dict[str, Any]:
    """The body of a request that is not for a model; a larger one is refused before it has come.

    `any_type`: it changes nothing, so that it need not be one that pages of other sites cannot send.
    """
    if not any_type:
        check_media_type(request.headers, client_of(request))
    is_packed = is_gzip(request.headers)
    body = RequestBody(memory_of(request))
    async for piece in pieces_of_body(request.receive):
        body.add(piece)
        rules_of(request).body_limit.check(len(body))
        if len(body) > most_bytes:
            raise RequestTooLarge(f"the body of this request may have at most {most_bytes} bytes")
    assert not isinstance(body.data, Spool)
    return fields_of(gunzip(body.data, most_bytes) if is_packed else body.data)
