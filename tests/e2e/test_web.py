"""Inferences from JavaScript over HTTPS at parties that run, beside gRPC on the same ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from e2e.mpc_cluster import small_net, start, tls
from e2e.web_client import build, live

from secure_quant import Graph, reference
from secure_quant.errors import BudgetExceeded
from secure_quant_cli.cluster import Cluster, free_ports
from secure_quant_client import MpcClient

pytest.importorskip("aiohttp")
pytestmark = pytest.mark.heavy

TOKEN, SMALL, UNKNOWN = "alice's token", "bob's token", "nobody's token"
BUDGET = 60


@pytest.fixture(scope="module")
def graph() -> Graph:
    return small_net()


@pytest.fixture(scope="module")
def targets() -> list[str]:
    return [f"127.0.0.1:{port}" for port in free_ports(2)]


@pytest.fixture(scope="module")
def cluster(
    graph: Graph, targets: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    build()
    folder = tmp_path_factory.mktemp("web")
    lines = (
        f"{n} {hashlib.sha256(t.encode()).hexdigest()}" for n, t in (("a", TOKEN), ("b", SMALL))
    )
    (folder / "tokens").write_text("\n".join(lines))
    told = ["--tokens", f"{folder}/tokens", "--budget", str(BUDGET)]
    options = {
        f"party{party}": ["--http-listen", target, *told] for party, target in enumerate(targets)
    }
    with start(folder, graph, options=options) as started:
        yield started


def ask(
    cluster: Cluster, targets: list[Any], inputs: list[np.ndarray], **options: object
) -> dict[str, object]:
    """What ``test/live.ts`` says. targets: of one cell, or of several. options: of the client."""
    wanted = {
        "targets": [_https(target) for target in targets],
        "options": {"token": TOKEN} | options,
        "inputs": [x.reshape(-1).tolist() for x in inputs],
    }
    return live(wanted, Path(cluster.certs) / "ca.pem")


def _https(target: Any) -> Any:
    return f"https://{target}" if isinstance(target, str) else [_https(each) for each in target]


def test_integers_and_floats_are_those_of_plaintext(
    cluster: Cluster, graph: Graph, targets: list[str]
):
    rng = np.random.default_rng(0)
    inputs = [rng.normal(0, 40 * graph.input.scale, (n, *graph.input.shape)) for n in (1, 3, 40)]
    told = ask(cluster, targets, inputs, expectedHash=graph.hash)
    for x, answer in zip(inputs, told["answers"], strict=True):
        y = reference.run_int(graph, reference.quantize_input(graph, x))
        assert answer["integers"] == [str(each) for each in y.reshape(-1).tolist()]
        floats = reference.run(graph, x).reshape(-1)
        np.testing.assert_array_equal(np.array(answer["floats"][0], np.float32), floats)
        assert answer["told"][-1]["fraction"] == 1
    stats = told["answers"][0]["stats"]
    assert stats["rounds"] > 0
    assert stats["bytesUp"] == np.prod(graph.input.shape) + 32


def test_a_cell_that_is_away_is_passed_over(cluster: Cluster, graph: Graph, targets: list[str]):
    away = [f"127.0.0.1:{port}" for port in free_ports(2)]
    x = np.random.default_rng(1).normal(0, 40 * graph.input.scale, (1, *graph.input.shape))
    y = reference.run_int(graph, reference.quantize_input(graph, x))
    told = ask(cluster, [away, targets], [x] * 4, expectedHash=graph.hash)
    assert [each["stats"]["cell"] for each in told["answers"]] == [1] * 4
    for answer in told["answers"]:
        assert answer["integers"] == [str(each) for each in y.reshape(-1).tolist()]


def test_what_the_parties_refuse_has_its_name_in_the_browser(
    cluster: Cluster, graph: Graph, targets: list[str]
):
    x = [np.zeros((1, *graph.input.shape))]
    assert ask(cluster, targets, x, token=UNKNOWN)["kind"] == "UNAUTHENTICATED"
    assert ask(cluster, targets, x, expectedHash="0" * 64)["kind"] == "MODEL_NOT_FOUND"
    assert ask(cluster, targets[::-1], x)["kind"] == "MALFORMED_MESSAGE"
    closed = [targets[0], f"127.0.0.1:{free_ports(1)[0]}"]
    assert ask(cluster, closed, x)["kind"] == "PEER_UNAVAILABLE"


def test_one_budget_counts_both_ways(cluster: Cluster, graph: Graph, targets: list[str]):
    x = np.zeros((BUDGET // 2, *graph.input.shape))
    told = ask(cluster, targets, [x], token=SMALL)
    assert len(told["answers"]) == 1
    with MpcClient(cluster.targets["mpc"], tls=tls(cluster), token=SMALL) as client:
        client.infer(x[: BUDGET // 2 - 5])
        with pytest.raises(BudgetExceeded):
            client.infer(x)
    assert ask(cluster, targets, [x], token=SMALL)["kind"] == "BUDGET_EXCEEDED"
