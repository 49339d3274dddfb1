"""What both entrances share: who may ask a model, and the exchange that answers."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from app.access.api_keys import Client, Rules
from app.access.header_lookup import Headers as ParsedHeaders
from app.access.header_lookup import RequestHeaders
from app.access.request_id import request_id
from app.access.size_limits import check_target
from app.domain.errors import Refused, RouterError
from app.observability.refusal_log import Refusal, RefusalLog
from app.proxy import request_parameters
from app.proxy.exchange_interfaces import Pending
from app.proxy.forwarded_headers import as_json, through_tunnel, to_model
from app.proxy.loop_turns import LoopTurns
from app.proxy.preparation import Accepted, Backend, Entrance, Preparation
from app.proxy.request_body import RequestBody
from app.proxy.request_head import MAX_KNOWN_BYTES, MAX_KNOWN_HEADS, HeadLines, KnownHeads, RequestHead
from app.proxy.request_memory_limit import ClientMemory
from app.proxy.request_parameters import RequestMeta
from app.proxy.routes import BY_PATH, TUNNEL, Endpoint, endpoint_of, is_tunnel
from app.proxy.upload import UploadBody, boundary_of


class Gateway:
    """A client's requests differ in length and id; the rest of their head is checked once."""

    backend: Backend
    rules: Rules

    def __init__(self, refusals: RefusalLog, memory: ClientMemory, turns: LoopTurns) -> None:
        self.heads, self.memory, self.turns = KnownHeads(), memory, turns
        self._refusals = refusals
        self._known: dict[HeadLines, tuple[Endpoint | None, RequestMeta]] = {}
        self._browsers_elsewhere = False

    def admit_by(self, rules: Rules, *, browsers_elsewhere: bool) -> None:
        """From now on. `browsers_elsewhere`: requests with an Origin are for the web framework, which answers
        them with CORS headers."""
        self.rules, self._browsers_elsewhere = rules, browsers_elsewhere
        self._known.clear()

    # --- letting in

    def accept(self, head: RequestHead) -> Accepted | None:
        """None for what does not go to a model. Raises the `RouterError` that refuses it."""
        lines = head.lines
        known = self._known.get(lines) or self._examined(head)
        if known is None:
            return None
        self.rules.body_limit.check(head.length or 0)
        endpoint, meta = known
        if endpoint is None and head.given_id is not None:
            passed_on = b"%bx-request-id: %b\r\n" % (meta.passed_on, head.given_id.encode())
            meta = meta._replace(passed_on=passed_on)
        body = self.body_for(endpoint, head.length or 0)
        return Accepted(endpoint, lines.method, lines.target, request_id(head.given_id), meta, body)

    def body_for(self, endpoint: Endpoint | None, announced: int) -> RequestBody:
        """An empty one, with a place for as many bytes. Raises `RequestTooLarge` or `Overloaded`."""
        kind = UploadBody if endpoint is not None and endpoint.is_upload else RequestBody
        return kind(self.memory, announced, check=self.rules.body_limit.check)

    def _examined(self, head: RequestHead) -> tuple[Endpoint | None, RequestMeta] | None:
        lines = head.lines
        if self._is_elsewhere(lines):
            return None
        check_target(len(lines.target))  # to decode a longer one takes milliseconds
        path = unquote(lines.path) if "%" in lines.path else lines.path
        endpoint = (BY_PATH.get(path) or endpoint_of(path)) if lines.method == "POST" else None
        in_tunnel = lines.path.startswith(TUNNEL) and is_tunnel(lines.method, path)
        if endpoint is None and not in_tunnel:
            return None
        headers = RequestHeaders(lines.headers)
        client = self.rules.check(lines.method, path, headers)
        known = endpoint, self.meta(endpoint, headers, client)
        has_cookie = any(name == b"cookie" for name, _ in lines.headers)  # its session may end
        if len(head.raw) <= MAX_KNOWN_BYTES and not has_cookie:
            self._remember(lines, known)
        return known

    def _remember(self, lines: HeadLines, known: tuple[Endpoint | None, RequestMeta]) -> None:
        if len(self._known) >= MAX_KNOWN_HEADS:
            self._known.clear()
        self._known[lines] = known

    def _is_elsewhere(self, lines: HeadLines) -> bool:
        return self._browsers_elsewhere and any(name == b"origin" for name, _ in lines.headers)

    @staticmethod
    def meta(endpoint: Endpoint | None, headers: ParsedHeaders, client: Client) -> RequestMeta:
        """`endpoint` is None for the tunnel. Raises the `RouterError` that refuses it."""
        if endpoint is None:
            return Gateway.admin_meta(headers, client)
        if endpoint.is_upload:
            boundary = boundary_of(headers)
            return RequestMeta.of(headers, client, to_model(headers.raw))._replace(boundary=boundary)
        if not endpoint.any_type:
            request_parameters.check_media_type(headers, client)
        passed_on = to_model(headers.raw)
        return RequestMeta.of(
            headers, client, passed_on if request_parameters.is_json(headers) else as_json(passed_on)
        )

    @staticmethod
    def admin_meta(headers: ParsedHeaders, client: Client) -> RequestMeta:
        """For the tunnel."""
        request_parameters.require_admin(client)
        return Gateway.tunnel_meta(headers, client)

    @staticmethod
    def tunnel_meta(headers: ParsedHeaders, client: Client) -> RequestMeta:
        return RequestMeta.of(headers, client, through_tunnel(headers.raw))

    def tell_refusal(
        self, error: RouterError, head: RequestHead, request_id: str, peer: Any, client: str
    ) -> None:
        """In the log. `peer`: address and port, or None; `client`: who asks, empty where it is not known."""
        if isinstance(error, Refused):
            address = peer[0] if peer else "?"
            self._refusals.tell(Refusal(head.method, head.path, address, client, request_id, error))

    # --- answering

    def start(self, accepted: Accepted, entrance: Entrance) -> Pending | None:
        """Calls `begin`, `refuse` or `bug` of the entrance; for what takes long, which is done beside the
        event loop, not before this returns."""
        most_bytes = self.rules.body_limit.most_bytes
        return Preparation(self.backend, accepted, entrance, most_bytes=most_bytes).begin()
