"""Writes the reference in docs/configuration.md from the code: `python -m tools.configuration_reference`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.configuration.file import json_schema

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
BEGIN = "<!-- configuration reference: python -m tools.configuration_reference -->"
END = "<!-- end of the configuration reference -->"

SECTIONS = {
    "ApiConfig": "api",
    "ApiKey": "api.api_keys[]",
    "SystemConfig": "system",
    "ModelConfig": "models.{alias}",
    "ModelParams": "models.{alias}.params",
}


def reference() -> str:
    """Every section as a table."""
    schema = json_schema()
    return "\n".join(_section(place, schema["$defs"][name]) for name, place in SECTIONS.items())


def with_reference(document: str) -> str:
    """The text with what stands between the marks made anew."""
    before, rest = document.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{reference()}\n{END}{after}"


def _section(place: str, section: dict[str, Any]) -> str:
    rows = [f"## `{place}`", "", "| key | type | default | meaning |", "|---|---|---|---|"]
    required = section.get("required", [])
    for key, spec in section["properties"].items():
        default = "**required**" if key in required else _default(spec)
        rows.append(f"| `{key}` | {_type(spec)} | {default} | {spec['description']} |")
    return "\n".join([*rows, ""])


def _default(spec: dict[str, Any]) -> str:
    value = spec.get("default")
    if value is None:
        return "`{}`" if spec.get("type") == "object" or "$ref" in spec else ""
    return f"`{json.dumps(value)}`"


def _type(spec: dict[str, Any]) -> str:
    return " or ".join(dict.fromkeys(_types(spec)))


def _types(spec: dict[str, Any]) -> Iterator[str]:
    if "anyOf" in spec:
        for part in spec["anyOf"]:
            yield from _types(part)
    elif "enum" in spec:
        yield " ".join(f"`{value}`" for value in spec["enum"])
    elif "$ref" in spec:
        yield "object"
    elif spec["type"] == "array":
        yield f"list of {_type(spec['items'])}"
    elif spec["type"] != "null":
        yield {"integer": "int", "number": "number", "string": "text", "boolean": "bool"}.get(
            spec["type"], spec["type"]
        )


def main() -> int:
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(with_reference(text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
