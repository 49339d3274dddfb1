"""The files for Prometheus and Grafana, read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent


MONITORING = ROOT / "monitoring"


DASHBOARDS = sorted((MONITORING / "grafana" / "dashboards").glob("*.json"))


def load_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def load_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def targets(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in dashboard["panels"]:
        yield from panel.get("targets", [])


def rules() -> list[dict[str, Any]]:
    return [rule for group in load_yaml(MONITORING / "alerts.yml")["groups"] for rule in group["rules"]]


def queries() -> list[tuple[str, str]]:
    """Every PromQL expression with the place where it stands."""
    panels = [(path.name, target["expr"]) for path in DASHBOARDS for target in targets(load_json(path))]
    return panels + [(rule["alert"], rule["expr"]) for rule in rules()]
