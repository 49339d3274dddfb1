"""HEAD as GET: the same head, and nothing after it. Pure ASGI."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.proxy.asgi import ERROR_KEY


class HeadAsGet:
    """For every route at once; a framework would want each one to name the method."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            """With it the answer is complete: a stream of events hears that its client is gone."""
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body"})

        as_get = {**scope, "method": "GET"}  # the server's own scope still has to say that no body follows
        await self._app(as_get, receive, send_head)
        if ERROR_KEY in as_get:
            scope[ERROR_KEY] = as_get[ERROR_KEY]
