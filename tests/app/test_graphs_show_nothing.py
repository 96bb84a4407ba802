"""Dashboards and alert rules name figures that there are, with the labels that they have."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from hounsfield.archive.app.metrics import prometheus_text
from hounsfield.archive.app.routing import RoutingService
from hounsfield.archive.app.scoreboard import Scoreboard, metrics_with
from hounsfield.archive.app.tier_operations import _families
from hounsfield.archive.engine.tier_standing import Held, Standing

DOCS = Path(__file__).parents[2] / "docs"
ALERTS_TEST = Path(__file__).with_name("alerts_test.yml")
EVERYWHERE = {"instance", "le"}  # Prometheus' own
_WORDS = r"\b(?:by|without)\s*\(([^)]*)\)"


def routed() -> list[Metric]:
    """The families of routes, with one lane."""
    lane = {
        "route": "r",
        "to": "AE",
        "queued": 1,
        "oldest_ns": 1,
        "set_aside": 0,
        "failures": 0,
        "sent": 3,
    }
    service: Any = SimpleNamespace(_operations=SimpleNamespace(routes=[lane], told=lambda: [lane]))
    return list(RoutingService.metrics(service))


@pytest.fixture(scope="module")
def told() -> dict[str, set[str]]:
    """Every sample that ``/metrics`` has of an archive with a tier and a route, with its labels."""
    standing = Standing(1, {"hot": Held(), "cold": Held(1, 2, 3)}, 1, 1)
    descriptor, board = Scoreboard.create(1, metrics_with(["cold"]))
    text = prometheus_text(board, [*_families(standing, 0.5), *routed()]).decode()
    board.close()
    os.close(descriptor)
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def dashboard() -> list[str]:
    document = json.loads((DOCS / "grafana-tiers.json").read_text())
    ids = [panel["id"] for panel in document["panels"]]
    assert len(set(ids)) == len(ids)
    return [target["expr"] for panel in document["panels"] for target in panel.get("targets", ())]


def alerts() -> list[str]:
    """Every ``expr`` of the rules, of one line or folded."""
    text = (DOCS / "alerts.yml").read_text()
    found = re.findall(r"^        expr: (?:>-\n((?:          .+\n)+)|(.+)$)", text, re.MULTILINE)
    assert len(found) == text.count("- alert: ") == text.count("severity: ") == text.count("summary: ")
    return [folded or line for folded, line in found]


@pytest.mark.parametrize("expressions", [dashboard, alerts])
def test_every_figure_that_is_named_is_told(expressions: Any, told: dict[str, set[str]]) -> None:
    every = expressions()
    assert len(every) > 15
    for expression in every:
        named = re.findall(r"\bhounsfield_\w+", expression)
        assert named, expression
        assert expression.count("(") == expression.count(")"), expression
        for name in named:
            assert name in told, name
        labels = {word.strip() for words in re.findall(_WORDS, expression) for word in words.split(",")}
        labels |= {
            word
            for words in re.findall(r"\{([^}]*)\}", expression)
            for word in re.findall(r"(\w+)[=!]", words)
        }
        for name in named:
            assert labels <= told[name] | EVERYWHERE, expression


def test_no_tier_that_is_told_is_left_out(told: dict[str, set[str]]) -> None:
    """What there is to see of tiers is on the dashboard."""
    shown = " ".join(dashboard())
    for name in told:
        if name.startswith("hounsfield_tier") and not name.endswith("_created"):
            assert re.search(rf"\b{name}\b", shown), name


# ---------------------------------------------------------------- by Prometheus itself


def promtool(*words: object) -> None:
    done = subprocess.run(
        ["promtool", *map(str, words)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.peer("promtool")
def test_alerts_fire_when_they_should_and_only_then() -> None:
    promtool("check", "rules", DOCS / "alerts.yml")
    promtool("test", "rules", ALERTS_TEST)


def test_every_alert_is_tried() -> None:
    tried = ALERTS_TEST.read_text()
    for name in re.findall(r"- alert: (\w+)", (DOCS / "alerts.yml").read_text()):
        assert f'"{name}"' in tried, name


@pytest.mark.peer("promtool")
def test_what_the_dashboard_asks_is_understood(tmp_path: Path) -> None:
    variables = {"$instance": ".*", "$__rate_interval": "1m"}
    rules = []
    for number, expression in enumerate(dashboard()):
        for name, text in variables.items():
            expression = expression.replace(name, text)
        rules.append({"record": f"panel:{number}", "expr": expression})
    file = tmp_path / "dashboard.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", "--lint=none", file)
