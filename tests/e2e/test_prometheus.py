"""A real Prometheus scrapes every role, and its rules and the dashboard find what happened."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
import yaml
from e2e.mpc_cluster import kill, lane_workers, small_net, tls, wait_until_served
from patience import ample

from secure_quant import Graph
from secure_quant.he.bundle import split as split_he
from secure_quant.mpc.protocol.bundle import split as split_mpc
from secure_quant.onehost.bundle import split as split_onehost
from secure_quant.transport.certs import make_all
from secure_quant_cli.cluster import Cluster, free_ports
from secure_quant_client import HeClient, MpcClient, OneHostClient

pytestmark = pytest.mark.heavy

MONITORING = Path(__file__).parents[2] / "deploy" / "monitoring"
ROLES = ("dealer", "party0", "party1", "he", "onehost")


@pytest.fixture(scope="module")
def graph() -> Graph:
    return small_net()


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    return dict(zip((*ROLES, "prometheus"), free_ports(len(ROLES) + 1), strict=True))


@pytest.fixture(scope="module")
def cluster(
    graph: Graph, ports: dict[str, int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("metrics")
    make_all(folder / "certs")
    splits = {"mpc": split_mpc, "he": split_he, "onehost": split_onehost}
    for engine, split in splits.items():
        (folder / engine).mkdir()
        made = split(graph)
        for role, data in made.items():
            (folder / engine / f"{role}.sqb").write_bytes(data)
    options = {role: ["--metrics", str(ports[role])] for role in ROLES}
    bundles = {engine: folder / engine for engine in splits}
    with Cluster(folder / "certs", folder / "logs", bundles, options=options) as started:
        yield started


class Prometheus:
    def __init__(self, port: int) -> None:
        self._port = port

    def ask(self, path: str, **words: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=ample(10))
        connection.request("GET", f"/api/v1/{path}?{urlencode(words)}")
        answer = json.loads(connection.getresponse().read())
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> dict[tuple[str, ...], float]:
        """Role, engine and model of each sample, where it has them -> its value."""
        return {
            tuple(each["metric"].get(name, "") for name in ("role", "engine", "model")): float(
                each["value"][1]
            )
            for each in self.ask("query", query=expression)["result"]
        }

    def until(self, expression: str, met: Callable[[dict[tuple[str, ...], float]], bool]) -> Any:
        end = time.monotonic() + ample(60)
        while not met(found := self.query(expression)):
            assert time.monotonic() < end, (expression, found)
            time.sleep(0.5)
        return found


@pytest.fixture(scope="module")
def prometheus(
    cluster: Cluster, ports: dict[str, int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("no prometheus here")
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(MONITORING / "rules.yaml")]
    for each in config["scrape_configs"][0]["static_configs"]:
        each["targets"] = [f"127.0.0.1:{ports[each['labels']['role']]}"]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    command = [program, f"--config.file={folder}/prometheus.yaml",
               f"--storage.tsdb.path={folder}/data",
               f"--web.listen-address=127.0.0.1:{ports['prometheus']}"]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        found = Prometheus(ports["prometheus"])
        end = time.monotonic() + ample(60)
        while True:
            try:
                found.ask("query", query="up")
                break
            except (OSError, http.client.HTTPException, json.JSONDecodeError):
                assert time.monotonic() < end, (folder / "log").read_text()[-2000:]
                assert process.poll() is None, (folder / "log").read_text()[-2000:]
                time.sleep(0.2)
        yield found
    finally:
        process.terminate()
        process.wait(ample(20))


@pytest.fixture(scope="module")
def asked(cluster: Cluster, graph: Graph, prometheus: Prometheus) -> int:
    """Samples that were asked of each engine while Prometheus watched, some every second."""
    prometheus.until('up{job="secure-quant"} == 1', lambda found: len(found) == len(ROLES))
    x = np.zeros((3, *graph.input.shape), np.float32)
    samples = 0
    with (
        MpcClient(cluster.targets["mpc"], tls=tls(cluster)) as mpc,
        HeClient(cluster.targets["he"][0], tls=tls(cluster)) as he,
        OneHostClient(cluster.targets["onehost"][0], tls=tls(cluster)) as one,
    ):
        for _ in range(8):
            mpc.infer(x)
            he.infer(x)
            one.infer(x)
            samples += len(x)
            time.sleep(1)
    return samples


def test_counts_are_those_of_what_was_asked(prometheus: Prometheus, graph: Graph, asked: int):
    model = graph.hash[:12]
    expected = {("party0", "mpc", model): asked, ("party1", "mpc", model): asked}
    prometheus.until(
        'secure_quant_request_samples_sum{engine="mpc"}', lambda found: found == expected
    )
    layers = sum(type(node).__name__ in ("Linear", "Conv2d") for node in graph.nodes)
    prometheus.until(
        'secure_quant_request_samples_sum{engine="he"}',
        lambda found: found == {("he", "he", model): asked * layers},
    )
    prometheus.until(
        'secure_quant_request_samples_sum{engine="onehost"}',
        lambda found: found == {("onehost", "onehost", model): asked},
    )
    rounds = prometheus.query("secure_quant_rounds_total / secure_quant_request_seconds_count")
    assert len({value for key, value in rounds.items() if key[1] == "mpc"}) == 1
    built = prometheus.query("secure_quant_build_info")
    assert {role for role, *_ in built} == set(ROLES)
    ends = prometheus.query("secure_quant_certificate_expiry_seconds - time()")
    assert all(360 * 86400 < left < 366 * 86400 for left in ends.values())
    lasts = prometheus.query("secure_quant_dealer_stock_seconds")
    assert 0 < lasts["dealer", "", model] < float("inf")


def test_every_curve_of_the_dashboard_has_something_to_show(prometheus: Prometheus, asked: int):
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    empty = []
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"].replace("$role", ".*").replace("[5m]", "[1m]")
            if not prometheus.query(expression):
                empty.append(expression)
    # No request failed so far, and no role has a store of budgets (test_shared_budgets.py).
    none_yet = ("request_failures", "budget_store")
    assert [each for each in empty if not any(name in each for name in none_yet)] == []


def test_rules_are_loaded_and_a_killed_lane_is_seen(
    cluster: Cluster, prometheus: Prometheus, asked: int
):
    groups = prometheus.ask("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    written = yaml.safe_load((MONITORING / "rules.yaml").read_text())["groups"]
    assert len(rules) == sum(len(group["rules"]) for group in written) > 10
    assert [rule for rule in rules if rule.get("lastError")] == []
    firing = [rule["name"] for rule in rules if rule.get("state") == "firing"]
    assert firing == []
    (lane,) = lane_workers(cluster, "party0")
    kill(lane)
    prometheus.until(
        'secure_quant_worker_restarts_total{role="party0"}',
        lambda found: found == {("party0", "", ""): 1},
    )
    wait_until_served(cluster)
    ready = 'secure_quant_workers_ready{role=~"party."}'
    prometheus.until(ready, lambda found: set(found.values()) == {1} and len(found) == 2)
