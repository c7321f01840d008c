"""deploy/monitoring/dashboard.json from what is said here, and prometheus-rule.yaml, the same rules
for Prometheus operators, from rules.yaml."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "deploy" / "monitoring"
SOURCE = {"type": "prometheus", "uid": "${source}"}
WIDTH = 8
OF = "{{role}} {{engine}} {{model}}"
WHERE = 'role=~"$role"'

Panel = tuple[str, str, list[tuple[str, str]]]
"""Title, unit, and (expression, legend) of each curve."""


def _rate(by: str, metric: str) -> str:
    return f"sum by ({by}) (rate(secure_quant_{metric}{{{WHERE}}}[5m]))"


def _now(metric: str) -> str:
    return f"{metric}{{{WHERE}}}"


MODEL, HERE = "role, engine, model", "{{role}} {{instance}}"
REQUESTS: list[Panel] = [
    ("Answered a second", "reqps", [(_rate(MODEL, "request_seconds_count"), OF)]),
    ("Latency: half of them, and 99 of 100", "s", [
        (_now("secure_quant:request_seconds:p50"), f"{OF} p50"),
        (_now("secure_quant:request_seconds:p99"), f"{OF} p99"),
    ]),
    ("Not answered a second", "reqps", [
        (_rate(f"{MODEL}, code", "request_failures_total"), f"{OF} {{{{code}}}}"),
    ]),
    ("Samples of a request, mean", "short", [
        (f"{_rate(MODEL, 'request_samples_sum')} / {_rate(MODEL, 'request_samples_count')}", OF),
    ]),
    ("Waiting or running", "short", [(_now("secure_quant_requests_waiting"), HERE)]),
    ("Payload of clients", "Bps", [
        (_rate("role, engine", "up_bytes_total"), "{{role}} {{engine}} up"),
        (_rate("role, engine", "down_bytes_total"), "{{role}} {{engine}} down"),
    ]),
]  # fmt: skip
SHARING: list[Panel] = [
    ("Rounds a second", "short", [(_rate("role", "rounds_total"), "{{role}}")]),
    ("Between the parties", "Bps", [(_rate("role", "online_bytes_total"), "from {{role}}")]),
    ("Material consumed", "Bps", [(_rate("role", "offline_bytes_total"), "{{role}}")]),
    ("Material in stock", "short", [
        ("secure_quant_dealer_stock", "{{model}} in memory"),
        ("secure_quant_dealer_spooled", "{{model}} on disk"),
    ]),
    ("Material lasts", "s", [("secure_quant_dealer_stock_seconds < 86400", "{{model}}")]),
    ("Items handed out a second, and threads that make some", "short", [
        ("sum by (model) (rate(secure_quant_dealer_items_total[5m]))", "{{model}} out"),
        ("sum by (model) (rate(secure_quant_dealer_item_seconds_sum[5m]))", "{{model}} threads"),
    ]),
]  # fmt: skip
PROCESSES: list[Panel] = [
    ("Workers of use, and how many there are to be", "short", [
        (_now("secure_quant_workers_ready"), HERE),
        (_now("secure_quant_workers_configured"), f"{HERE} configured"),
    ]),
    ("Workers started again in an hour", "short", [
        (f"increase({_now('secure_quant_worker_restarts_total')}[1h])", HERE),
    ]),
    ("Memory", "bytes", [
        (_now("secure_quant_workers_resident_bytes"), f"{HERE} workers"),
        (_now("process_resident_memory_bytes"), HERE),
    ]),
    ("CPU of the fronts", "percentunit", [
        (f"rate({_now('process_cpu_seconds_total')}[5m])", HERE),
    ]),
    ("Shared budgets can be charged", "bool", [(_now("secure_quant_budget_store_up"), HERE)]),
    ("Calls by code", "reqps", [(_rate("role, code", "calls_total"), "{{role}} {{code}}")]),
    ("Days until certificates end", "d", [
        (f"({_now('secure_quant_certificate_expiry_seconds')} > 0) / 86400 - time() / 86400", HERE),
    ]),
]  # fmt: skip
ROWS = {"Requests": REQUESTS, "Secret sharing": SHARING, "Processes": PROCESSES}


def dashboard() -> dict[str, Any]:
    """What Grafana imports."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        panels.append({
            "type": "row", "title": title, "collapsed": False, "panels": [], "id": len(panels) + 1,
            "gridPos": {"x": 0, "y": y, "w": 3 * WIDTH, "h": 1},
        })  # fmt: skip
        for i, panel in enumerate(row):
            place = {"x": i % 3 * WIDTH, "y": y + 1 + i // 3 * 8, "w": WIDTH, "h": 8}
            panels.append(_panel(panel, len(panels) + 1, place))
        y += 1 + 8 * -(-len(row) // 3)
    return {
        "title": "secure_quant", "uid": "secure-quant", "tags": ["secure-quant"], "editable": True,
        "schemaVersion": 39, "version": 1, "refresh": "30s", "timezone": "browser",
        "time": {"from": "now-1h", "to": "now"}, "graphTooltip": 1, "annotations": {"list": []},
        "templating": {"list": [
            {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
            {
                "name": "role", "label": "Role", "type": "query", "datasource": SOURCE,
                "query": "label_values(secure_quant_build_info, role)", "refresh": 2,
                "includeAll": True, "multi": True, "allValue": ".*",
                "current": {"text": "All", "value": "$__all"},
            },
        ]},
        "panels": panels,
    }  # fmt: skip


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    title, unit, curves = panel
    return {
        "type": "timeseries", "title": title, "id": number, "gridPos": place, "datasource": SOURCE,
        "fieldConfig": {"defaults": {
            "unit": unit, "min": 0, "custom": {"lineWidth": 1, "fillOpacity": 8},
        }, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"},
                    "tooltip": {"mode": "multi", "sort": "desc"}},
        "targets": [
            {"refId": chr(ord("A") + i), "expr": expr, "legendFormat": legend, "datasource": SOURCE}
            for i, (expr, legend) in enumerate(curves)
        ],
    }  # fmt: skip


def rule() -> str:
    """rules.yaml as a PrometheusRule, its lines as they stand."""
    lines = (FOLDER / "rules.yaml").read_text().splitlines()
    body = lines[lines.index("groups:") :]
    head = [
        "# Made by tools/gen_monitoring.py from rules.yaml; do not edit.",
        "apiVersion: monitoring.coreos.com/v1",
        "kind: PrometheusRule",
        "metadata: {name: secure-quant, namespace: monitoring}",
        "spec:",
    ]
    return "\n".join([*head, *(f"  {line}" if line else "" for line in body)]) + "\n"


def made() -> dict[Path, str]:
    """Path -> what is to stand there."""
    return {
        FOLDER / "dashboard.json": json.dumps(dashboard(), indent=1) + "\n",
        FOLDER / "prometheus-rule.yaml": rule(),
    }
