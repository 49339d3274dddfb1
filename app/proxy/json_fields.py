"""The JSON of a request, read in linear time and without making objects of what nobody asks for. Pure.

A parser makes an object of every value, and holds the interpreter while it does: 64 MB of empty lists took
14 s and 1.9 GB. So a small body is parsed whole, and of a larger one only the top-level fields are: what they
hold is stepped over, in pieces, and is llama-server's to judge.
"""

from __future__ import annotations

from typing import Any

from app.domain.errors import BadRequest
from app.proxy.dialects.json_pieces import MAX_PARTS_READ, fields_in_pieces
from app.proxy.dialects.json_scan import Scan, parsed

SMALL_BYTES = 65536
"""Parsed whole within a millisecond or two, whatever it holds. Larger ones may take seconds, and are not for
the event loop."""

MAX_PARTS = 1_000_000
"""Strings, lists and objects of a larger body: stepping over one takes about a microsecond."""


def fields_of(body: bytes | bytearray) -> dict[str, Any]:
    """The fields of the object. Raises `InvalidJson`, and `BadRequest` where it is something else."""
    if len(body) > SMALL_BYTES:
        return Scan(body, MAX_PARTS, counts_all=False).fields()
    fields = parsed(body)
    if not isinstance(fields, dict):
        raise BadRequest("the body must be a JSON object")
    return fields


def whole_fields_of(body: bytes | bytearray) -> dict[str, Any]:
    """As `fields_of`, but all that they hold is read. Raises `BadRequest` for too many parts, too."""
    return fields_of(body) if len(body) <= SMALL_BYTES else fields_in_pieces(body, MAX_PARTS_READ)
