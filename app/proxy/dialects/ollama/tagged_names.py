"""Names of models as Ollama's programs write and read them: `[host/][namespace/]model[:tag]`. Pure."""

from __future__ import annotations

import re

from app.domain.model_names import MAX_READ

_SCHEME = re.compile(r"\Ahttps?://", re.I)
_MOST_PARTS = 2
"""Of a name whose host is left out."""


def tagged(name: str) -> str:
    """As lists show it: always with a tag."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def asked_for(name: str) -> str:
    """What the router's own reading of names can go on with: no address of a library before it."""
    if len(name) > MAX_READ:  # no model's, with one or without
        return name
    bare = _SCHEME.sub("", name.strip())
    while bare.count("/") >= _MOST_PARTS and "." in bare.partition("/")[0]:
        bare = bare.partition("/")[2]
    return bare
