"""An accepted request on its way to its exchange: read, routed, and translated."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

from app.configuration.reloadable_keys import Configuration
from app.core.manager import ModelManager
from app.domain.errors import RouterError
from app.domain.status import Status
from app.models.instance import ModelInstance
from app.models.load_errors import model_not_loaded
from app.proxy import request_parameters
from app.proxy.admission import Admission
from app.proxy.body_thread import BodyThread, Parse, Read
from app.proxy.content_encoding import unpacked_size
from app.proxy.dialect_by_path import dialect_of
from app.proxy.dialects.shown_wait import SHOWN_WAITS, ShowWait
from app.proxy.dialects.translation_interface import (
    TRANSLATED_AT_ONCE,
    Asked,
    Incoming,
    Told,
    Translation,
)
from app.proxy.exchange import Exchange
from app.proxy.exchange_interfaces import Downstream, Pending, Surroundings
from app.proxy.forwarded_headers import as_lines, own_lines
from app.proxy.json_fields import SMALL_BYTES, fields_of, whole_fields_of
from app.proxy.llama_server_info import forbids_load
from app.proxy.reply import Reply
from app.proxy.request_body import RequestBody, Spool
from app.proxy.request_memory_limit import ClientMemory
from app.proxy.request_parameters import RequestMeta
from app.proxy.request_record import RequestRecord, RoutedRequest
from app.proxy.routes import Endpoint
from app.proxy.upload import form_fields
from app.proxy.upstream_pool import UpstreamPool


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
    memory: ClientMemory
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


class Preparation:
    """Of one request. What takes long in it is done beside the event loop."""

    __slots__ = ("_accepted", "_backend", "_entrance", "_most_bytes", "_pending", "_translation")

    def __init__(self, backend: Backend, accepted: Accepted, entrance: Entrance, *, most_bytes: int) -> None:
        """`most_bytes`: of a body, unpacked."""
        self._backend, self._accepted, self._most_bytes = backend, accepted, most_bytes
        self._entrance = entrance
        self._pending: Pending | None = None
        endpoint = accepted.endpoint
        self._translation = None if endpoint is None else backend.translations.get(endpoint.path)

    def begin(self) -> Pending | None:
        """None: it is over."""
        self._step(self._read)
        return self._pending and self

    def cancel(self) -> None:
        if self._pending is not None:
            self._pending.cancel()

    # --- step by step

    def _step(self, step: Callable[[], Exchange | None]) -> None:
        """None: it goes on later, or is answered without an exchange."""
        entrance, self._pending = self._entrance, None
        try:
            exchange = step()
        except RouterError as error:
            entrance.refuse(error)
        except Exception as bug:  # of ours: its client is told
            entrance.bug(bug)
        else:
            if exchange is not None:
                entrance.begin(exchange)
        if self._pending is None:
            del self._accepted, self._entrance  # who is answered keeps this

    def _told(self, found: Any, step: Callable[[Any], Exchange | None]) -> None:
        """Of what was done beside the event loop."""
        if isinstance(found, Exception):
            self._step(partial(_raise, found))
        else:
            self._step(partial(step, found))

    def _read(self) -> Exchange | None:
        body, parse = self._accepted.body, self._parser()
        size = len(body.data)
        is_packed = self._accepted.meta.is_gzip and size > 0
        if not is_packed and (parse is None or size <= self._read_at_once):
            return self._route({} if parse is None else parse(body.data))
        if is_packed and not isinstance(body.data, Spool):  # what it says that it becomes has its place now
            body.expect(min(unpacked_size(body.data), self._most_bytes))
        unpack_to = self._most_bytes if is_packed else None
        tell = partial(self._told, step=self._on_read)
        self._pending = self._backend.bodies.read(body, tell, unpack_to=unpack_to, parse=parse)
        return None

    @property
    def _read_at_once(self) -> int:
        edits = self._translation is not None and self._translation.edits
        return TRANSLATED_AT_ONCE if edits else SMALL_BYTES

    def _parser(self) -> Parse | None:
        endpoint, translation = self._accepted.endpoint, self._translation
        if endpoint is None:
            return None
        if endpoint.is_upload:
            return partial(form_fields, self._accepted.meta.boundary)
        return whole_fields_of if translation is not None and translation.edits else fields_of

    def _on_read(self, read: Read) -> Exchange | None:
        self._accepted.body.replace(read.data)
        return self._route(read.fields)

    def _route(self, fields: Mapping[str, Any]) -> Exchange | None:
        endpoint, method, target, id_, meta, body = self._accepted
        fleet, translation = self._backend.manager.fleet, self._translation
        if endpoint is None:
            return self._exchange(*request_parameters.read_tunnel(fleet, meta, id_, method, target), None)
        if translation is None or isinstance(body.data, Spool):
            return self._exchange(*request_parameters.read_body(fleet, meta, id_, fields, endpoint), None)
        fields = translation.fields(fields)
        instance, routed = request_parameters.read_body(fleet, meta, id_, fields, endpoint)
        is_loaded, owner = instance.status is Status.READY, meta.client.owner
        incoming = Incoming(
            fields, body.data, owner, instance.spec, routed.stream, time.time(), is_loaded, routed.ttl_s,
            self._most_bytes,
        )  # fmt: skip
        return self._translate(translation, incoming, instance, routed)

    def _translate(
        self, translation: Translation, incoming: Incoming, instance: ModelInstance, routed: RoutedRequest
    ) -> Exchange | None:
        if translation.size(incoming) <= TRANSLATED_AT_ONCE:
            return self._asked(instance, routed, translation.ask(incoming))
        tell = partial(self._told, step=partial(self._asked, instance, routed))
        work = partial(translation.ask, incoming)
        self._pending = self._backend.bodies.do(work, tell, next_=True)
        return None

    def _asked(self, instance: ModelInstance, routed: RoutedRequest, asked: Asked | Told) -> Exchange | None:
        if isinstance(asked, Asked):
            self._accepted.body.replace(asked.body)
            return self._exchange(instance, routed.as_asked(asked), asked._replace(body=b""))
        self._tell(asked, instance, self._record(instance, routed))
        return None

    # --- its end

    def _exchange(self, instance: ModelInstance, routed: RoutedRequest, asked: Asked | None) -> Exchange:
        target, entrance = self._accepted.target, self._entrance
        _, slots, links, configuration, bodies, memory, _ = self._backend
        record = self._record(instance, routed)
        if b"autoload=" in target and not instance.serves and forbids_load(target):
            raise model_not_loaded(instance.alias)
        return Exchange(
            instance,
            record,
            self._accepted.body,
            Reply(
                entrance,
                record,
                time.monotonic,
                dialect_of(routed.endpoint),
                heartbeats=configuration.current.api.stream_heartbeats,
                memory=memory,
                asked=asked,
                show_wait=self._show_wait(routed, instance.alias),
            ),
            Surroundings(slots, links, bodies, configuration.current.system, time.monotonic, entrance.wake),
        )

    def _show_wait(self, routed: RoutedRequest, alias: str) -> ShowWait | None:
        show = SHOWN_WAITS.get(routed.endpoint) if self._accepted.meta.shows_wait else None
        return None if show is None else show(routed.request_id, alias, int(time.time()))

    def _record(self, instance: ModelInstance, routed: RoutedRequest) -> RequestRecord:
        ticket = self._backend.manager.ticket(routed.priority)
        ticket.slots = routed.slots
        return RequestRecord(routed, instance.alias, ticket)

    def _tell(self, told: Told, instance: ModelInstance, record: RequestRecord) -> None:
        record.close()
        self._backend.slots.answered(instance, record)
        lines = as_lines([(b"content-type", dialect_of(record.request.endpoint).json_type)])
        self._entrance.start(200, lines + own_lines(record.request.request_id), len(told.body))
        self._entrance.write(told.body, True)


def _raise(error: Exception) -> None:
    raise error
