"""Rules and dashboard: what they ask of is what the roles tell, and Prometheus reads them."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from secure_quant_server.common import Metrics, Requests, Workers
from secure_quant_server.common.shared_budgets import up_gauge
from secure_quant_server.mpc.works import Gauges

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "deploy" / "monitoring"
METRIC = re.compile(r"\b(?:secure_quant|process)_[a-z_]+")
RULES = yaml.safe_load((FOLDER / "rules.yaml").read_text())
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())


def told() -> set[str]:
    """Names of the samples of a party, a dealer and a server of the other engines."""
    metrics = Metrics("dealer")
    requests = Requests(metrics)
    with requests.served("mpc", "0" * 64, 1):
        metrics.ended("method", "OK", 0.1)
    with pytest.raises(ValueError, match="x"), requests.served("mpc", "0" * 64, 1):
        raise ValueError("x")
    up_gauge(metrics)
    gauges = Gauges(metrics)
    for each in (gauges.stock, gauges.stock_seconds, gauges.dealt, gauges.seconds, gauges.spooled):
        each.labels("model")
    metrics.registry.register(Workers(
        configured=1, ready=int, pids=list, restarts=int, waiting=int
    ))  # fmt: skip
    return {sample.name for family in metrics.registry.collect() for sample in family.samples}


def rules() -> list[dict[str, Any]]:
    return [rule for group in RULES["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    curves = [target["expr"] for panel in panels() for target in panel["targets"]]
    return curves + [rule["expr"] for rule in rules()]


def test_every_metric_that_is_asked_for_is_told() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    asked = {name for each in expressions() for name in METRIC.findall(each)}
    assert len(asked) > 20
    assert asked - told() == {name.partition(":")[0] for name in recorded if ":" in name} & asked
    used = {
        name for each in expressions() for name in re.findall(r"secure_quant:[a-z_:0-9]+", each)
    }
    assert used <= recorded


def test_every_metric_of_requests_workers_and_stock_is_shown() -> None:
    asked = {name for each in expressions() for name in METRIC.findall(each)}
    bases = {re.sub(r"_(bucket|count|sum|created|total)$", "", name) for name in told()}
    shown = {re.sub(r"_(bucket|count|sum|created|total)$", "", name) for name in asked}
    wanted = {
        b for b in bases if re.match(r"secure_quant_(request|worker|dealer|up|down|on|off)", b)
    }
    assert wanted - shown == {
        "secure_quant_dealer_spool_bytes",
        "secure_quant_dealer_spool_failures",
    }


def test_alerts_say_what_is_wrong_and_how_bad() -> None:
    alerts = [rule for rule in rules() if "alert" in rule]
    assert len({rule["alert"] for rule in alerts}) == len(alerts) > 10
    for rule in alerts:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    boxes = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    cells = [
        (x, y)
        for box in boxes
        for x in range(box["x"], box["x"] + box["w"])
        for y in range(box["y"], box["y"] + box["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    for panel in panels():
        assert panel["title"]
        assert panel["datasource"]["uid"] == "${source}"
        for target in panel["targets"]:
            assert target["expr"].count("(") == target["expr"].count(")")
            assert target["legendFormat"]


def test_committed_files_are_what_their_sources_make() -> None:
    path = ROOT / "tools" / "gen_monitoring.py"
    spec = importlib.util.spec_from_file_location("gen_monitoring", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert json.loads((FOLDER / "dashboard.json").read_text()) == tool.dashboard()
    assert (FOLDER / "prometheus-rule.yaml").read_text() == tool.rule()
    operators = yaml.safe_load((FOLDER / "prometheus-rule.yaml").read_text())
    assert operators["spec"] == RULES
