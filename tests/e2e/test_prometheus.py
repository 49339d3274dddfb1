"""A real Prometheus watches a real router: every panel and every alert must find something to show."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from math import isnan
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.e2e.clients import SYSTEM, Clients, fleet, mixed_traffic
from tests.monitoring import DASHBOARDS, MONITORING, load_json, load_yaml, queries, rules
from tests.nvml import Driver, gpu, nvml_library, with_cuda
from tests.patience import WAIT_S
from tests.ports import free_port
from tests.real_parts import PROMETHEUS, need
from tests.router_process import MakeRouter, RouterProcess, until, until_now

__all__ = ["nvml_library"]

CARD_MB = 8192
FULL = gpu(0, CARD_MB, CARD_MB - 20, mig=0)
VARIABLES = {"$__rate_interval": "2m", "$__range": "2m", "$model": "a"}
"""What Grafana fills in: here windows that hold all the traffic, and the model that lived through most."""

NOT_SO_LONG = {"QueueWaitLong": (" > 60", " > 0")}
"""Alerts whose cause would take minutes: with another threshold. All others are evaluated as they are."""

BURNING = {"ModelFailed", "ModelRestarts", "RequestsRejected", "DeviceMemoryNearlyFull"}


class Prometheus:
    """The configuration of `monitoring/`, with this router as its target and less patience."""

    def __init__(self, binary: str, folder: Path, target: str) -> None:
        config = load_yaml(MONITORING / "prometheus.yml")
        config["global"] = {
            "scrape_interval": "500ms",
            "scrape_timeout": "450ms",
            "evaluation_interval": "1s",
        }
        config["rule_files"] = [str(MONITORING / name) for name in config["rule_files"]]
        config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
        path = folder / "prometheus.yml"
        path.write_text(yaml.safe_dump(config))
        address = f"127.0.0.1:{free_port()}"
        self._http = httpx.Client(base_url=f"http://{address}/api/v1", timeout=WAIT_S, trust_env=False)
        command = [binary, f"--config.file={path}", f"--storage.tsdb.path={folder / 'data'}"]
        command += [f"--web.listen-address={address}", "--log.level=warn"]
        with (folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def close(self) -> None:
        self._http.close()
        self._process.kill()
        self._process.wait()

    def get(self, path: str, **params: str) -> Any:
        answer = self._http.get(path, params=params).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def values(self, expr: str, **params: str) -> list[float]:
        """What a panel would draw: a query of nothing but NaN shows nothing."""
        found = [float(series["value"][1]) for series in self.get("/query", query=expr, **params)["result"]]
        return [value for value in found if not isnan(value)]

    def sees(self, expr: str, value: float) -> bool:
        return self.values(expr) == [value]

    def is_ready(self) -> bool:
        try:
            return self._http.get(self._root("/-/ready")).status_code == 200
        except httpx.TransportError:
            return False

    def _root(self, path: str) -> httpx.URL:
        return self._http.base_url.copy_with(path=path)


@pytest.fixture(scope="module")
def binary() -> str:
    return need(PROMETHEUS)


@pytest.fixture(scope="module")
def driver(nvml_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Driver:
    driver = Driver(nvml_library, tmp_path_factory.mktemp("driver"))
    driver.show(gpu(0, CARD_MB, 100, mig=0))
    return driver


@pytest.fixture(scope="module")
def router(
    make_shared_router: MakeRouter,
    llama_server: Path,
    driver: Driver,
    models_dir: Path,
    tiny_gguf: Path,
    tiny_long_gguf: Path,
    truncated_gguf: Path,
) -> Iterator[RouterProcess]:
    """With a GPU that only a stub of the driver knows; the models run on the CPU all the same."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in driver.env.items():
            patch.setenv(name, value)
        yield make_shared_router(
            fleet(tiny_gguf, tiny_long_gguf, truncated_gguf, gpu=True),
            binary=with_cuda(models_dir, llama_server),
            system=SYSTEM,
        )


@pytest.fixture(scope="module")
def prometheus(binary: str, router: RouterProcess, tmp_path_factory: pytest.TempPathFactory) -> Any:
    found = Prometheus(binary, tmp_path_factory.mktemp("prometheus"), router.url.removeprefix("http://"))
    try:
        until_now(lambda: found.is_ready())
        until_now(lambda: found.sees('up{job="router"}', 1))
        yield found
    finally:
        found.close()


async def test_every_panel_and_every_alert_shows_what_happened(
    prometheus: Prometheus, router: RouterProcess, driver: Driver
) -> None:
    """One long story, because each chapter needs the traffic of the one before."""
    async with router.open_client() as http:
        clients = Clients(http)
        await mixed_traffic(clients, router)
    # What is asked in vain is asked again: after a scrape that a busy machine made too late nothing is there.
    await until(lambda: prometheus.sees("sum(router_requests_total)", clients.total))
    for (model, outcome), count in clients.outcomes.items():
        series = f'router_requests_total{{model="{model}",status="{outcome}"}}'
        await until(partial(prometheus.sees, series, count))
    driver.show(FULL)
    await until(lambda: bool(prometheus.values('router_gpu_memory_bytes{kind="free"} < 100e6')))

    panels = [filled_in(expr) for place, expr in queries() if place.endswith(".json")]
    assert len(panels) > 50
    for expr in panels:
        await until(partial(prometheus.values, expr))
    assert prometheus.get("/label/model/values", **{"match[]": listed_models()}) == [
        "a",
        "b",
        "broken",
        "embed",
    ]
    alerts = {
        alert["alert"]: alert["expr"].replace(*NOT_SO_LONG.get(alert["alert"], ("", ""))) for alert in rules()
    }

    def silent() -> set[str]:
        return {name for name, expr in alerts.items() if not prometheus.values(expr)}

    await until(lambda: silent() == {"RouterDown", "RouterMetricsMissing"})
    await check_rules(prometheus)
    check_metrics(router)

    router.stop()
    await until(lambda: bool(prometheus.values(alerts["RouterDown"])))
    an_hour_ago = str(time.time() - 3600)  # when there was no router to scrape
    assert prometheus.values(alerts["RouterMetricsMissing"], time=an_hour_ago)


def filled_in(expr: str) -> str:
    for name, value in VARIABLES.items():
        expr = expr.replace(name, value)
    return expr


def listed_models() -> str:
    """The series out of which Grafana's variable takes the names of the models."""
    (variable,) = (v for path in DASHBOARDS for v in load_json(path)["templating"]["list"])
    found = re.fullmatch(r"label_values\((.+), model\)", variable["query"]["query"])
    assert found
    return found[1]


async def check_rules(prometheus: Prometheus) -> None:
    """Prometheus evaluates them without a fault, and those whose cause is there are about to fire."""

    def burning() -> set[str]:
        return {alert["labels"]["alertname"] for alert in prometheus.get("/alerts")["alerts"]}

    await until(lambda: burning() >= BURNING)
    (group,) = prometheus.get("/rules")["groups"]
    assert {rule["health"] for rule in group["rules"]} == {"ok"}


def check_metrics(router: RouterProcess) -> None:
    text = router.client.get("/metrics").content
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
