"""What llama-server tells of itself, asked under its own paths: of a loaded model, which the query names.

It goes through the tunnel, so it never loads a model and counts as no use of one.
"""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import parse_qsl, quote, urlencode

from app.domain.errors import MissingModel
from app.models.fleet import Fleet
from app.models.instance import ModelInstance
from app.proxy.routes import INFO_BY_PATH, TUNNEL, InfoPath

_NOT_PASSED_ON = frozenset({"model", "autoload"})


def info_path_of(method: str, path: str, query: bytes) -> InfoPath | None:
    """`path` is in its normal form."""
    info = INFO_BY_PATH.get(path) if method in ("GET", "HEAD") else None
    if info is None or (info.is_ours_without_model and not _named(query)):
        return None
    return info


def tunnel_target(fleet: Fleet, info: InfoPath, query: bytes) -> bytes:
    """Raises `ModelNotFound`, and `MissingModel` where it is not plain who is asked."""
    name = _named(query)
    instance = fleet.find(name) if name else _only_loaded(fleet.instances.values(), info)
    rest = urlencode([(key, value) for key, value in _pairs(query) if key not in _NOT_PASSED_ON])
    path = f"{TUNNEL}{quote(instance.alias, safe='')}{info.path}"
    return (f"{path}?{rest}" if rest else path).encode()


def forbids_load(target: bytes) -> bool:
    """As in llama-server's router mode: `?autoload=false`."""
    given = dict(_pairs(target.partition(b"?")[2])).get("autoload", "true")
    return given.lower() in ("false", "0")


def _only_loaded(models: Collection[ModelInstance], info: InfoPath) -> ModelInstance:
    loaded = [model for model in models if model.serves]
    if len(loaded) != 1:
        known = ", ".join(model.alias for model in loaded) or "none"
        raise MissingModel(f"name a model: {info.path}?model=...; loaded: {known}", param="model")
    return loaded[0]


def _named(query: bytes) -> str:
    return dict(_pairs(query)).get("model", "")


def _pairs(query: bytes) -> list[tuple[str, str]]:
    return parse_qsl(query.decode("latin-1"), keep_blank_values=True)
