"""The container and the unit agree with the code. Neither is run here."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from app.configuration.file import parse
from app.core.config import SystemConfig
from app.uvicorn_server import STUCK_S

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
UNIT = (ROOT / "packaging" / "routermodelcustom.service").read_text(encoding="utf-8")
DEPLOYMENT = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
LONGEST_END_S = SystemConfig().drain_timeout_sec + STUCK_S


def test_everybody_waits_longer_than_the_router_drains() -> None:
    unit = re.search(r"^TimeoutStopSec=(\d+)$", UNIT, re.M)
    compose = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", DEPLOYMENT, re.S)[0])
    assert unit is not None
    assert int(unit[1]) > LONGEST_END_S
    assert int(compose["services"]["router"]["stop_grace_period"].rstrip("s")) > LONGEST_END_S


def test_the_router_alone_is_asked_to_stop() -> None:
    assert "KillMode=mixed" in UNIT


def test_the_variables_of_the_image_and_of_the_unit_are_known_and_right() -> None:
    for text in (DOCKERFILE, UNIT):
        parse("{}", ROOT, dict(re.findall(r"(ROUTER_[A-Z_]+)=([^\s\\]+)", text)))


def test_the_image_gets_what_it_copies_and_runs_as_nobody_special() -> None:
    kept = re.findall(r"^!(\S+)", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.M)
    copied = [name for names in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.M) for name in names.split()]
    assert set(copied) == set(kept)
    for name in copied:
        assert (ROOT / name).exists()
    assert re.findall(r"^USER (\w+)", DOCKERFILE, re.M)[-1] == "router"
    assert "HEALTHCHECK" in DOCKERFILE
