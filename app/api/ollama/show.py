"""`/api/show`: all that a model's file says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.api.model_list import capabilities, context_length
from app.api.ollama.tags_and_ps import details, modified_at
from app.domain.model_spec import ModelSpec
from app.gguf.header import GgufError, GgufHeader, Value, read_header
from app.gguf.model_card import ModelCard
from app.gguf.tensor_types import TENSOR_TYPES

Body = dict[str, Any]

_NAME_WIDTH = 31


def shown(spec: ModelSpec, card: ModelCard | None, asked: Mapping[str, Any]) -> Body:
    """Blocks on the disk. `asked`: the request, whose `system`, `options` and `verbose` count for this
    answer."""
    header, projector = _header(spec.path), _header(spec.params.mmproj)
    is_verbose, system = asked["verbose"], asked["system"]
    template = spec.params.chat_template or (_template(header) if header is not None else "")
    parameters = _lines({"num_ctx": context_length(spec, card)})
    given = _lines(asked["options"])
    body: Body = {
        "modelfile": _modelfile(spec, template, system, "\n".join(filter(None, (parameters, given)))),
        "parameters": parameters,
        "template": template,
        "system": system,
        "license": _text(header.metadata.get("general.license")) if header is not None else "",
        "details": details(card),
        "model_info": {} if header is None else _info(header, is_verbose=is_verbose),
        "tensors": [] if header is None else _tensors(header),
        "capabilities": capabilities(spec, card),
        "modified_at": modified_at(card),
    }
    if projector is not None:
        body["projector_info"] = _info(projector, is_verbose=is_verbose)
    return {name: value for name, value in body.items() if value != ""}


def _header(path: Path | str | None) -> GgufHeader | None:
    try:
        return read_header(Path(path)) if path is not None else None
    except (GgufError, OSError):
        return None


def _template(header: GgufHeader) -> str:
    return _text(header.metadata.get("tokenizer.chat_template"))


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _lines(parameters: Mapping[str, object]) -> str:
    """One a line; of a list each entry."""
    lines = []
    for name, value in parameters.items():
        for one in value if isinstance(value, list) else [value]:
            said = f'"{one}"' if isinstance(one, str) else one
            lines.append(f"{name:<{_NAME_WIDTH}}{said}")
    return "\n".join(lines)


def _modelfile(spec: ModelSpec, template: str, system: str, parameters: str) -> str:
    """Without the folder of the file: that is nobody's business."""
    texts = {"TEMPLATE": template, "SYSTEM": system}
    return "\n".join([
        "# This file describes the model; it is not used to make one.",
        "# The router's configuration says how it is run.",
        f"FROM {spec.path.name}",
        *(f'{name} """{text}"""' for name, text in texts.items() if text),
        *(f"PARAMETER {' '.join(line.split(None, 1))}" for line in parameters.splitlines()),
        "",
    ])  # fmt: skip


_TOLD_ELSEWHERE = frozenset({"general.name", "tokenizer.chat_template"})


def _info(header: GgufHeader, *, is_verbose: bool) -> Body:
    """Arrays are null unless they are asked for, and so are those too long to keep."""
    given = {name: value for name, value in header.metadata.items() if name not in _TOLD_ELSEWHERE}
    told: Body = {name: _value(value, is_verbose) for name, value in given.items()}
    count = sum(math.prod(tensor.shape) for tensor in header.tensors.values())
    return dict.fromkeys(header.array_lengths) | told | {"general.parameter_count": count}


def _value(value: Value, is_verbose: bool) -> Any:
    if isinstance(value, tuple):
        return [_value(one, is_verbose) for one in value] if is_verbose else None
    return value if not isinstance(value, float) or math.isfinite(value) else None


def _tensors(header: GgufHeader) -> list[Body]:
    return [
        {"name": name, "type": TENSOR_TYPES.get(t.type, str(t.type)), "shape": list(t.shape)}
        for name, t in header.tensors.items()
    ]
