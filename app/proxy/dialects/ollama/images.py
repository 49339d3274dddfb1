"""Images of a request in Ollama's API: checked, and told as OpenAI's API has them. Pure."""

from __future__ import annotations

import base64
import binascii
import re

from app.domain.errors import BadRequest
from app.proxy.dialects.ollama.ollama_errors import wrong_type


def images(given: object, where: str) -> list[str]:
    """In base 64. Raises `BadRequest`."""
    if given is None:
        return []
    if not isinstance(given, list) or not all(isinstance(image, str) for image in given):
        raise wrong_type(where, "a list of texts in base 64")
    return [_checked(image, _data_in(image)) for image in given]


def _data_in(image: str) -> int:
    """Where it begins, in a text that may be a data URL."""
    mark = image.find("base64,", 0, _MOST_OF_URL)
    return 0 if mark < 0 else mark + len("base64,")


_MOST_OF_URL = 256
_PIECE = 65536
"""Characters, four for three bytes: no other thread runs while one is decoded."""


def _checked(image: str, begin: int) -> str:
    for at in range(begin, len(image), _PIECE):
        piece = image[at : at + _PIECE]
        is_last = at + _PIECE >= len(image)
        try:
            base64.b64decode(piece, validate=True)
        except (binascii.Error, ValueError):
            raise _illegal(at - begin + _first_odd(piece)) from None
        if "=" in piece and not is_last:
            raise _illegal(at - begin + piece.index("="))
    return image[begin:]


def _illegal(at: int) -> BadRequest:
    return BadRequest(f"illegal base64 data at input byte {at}", param="images")


_ODD = re.compile(r"[^A-Za-z0-9+/]")


def _first_odd(piece: str) -> int:
    found = _ODD.search(piece)
    return found.start() if found is not None else len(piece)


_MEDIA_TYPES = {"/9j/": "jpeg", "iVBOR": "png", "R0lG": "gif", "UklG": "webp", "Qk": "bmp"}


def data_url(image: str) -> str:
    kind = next((kind for start, kind in _MEDIA_TYPES.items() if image.startswith(start)), "jpeg")
    return f"data:image/{kind};base64,{image}"
