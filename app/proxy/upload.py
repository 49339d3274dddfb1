"""Uploads: forms whose files may be large. Beyond 1 MB they are in a file, not in memory."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from python_multipart import MultipartParser
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import parse_options_header

from app.access.header_lookup import Headers
from app.domain.errors import BadRequest, UnsupportedEncoding, UnsupportedMediaType
from app.domain.units import MIB
from app.proxy.content_encoding import is_gzip
from app.proxy.request_body import RequestBody, Spool
from app.proxy.request_memory_limit import ClientMemory

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

HELD_BYTES = MIB
READ_BYTES = 256 * 1024
MAX_VALUE_BYTES = 4096
"""Of a field that is no file. What is longer is llama-server's to judge."""

MAX_PARTS = 1000
_BOUNDARY = re.compile(rb"[ -~]{0,69}[!-~]\Z")


class UploadBody(RequestBody):
    """What it writes goes to the page cache, which costs no more than a copy in memory."""

    __slots__ = ("_spooled",)

    def __init__(
        self, memory: ClientMemory, announced: int = 0, *, check: Callable[[int], None] = lambda _: None
    ) -> None:
        self._spooled = 0
        super().__init__(memory, min(announced, HELD_BYTES), check=check)

    def add(self, piece: bytes) -> None:
        self._check(len(self.data) + len(piece))
        if len(self.data) + len(piece) <= HELD_BYTES:
            super().add(piece)
            return
        if not isinstance(self.data, Spool):
            self._spool(len(self.data))
            spool = Spool(tempfile.TemporaryFile(prefix="upload-"))  # noqa: SIM115
            spool.append(self.data)
            self.data = spool
        self._spool(len(piece))
        self.data.append(piece)

    def _spool(self, size: int) -> None:
        self._memory.spool(size)
        self._spooled += size

    def __del__(self) -> None:
        self._memory.spool(-self._spooled)
        super().__del__()


def boundary_of(headers: Headers) -> bytes:
    """What its parts are told apart by.

    Raises `UnsupportedMediaType`, `UnsupportedEncoding` or `BadRequest` where it is no such form.
    """
    media_type, options = parse_options_header(headers.get("content-type", ""))
    if media_type != b"multipart/form-data":
        raise UnsupportedMediaType("send a form with 'Content-Type: multipart/form-data'")
    if is_gzip(headers):
        raise UnsupportedEncoding("send the form as it is: forms are not unpacked")
    boundary: bytes = options.get(b"boundary", b"")
    if not _BOUNDARY.match(boundary):
        raise BadRequest("the Content-Type of a form must name its boundary")
    return boundary


def form_fields(boundary: bytes, data: bytes | bytearray | Spool) -> dict[str, Any]:
    """Its short texts, `stream` as a bool; what is in files is passed over. Raises `BadRequest`."""
    form = _Form()
    parser = MultipartParser(boundary, form.callbacks())
    try:
        for at in range(0, len(data), READ_BYTES):
            parser.write(bytes(data[at : at + READ_BYTES]))
        parser.finalize()
    except MultipartParseError as error:
        raise BadRequest(f"the form cannot be read: {error}") from None
    if not form.is_complete:
        raise BadRequest("the form does not end with its boundary")
    fields: dict[str, Any] = dict(form.fields)
    if (stream := fields.get("stream")) in ("true", "false"):
        fields["stream"] = stream == "true"
    return fields


class _Form:
    """What a parser says, part after part."""

    def __init__(self) -> None:
        self.fields: dict[str, str] = {}
        self.is_complete = False
        self._header = self._value = self._disposition = b""
        self._text: bytearray | None = None
        self._name, self._parts = "", 0

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._on_name,
            "on_header_value": self._on_value,
            "on_header_end": self._on_header,
            "on_headers_finished": self._on_headers,
            "on_part_data": self._on_data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise BadRequest(f"the form has more than {MAX_PARTS} parts")
        self._header = self._value = self._disposition = b""
        self._text = None

    def _on_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _on_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._text = None if b"filename" in options else bytearray()

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._text is not None:
            self._text += data[start:end]
            if len(self._text) > MAX_VALUE_BYTES:
                self._text = None

    def _end_part(self) -> None:
        if self._text is not None:
            self.fields[self._name] = self._text.decode("utf-8", "replace")

    def _end(self) -> None:
        self.is_complete = True
