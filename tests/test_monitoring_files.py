"""The monitoring stack and the dashboard page as files: they agree with each other and with the contract."""

from __future__ import annotations

import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.monitoring import DASHBOARDS, MONITORING, ROOT, load_json, load_yaml, queries, rules, targets
from tests.real_parts import COMPOSE, PROMTOOL, need

UI = ROOT / "app" / "api" / "ui"
YAML_FILES = [ROOT / "docker-compose.monitoring.yml", *sorted(MONITORING.rglob("*.yml"))]

# Every metric of the contract's section 4, and those of kept conversations, with the labels that it carries.
COUNTERS = {
    "router_requests_total": {"model", "status"},
    "router_tokens_total": {"model", "kind"},
    "router_model_loads_total": {"model", "result"},
    "router_model_evictions_total": {"model", "reason"},
    "router_model_restarts_total": {"model"},
    "router_request_replays_total": {"model"},
    "router_requests_quarantined_total": {"model"},
    "router_kv_cache_saves_total": {"model", "result"},
    "router_kv_cache_restores_total": {"model", "result"},
    "router_kv_cache_bytes_total": {"model", "direction"},
}
GAUGES = {
    "router_model_vram_bytes": {"model"},
    "router_queue_depth": {"model"},
    "router_queue_depth_by_priority": {"model", "priority"},
    "router_requests_in_flight": {"model"},
    "router_model_status": {"model", "status"},
    "router_models_loaded": set(),
    "router_gpu_memory_bytes": {"gpu", "kind"},
    "router_gpu_utilization_ratio": {"gpu"},
    "router_model_memory_estimate_bytes": {"model"},
}
HISTOGRAMS = {
    "router_request_duration_seconds": {"model", "endpoint"},
    "router_queue_wait_seconds": {"model", "priority"},
    "router_time_to_first_token_seconds": {"model"},
    "router_model_load_seconds": {"model"},
    "router_generation_tokens_per_second": {"model"},
}
LABELS: dict[str, set[str]] = {
    **COUNTERS,
    **GAUGES,
    **{f"{name}_bucket": labels | {"le"} for name, labels in HISTOGRAMS.items()},
    **{f"{name}_{part}": labels for name, labels in HISTOGRAMS.items() for part in ("sum", "count")},
    "up": {"job", "instance"},  # Prometheus' own
}
METRIC = re.compile(r"\b(router_\w+|up)\b(?=\{|\[|\)|,|$|\s)(\{[^}]*\})?")
GROUPING = re.compile(r"\b(?:by|on)\s*\(([^)]*)\)")


def wrong_names(expr: str) -> list[str]:
    """Metrics and labels in an expression that the contract does not know."""
    used = METRIC.findall(expr)
    wrong = [name for name, _ in used if name not in LABELS]
    known: set[str] = set().union(*(LABELS.get(name, set()) for name, _ in used))
    for name, selector in used:
        labels = re.findall(r"(\w+)\s*[=!]~?", selector)
        wrong += [f"{name}.{label}" for label in labels if label not in LABELS.get(name, set())]
    for group in GROUPING.findall(expr):
        wrong += [label for label in re.findall(r"\w+", group) if label not in known]
    return wrong


def promtool(*arguments: str) -> None:
    done = subprocess.run(
        [need(PROMTOOL), *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.name)
def test_yaml_file_parses(path: Path) -> None:
    assert isinstance(load_yaml(path), dict)


def test_both_dashboards_are_there() -> None:
    assert {path.name for path in DASHBOARDS} == {"overview.json", "model.json"}


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.name)
def test_panel_ids_are_unique_and_panels_do_not_overlap(path: Path) -> None:
    panels = load_json(path)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for box in (panel["gridPos"] for panel in panels)
        for x in range(box["x"], box["x"] + box["w"])
        for y in range(box["y"], box["y"] + box["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.name)
def test_every_query_uses_the_provisioned_data_source(path: Path) -> None:
    provisioned = load_yaml(MONITORING / "grafana/provisioning/datasources/prometheus.yml")["datasources"]
    uid = provisioned[0]["uid"]
    dashboard = load_json(path)
    askers = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    askers += [*targets(dashboard), *dashboard["templating"]["list"]]
    assert askers
    assert all(asker["datasource"] == {"type": "prometheus", "uid": uid} for asker in askers)


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.name)
def test_variables_in_queries_are_defined(path: Path) -> None:
    dashboard = load_json(path)
    defined = {
        "__rate_interval",
        "__range",
        *(variable["name"] for variable in dashboard["templating"]["list"]),
    }
    used = {name for target in targets(dashboard) for name in re.findall(r"\$(\w+)", target["expr"])}
    assert used <= defined


def test_links_between_dashboards_lead_somewhere() -> None:
    uids = {load_json(path)["uid"] for path in DASHBOARDS}
    texts = [path.read_text(encoding="utf-8") for path in DASHBOARDS]
    linked = {uid for text in texts for uid in re.findall(r"/d/([\w-]+)/", text)}
    assert linked == uids


@pytest.mark.parametrize(("place", "expr"), queries())
def test_query_uses_only_names_of_the_contract(place: str, expr: str) -> None:
    assert METRIC.search(expr), place
    assert wrong_names(expr) == []


def test_a_wrong_metric_or_label_is_noticed() -> None:
    assert wrong_names("sum by (model) (router_queue_length)") == ["router_queue_length", "model"]
    assert wrong_names('router_queue_depth{alias="x"}') == ["router_queue_depth.alias"]
    assert wrong_names("sum by (priority) (router_queue_depth)") == ["priority"]


def test_every_metric_of_the_contract_is_shown_somewhere() -> None:
    shown = {name for _, expr in queries() for name, _ in METRIC.findall(expr)}
    missing = [name for name in (*COUNTERS, *GAUGES) if name not in shown]
    missing += [name for name in HISTOGRAMS if f"{name}_bucket" not in shown]
    assert missing == []


def test_every_alert_says_what_happened_and_what_it_means() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in {"critical", "warning"}, rule["alert"]
        assert rule["annotations"].keys() >= {"summary", "description"}, rule["alert"]


def test_compose_mounts_exist_and_images_are_pinned() -> None:
    services = load_yaml(ROOT / "docker-compose.monitoring.yml")["services"]
    for service in services.values():
        assert re.search(r":v?\d+\.\d+\.\d+$", service["image"])
        sources = [volume.split(":")[0] for volume in service["volumes"]]
        assert all((ROOT / source).exists() for source in sources if source.startswith("./"))
    assert "host.docker.internal:host-gateway" in services["prometheus"]["extra_hosts"]


def test_docker_compose_accepts_the_stack() -> None:
    command = [
        need(COMPOSE),
        "compose",
        "-f",
        str(ROOT / "docker-compose.monitoring.yml"),
        "config",
        "--quiet",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_promtool_accepts_the_configuration() -> None:
    promtool("check", "config", str(MONITORING / "prometheus.yml"))


def test_promtool_accepts_the_rules() -> None:
    promtool("check", "rules", str(MONITORING / "alerts.yml"))


def test_promtool_parses_every_panel_query(tmp_path: Path) -> None:
    """promtool has no parser of its own for queries, so they are dressed up as recording rules."""
    plain = [re.sub(r"\$__(rate_interval|range)", "1m", expr).replace("$model", "m") for _, expr in queries()]
    recorded = [{"record": f"panel:query:{n}", "expr": expr} for n, expr in enumerate(plain)]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}), encoding="utf-8")
    promtool("check", "rules", str(file))


