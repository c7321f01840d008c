"""Two replicas of a homomorphic-encryption server whose clients have one budget, in a real Redis
that is killed and comes back."""

from __future__ import annotations

import time
from pathlib import Path
from queue import Empty
from typing import Any

import numpy as np
import pytest
from e2e.he_server import HeServerProcess, inputs, lenet
from e2e.mpc_cluster import small_net, start, tls
from e2e.onehost_server import OneHostProcess
from e2e.redis_server import BINARY, RedisServer
from patience import ample

from secure_quant import reference
from secure_quant.errors import BudgetExceeded, PeerUnavailable
from secure_quant.transport.certs import make_all
from secure_quant_client import HeClient, MpcClient, OneHostClient

pytest.importorskip("redis")
pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(BINARY is None, reason="no redis-server here"),
]

BUDGET = 7


@pytest.mark.parametrize("alone", [False, True])
def test_two_replicas_have_one_budget(tmp_path: Path, alone: bool) -> None:
    graph = lenet()
    make_all(tmp_path / "certs")
    question = inputs(graph, 1)
    answer = reference.run_int(graph, question)
    store = RedisServer(tmp_path / "redis", tmp_path / "certs")
    options = {
        "budget": BUDGET, "budget_window_s": 1e6, "budget_alone": alone,
        "budget_store": str(store.file),
    }  # fmt: skip

    def served(client: HeClient, times: int) -> int:
        """How many of so many inferences are right; each other one says BudgetExceeded."""
        right = 0
        for _ in range(times):
            try:
                found = client.infer_int8(question, timeout=ample(30))
            except BudgetExceeded:
                continue
            assert np.array_equal(found, answer)
            right += 1
        return right

    with (
        store,
        HeServerProcess(tmp_path, graph, **options) as first,
        HeServerProcess(tmp_path, graph, **options) as second,
        HeClient(first.target, tls=first.tls(), expected_hash=graph.hash) as one,
        HeClient(second.target, tls=second.tls(), expected_hash=graph.hash) as two,
    ):
        assert (served(one, 3), served(two, BUDGET), served(one, 1)) == (3, BUDGET - 3, 0)
        store.kill()
        if alone:  # a full budget of each replica's own
            assert (served(one, BUDGET + 2), served(two, BUDGET + 2)) == (BUDGET, BUDGET)
        else:
            for client in (one, two):
                with pytest.raises(PeerUnavailable, match="store of query budgets"):
                    client.infer_int8(question, timeout=ample(30))
        for server in (first, second):
            assert server.event("budget store away")["reason"]
        with store:
            # It kept what was spent, so nobody is served once a replica has found it again.
            end, said = time.monotonic() + ample(20), []
            while "budget store back" not in [each["event"] for each in said]:
                assert time.monotonic() < end
                with pytest.raises((BudgetExceeded, PeerUnavailable)):
                    two.infer_int8(question, timeout=ample(30))
                said += _said(second)
            assert served(two, 1) == 0
        said += [*_said(first), *_said(second)]
        assert not [each for each in said if "Marker5" in repr(each)]


def test_with_one_host_and_at_parties(tmp_path: Path) -> None:
    """Charged where a pairing's thread makes an item, and at either party's front."""
    graph = small_net()
    make_all(tmp_path / "certs")
    answer = reference.run_int(graph, inputs(graph, 1))
    store = RedisServer(tmp_path / "redis", tmp_path / "certs")
    options = {"budget": 3, "budget_window_s": 1e6, "budget_store": str(store.file)}
    told = ["--budget", "3", "--budget-window-seconds", "1e6", "--budget-store", str(store.file)]
    parties = {"party0": told, "party1": told}
    with (
        store,
        OneHostProcess(tmp_path, graph, stock=1, **options) as first,
        OneHostProcess(tmp_path, graph, stock=1, **options) as second,
        OneHostClient(first.target, tls=first.tls(), stock=0) as one,
        OneHostClient(second.target, tls=second.tls(), stock=0) as two,
        start(tmp_path, graph, options=parties, certs=tmp_path / "certs") as cluster,
        MpcClient(cluster.targets["mpc"], tls=tls(cluster)) as shared,
    ):
        for client in (one, two, one, shared, shared, shared):
            found = client.infer_int8(inputs(graph, 1), timeout=ample(60))
            assert np.array_equal(found, answer)
        for client in (one, two, shared):
            with pytest.raises(BudgetExceeded):
                client.infer_int8(inputs(graph, 1), timeout=ample(60))
        store.kill()
        for client in (one, two, shared):
            with pytest.raises(PeerUnavailable, match="store of query budgets"):
                client.infer_int8(inputs(graph, 1), timeout=ample(60))
        assert one._model._paired.alive  # an item was refused, and no more


def _said(server: HeServerProcess) -> list[dict[str, Any]]:
    found = []
    while True:
        try:
            found.append(server._events.get_nowait())
        except Empty:
            return found
