"""What both entrances share: who may ask a model, and the exchange that answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote

from app.access.api_keys import Client, Rules
from app.access.header_lookup import Headers as ParsedHeaders
from app.access.header_lookup import RequestHeaders
from app.access.request_id import request_id
from app.configuration.reloadable_keys import Configuration
from app.core.manager import ModelManager
from app.domain.errors import Refused, RouterError, TargetTooLong
from app.domain.status import Status
from app.models.instance import ModelInstance
from app.models.load_errors import model_not_loaded
from app.observability.refusal_log import Refusal, RefusalLog
from app.proxy import request_parameters
from app.proxy.admission import Admission
from app.proxy.body_thread import BodyThread, Parse, Read
from app.proxy.content_encoding import unpacked_size
from app.proxy.dialect_by_path import dialect_of
from app.proxy.dialects.translation_interface import Asked, Incoming, Told, Translation
from app.proxy.exchange import Exchange
from app.proxy.exchange_interfaces import Downstream, Pending
from app.proxy.forwarded_headers import as_json, as_lines, own_lines, through_tunnel, to_model
from app.proxy.json_fields import SMALL_BYTES, fields_of, whole_fields_of
from app.proxy.llama_server_info import forbids_load
from app.proxy.reply import Reply
from app.proxy.request_body import RequestBody, Spool
from app.proxy.request_head import MAX_KNOWN_BYTES, MAX_KNOWN_HEADS, HeadLines, KnownHeads, RequestHead
from app.proxy.request_memory_limit import ClientMemory
from app.proxy.request_parameters import RequestMeta
from app.proxy.request_record import RequestRecord, RoutedRequest
from app.proxy.routes import BY_PATH, TUNNEL, Endpoint, endpoint_of, is_tunnel
from app.proxy.upload import UploadBody, boundary_of, form_fields
from app.proxy.upstream_pool import UpstreamPool

MAX_TARGET_BYTES = 8192


def check_target(size: int) -> None:
    """Of path and query. Routes are regular expressions, and an alias may stand anywhere in a path."""
    if size > MAX_TARGET_BYTES:
        raise TargetTooLong(f"the path and its query may have at most {MAX_TARGET_BYTES} bytes")


class Accepted(NamedTuple):
    """A request to a model that was let in, its body first empty."""

    endpoint: Endpoint | None
    """None: its target names the model."""
    method: str
    target: bytes
    request_id: str
    meta: RequestMeta
    body: RequestBody


class Backend(NamedTuple):
    """What requests are served with, while the router runs."""

    manager: ModelManager
    slots: Admission
    links: UpstreamPool
    configuration: Configuration
    bodies: BodyThread
    translations: Mapping[str, Translation]
    """By the path of their endpoint, for those that have one."""


class Entrance(Downstream, Protocol):
    """Where a request has come in, and where its answer goes."""

    def begin(self, exchange: Exchange) -> None: ...

    def refuse(self, error: RouterError) -> None:
        """Instead of an exchange."""

    def bug(self, bug: Exception) -> None:
        """Instead of an exchange. Log it."""

    def wake(self, delay_s: float) -> None:
        """Call `due` of the exchange after so many seconds, instead of when this was asked before."""


class Gateway:
    """A client's requests differ in length and id; the rest of their head is checked once."""

    backend: Backend
    rules: Rules

    def __init__(self, refusals: RefusalLog, memory: ClientMemory) -> None:
        self.heads, self.memory = KnownHeads(), memory
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
        """None for what does not go to a model. Raises what the client is to be told instead."""
        lines = head.lines
        known = self._known.get(lines) or self._examined(head)
        if known is None:
            return None
        self.rules.check_body(head.length or 0)
        endpoint, meta = known
        if endpoint is None and head.given_id is not None:
            passed_on = b"%bx-request-id: %b\r\n" % (meta.passed_on, head.given_id.encode())
            meta = meta._replace(passed_on=passed_on)
        is_upload = endpoint is not None and endpoint.is_upload
        body = (UploadBody if is_upload else RequestBody)(
            self.memory, head.length or 0, check=self.rules.check_body
        )
        return Accepted(endpoint, lines.method, lines.target, request_id(head.given_id), meta, body)

    def _examined(self, head: RequestHead) -> tuple[Endpoint | None, RequestMeta] | None:
        lines = head.lines
        path = unquote(lines.path) if "%" in lines.path else lines.path
        endpoint = (BY_PATH.get(path) or endpoint_of(path)) if lines.method == "POST" else None
        in_tunnel = lines.path.startswith(TUNNEL) and is_tunnel(lines.method, path)
        if (endpoint is None and not in_tunnel) or self._is_elsewhere(lines):
            return None
        check_target(len(lines.target))
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
        """`endpoint` is None for the tunnel. Raises what the client is to be told instead."""
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
        """Calls `begin`, `refuse` or `bug` of the entrance; for a large or packed body, which is read beside
        the event loop, not before this returns."""
        body, parse = accepted.body, self._parser(accepted)
        size = len(body.data)
        is_packed = accepted.meta.is_gzip and size > 0
        if is_packed or (parse is not None and size > SMALL_BYTES):
            try:
                unpack_to = self._place_to_unpack(body) if is_packed else None
            except RouterError as error:
                entrance.refuse(error)
                return None
            tell = partial(self._on_read, accepted, entrance)
            return self.backend.bodies.read(body, tell, unpack_to=unpack_to, parse=parse)
        self._start(accepted, dict if parse is None else partial(parse, body.data), entrance)
        return None

    def _place_to_unpack(self, body: RequestBody) -> int:
        """The most bytes that it may become; as many as it says have their place from now on."""
        most = self.rules.max_body_bytes
        if not isinstance(body.data, Spool):
            body.expect(min(unpacked_size(body.data), most))
        return most

    def _parser(self, accepted: Accepted) -> Parse | None:
        endpoint = accepted.endpoint
        if endpoint is None:
            return None
        if endpoint.is_upload:
            return partial(form_fields, accepted.meta.boundary)
        translation = self.backend.translations.get(endpoint.path)
        return whole_fields_of if translation is not None and translation.edits else fields_of

    def _on_read(self, accepted: Accepted, entrance: Entrance, found: Read | BaseException) -> None:
        if isinstance(found, Read):
            self._start(accepted, partial(_unpacked, accepted.body, found), entrance)
        elif isinstance(found, RouterError):
            entrance.refuse(found)
        elif isinstance(found, Exception):
            entrance.bug(found)

    def _start(self, accepted: Accepted, fields: Callable[[], Mapping[str, Any]], entrance: Entrance) -> None:
        try:
            exchange = self._exchange(accepted, fields(), entrance)
        except RouterError as error:
            entrance.refuse(error)
        except Exception as bug:  # of ours: its client is told
            entrance.bug(bug)
        else:
            if exchange is not None:
                entrance.begin(exchange)

    def _exchange(self, accepted: Accepted, fields: Mapping[str, Any], entrance: Entrance) -> Exchange | None:
        """None where it is answered without one."""
        target, body = accepted.target, accepted.body
        manager, slots, links, configuration, _, _ = self.backend
        instance, routed, asked = self._routed(accepted, fields)
        if isinstance(asked, Asked):
            routed = routed.as_asked(asked)
            body.replace(asked.body)
        record = RequestRecord(routed, instance.alias, manager.ticket(routed.priority))
        if isinstance(asked, Told):
            self._tell(asked, instance, record, entrance)
            return None
        if b"autoload=" in target and not instance.serves and forbids_load(target):
            raise model_not_loaded(instance.alias)
        return Exchange(
            instance,
            record,
            body,
            Reply(
                entrance,
                record,
                time.monotonic,
                dialect_of(routed.endpoint),
                heartbeats=configuration.current.api.stream_heartbeats,
                asked=asked,
            ),
            slots=slots,
            links=links,
            limits=configuration.current.system,
            clock=time.monotonic,
            wake=entrance.wake,
        )

    def _routed(
        self, accepted: Accepted, fields: Mapping[str, Any]
    ) -> tuple[ModelInstance, RoutedRequest, Asked | Told | None]:
        endpoint, method, target, id_, meta, body = accepted
        fleet = self.backend.manager.fleet
        if endpoint is None:
            return *request_parameters.read_tunnel(fleet, meta, id_, method, target), None
        translation = self.backend.translations.get(endpoint.path)
        if translation is None or isinstance(body.data, Spool):
            return *request_parameters.read_body(fleet, meta, id_, fields, endpoint), None
        fields = translation.fields(fields)
        instance, routed = request_parameters.read_body(fleet, meta, id_, fields, endpoint)
        is_loaded, owner = instance.status is Status.READY, meta.client.owner
        incoming = Incoming(
            fields, body.data, owner, instance.spec, routed.stream, time.time(), is_loaded, routed.ttl_s
        )
        return instance, routed, translation.ask(incoming)

    def _tell(self, told: Told, instance: ModelInstance, record: RequestRecord, entrance: Entrance) -> None:
        record.close()
        self.backend.slots.answered(instance, record)
        lines = as_lines([(b"content-type", dialect_of(record.request.endpoint).json_type)])
        entrance.start(200, lines + own_lines(record.request.request_id), len(told.body))
        entrance.write(told.body, True)


def _unpacked(body: RequestBody, found: Read) -> Mapping[str, Any]:
    body.replace(found.data)
    return found.fields
