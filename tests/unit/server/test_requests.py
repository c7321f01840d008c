"""What a server tells of its requests, its workers and its dealer's stock."""

from __future__ import annotations

import math
import os

import pytest
from prometheus_client import generate_latest
from unit.server.support import calling, graph, run, serving

from secure_quant import __version__
from secure_quant.errors import BudgetExceeded, DeadlineExceeded
from secure_quant.wire.gen.secure_inference_pb2 import EvaluateLinearRequest
from secure_quant_server.common import Metrics, Requests, Workers
from secure_quant_server.mpc.works import Rate


def _labels(engine: str) -> dict[str, str]:
    return {"engine": engine, "model": graph().hash[:12]}


MODEL = "0123456789ab" + 52 * "c"
LABELS = {"engine": "mpc", "model": MODEL[:12]}


def test_a_request_counts_once_it_was_answered():
    metrics = Metrics("party0")
    requests, value = Requests(metrics), metrics.registry.get_sample_value
    with requests.served("mpc", MODEL, 3) as cost:
        cost.up, cost.down, cost.rounds, cost.online, cost.offline = 10, 20, 22, 30, 40
    assert value("secure_quant_request_seconds_count", LABELS) == 1
    assert value("secure_quant_request_samples_sum", LABELS) == 3
    names = {
        "up_bytes": 10,
        "down_bytes": 20,
        "rounds": 22,
        "online_bytes": 30,
        "offline_bytes": 40,
    }
    for name, expected in names.items():
        assert value(f"secure_quant_{name}_total", LABELS) == expected
    for error, code in (
        (BudgetExceeded("budget"), "RESOURCE_EXHAUSTED"),
        (DeadlineExceeded("time"), "DEADLINE_EXCEEDED"),
        (ValueError("a secret"), "INTERNAL"),
        (KeyboardInterrupt(), "CANCELLED"),
    ):
        with pytest.raises(type(error)), requests.served("mpc", MODEL, 1):
            raise error
        assert value("secure_quant_request_failures_total", LABELS | {"code": code}) == 1
    assert value("secure_quant_request_seconds_count", LABELS) == 1
    assert value("secure_quant_up_bytes_total", LABELS) == 10
    assert b"secret" not in generate_latest(metrics.registry)


def test_a_layer_under_encryption_is_a_request():
    async def test():
        async with serving() as server, calling(server) as (stub, _):
            await stub.EvaluateLinear(
                EvaluateLinearRequest(
                    model_hash=graph().hash, step=0, batch=2, ciphertexts=bytes(9)
                )
            )

    run(test)


def test_workers_are_looked_at_when_somebody_scrapes():
    metrics, restarts = Metrics("he"), [0]
    metrics.registry.register(Workers(
        configured=3, ready=lambda: 2, pids=lambda: [os.getpid(), 2**22 + 1],
        restarts=lambda: restarts[0], waiting=lambda: 5,
    ))  # fmt: skip
    restarts[0] = 7
    value = metrics.registry.get_sample_value
    assert value("secure_quant_workers_configured") == 3
    assert value("secure_quant_workers_ready") == 2
    assert value("secure_quant_worker_restarts_total") == 7
    assert value("secure_quant_requests_waiting") == 5
    assert 2**20 < value("secure_quant_workers_resident_bytes") < 2**34


def test_what_runs_here_is_told():
    text = generate_latest(Metrics("dealer").registry).decode()
    assert f'role="dealer",version="{__version__}"' in text
    assert "process_resident_memory_bytes" in text


def test_a_steady_rate_is_found_from_its_beginning_and_fades():
    now = [0.0]
    rate = Rate(lambda: now[0])
    assert rate.now() == 0
    found = []
    for _ in range(600):
        now[0] += 0.5
        rate.add()
        found.append(rate.now())
    assert all(abs(each - 2) < 0.1 for each in found[20:])
    now[0] += 10 * Rate.HALF_S
    assert math.isclose(rate.now(), 2 / 2**10, rel_tol=0.05)