# Per alert its cause as series of an hour, one sample a minute, in promtool's notation.
TROUBLE: dict[str, dict[str, str]] = {
    "RouterDown": {'up{job="router", instance="r:8000"}': "0x60"},
    "RouterMetricsMissing": {},
    "ModelFailed": {'router_model_status{model="m", status="failed"}': "1x60"},
    "ModelRestarts": {'router_model_restarts_total{model="m"}': "0+1x60"},
    "RequestsRejected": {'router_requests_total{model="m", status="rejected"}': "0+5x60"},
    "QueueWaitLong": {
        'router_queue_wait_seconds_bucket{model="m", le="60"}': "0+1x60",
        'router_queue_wait_seconds_bucket{model="m", le="120"}': "0+9x60",
        'router_queue_wait_seconds_bucket{model="m", le="+Inf"}': "0+9x60",
        'router_queue_wait_seconds_count{model="m"}': "0+9x60",
    },
    "DeviceMemoryNearlyFull": {
        'router_gpu_memory_bytes{gpu="0", kind="free"}': "1x60",
        'router_gpu_memory_bytes{gpu="0", kind="total"}': "100x60",
    },
}


def firing(alert: str, at: str) -> dict[str, Any]:
    expr = f"count(ALERTS{{alertname='{alert}', alertstate='firing'}})"
    return {"expr": expr, "eval_time": at, "exp_samples": [{"labels": "{}", "value": 1}]}


def test_each_alert_fires_on_its_cause(tmp_path: Path) -> None:
    assert TROUBLE.keys() == {rule["alert"] for rule in rules()}
    cases = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "promql_expr_test": [firing(alert, "30m")],
        }
        for alert, series in TROUBLE.items()
    ]
    file = tmp_path / "alerts_test.yml"
    tests = {"rule_files": [str(MONITORING / "alerts.yml")], "evaluation_interval": "1m", "tests": cases}
    file.write_text(yaml.safe_dump(tests), encoding="utf-8")
    promtool("test", "rules", str(file))


class References(HTMLParser):
    """What a page refers to, and what its content security policy would block."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.inline: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        self.urls += [value for name, value in attrs if name in {"src", "href"} and value]
        self.inline += [name for name in names if name == "style" or name.startswith("on")]
        if tag == "style" or (tag == "script" and "src" not in names):
            self.inline.append(tag)


def test_page_needs_nothing_from_outside_and_nothing_inline() -> None:
    page = References()
    page.feed((UI / "index.html").read_text(encoding="utf-8"))
    assert page.inline == []
    ours = [url for url in page.urls if not url.startswith("#")]
    assert [url for url in ours if url.startswith("/") or ":" in url] == [], (
        "a page behind a prefix is relative"
    )
    assert [
        url for url in ours if url.startswith("ui/") and not (UI / url.removeprefix("ui/")).is_file()
    ] == []


@pytest.mark.parametrize("path", sorted(UI.glob("*.js")), ids=lambda path: path.name)
def test_script_imports_exist_and_data_never_becomes_markup(path: Path) -> None:
    code = path.read_text(encoding="utf-8")
    assert all((UI / name).is_file() for name in re.findall(r'from "\./([^"]+)"', code))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|https?://", code)
