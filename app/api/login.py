"""`/session`: logging in on the page. `EventSource` and links cannot send a header; a cookie goes along."""

from __future__ import annotations

import logging
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from app.access.api_keys import Client, Rules
from app.api.guard import client_of, rules_of
from app.api.openapi import FOR_LOGIN, FOR_MONITORING, json_body
from app.api.request_json import json_object
from app.domain.errors import BadRequest, InvalidApiKey

logger = logging.getLogger(__name__)

router = APIRouter(tags=["monitoring"], responses=FOR_MONITORING)

LOGIN_BYTES = 4096

_COOKIE: dict[str, Any] = {"path": None, "httponly": True, "samesite": "strict"}
"""Without a path it belongs to the folder that the browser asked in: behind a proxy's prefix other programs
of that name do not get it."""

_KEY_BODY = json_body({"key": "secret"}, "key")


@router.get("/session", responses=FOR_LOGIN)
async def session(request: Request) -> dict[str, Any]:
    """Whether this router wants a key, who asks, and what they may. Needs no key itself."""
    return _session(rules_of(request), client_of(request))


@router.post("/session", responses=FOR_LOGIN, openapi_extra=_KEY_BODY)
async def log_in(request: Request) -> Response:
    """Exchange a key for a cookie, which opens on the router's own page what the key opens."""
    rules, key = rules_of(request), (await json_object(request, LOGIN_BYTES)).get("key")
    if not isinstance(key, str):
        raise BadRequest("send the API key as text in the field 'key'", param="key")
    if not rules.has_keys:
        raise BadRequest("this router has no api_keys: nobody has to log in")
    address = request.client.host if request.client else "?"
    try:
        token, client = rules.log_in(key, address)
    except InvalidApiKey:
        logger.warning("login with a wrong key from %s", address)
        raise
    logger.info("%s logged in", client.name or "a key without a name")
    answer = JSONResponse(_session(rules, client))
    # No time of its own: it ends with the browser. The router speaks plain HTTP, but the page's own address
    # tells whether a proxy speaks TLS for it.
    secure = urlsplit(request.headers.get("origin", "")).scheme == "https"
    answer.set_cookie(rules.cookie, token, **_COOKIE, secure=secure)
    return answer


@router.delete("/session", responses=FOR_LOGIN)
async def log_out(request: Request) -> Response:
    """End the session of this browser."""
    rules = rules_of(request)
    rules.sessions.close(rules.token_of(request.headers))
    answer = JSONResponse(_session(rules, Client(admin=False, known=not rules.has_keys)))
    answer.set_cookie(rules.cookie, "", **_COOKIE, max_age=0)
    return answer


def _session(rules: Rules, client: Client) -> dict[str, Any]:
    return {
        "key_needed": rules.has_keys,
        "logged_in": rules.has_keys and client.known,
        "name": client.name,
        "admin": client.admin,
    }
