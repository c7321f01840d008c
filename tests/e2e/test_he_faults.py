"""What breaks costs one request, is named, and heals."""

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from e2e.he_server import HeServerProcess, alive, inputs, lenet, running_calls
from grpc_health.v1 import health_pb2, health_pb2_grpc
from patience import ample

from conformance.builder import Net
from secure_quant import reference
from secure_quant.errors import DeadlineExceeded, PeerUnavailable
from secure_quant.transport import sync_channel
from secure_quant_cli.cluster import free_ports
from secure_quant_client import HeClient


def wait_until(condition: Callable[[], bool], limit: float = 20.0) -> None:
    end = time.monotonic() + ample(limit)
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def held_inference(server: HeServerProcess, client: HeClient, metrics: str) -> Future[np.ndarray]:
    """An inference that is certainly inside the stopped worker."""
    q = inputs(client.graph, 1)
    (worker,) = server.workers()
    os.kill(worker, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(client.infer_int8, q)
        wait_until(lambda: running_calls(metrics) == 1)
        time.sleep(0.05)  # from the guard to the worker's socket
        os.kill(worker, signal.SIGKILL)
    return future


def test_a_worker_killed_before_it_began_costs_nothing(tmp_path: Path) -> None:
    graph, metrics = lenet(), f"127.0.0.1:{free_ports(1)[0]}"
    q = inputs(graph, 1)
    with (
        HeServerProcess(tmp_path, graph, metrics=metrics) as server,
        HeClient(server.target, tls=server.tls()) as client,
    ):
        client.infer_int8(q)
        (before,) = server.workers()
        future = held_inference(server, client, metrics)
        # The request that it never looked at waits for the new worker, as does the next.
        assert np.array_equal(future.result(10), reference.run_int(graph, q))
        server.event("worker ended")
        assert np.array_equal(client.infer_int8(q), reference.run_int(graph, q))
        (after,) = server.workers()
        assert after != before


def test_health_follows_the_workers(tmp_path: Path) -> None:
    with (
        HeServerProcess(tmp_path, lenet(), evaluate_s=0.2) as server,
        sync_channel(server.target, server.tls("dealer"), server_role="he") as channel,
        HeClient(server.target, tls=server.tls()) as client,
    ):
        stub, ask = health_pb2_grpc.HealthStub(channel), health_pb2.HealthCheckRequest()

        def status() -> int:
            return stub.Check(ask, timeout=ample(5)).status

        assert status() == health_pb2.HealthCheckResponse.SERVING
        q = inputs(client.graph, 1)
        worker, template = server.workers()[0], server.templates()[0]
        os.kill(template, signal.SIGSTOP)  # or another worker is there before anybody looks
        os.kill(worker, signal.SIGSTOP)
        with pytest.raises(DeadlineExceeded):
            client.infer_int8(q)
        wait_until(lambda: status() == health_pb2.HealthCheckResponse.NOT_SERVING)
        os.kill(template, signal.SIGCONT)
        wait_until(lambda: status() == health_pb2.HealthCheckResponse.SERVING)


def test_an_idle_worker_that_stops_is_noticed_and_replaced(tmp_path: Path) -> None:
    graph = lenet()
    q = inputs(graph, 1)
    with (
        HeServerProcess(tmp_path, graph) as server,
        HeClient(server.target, tls=server.tls()) as client,
    ):
        client.infer_int8(q)
        (worker,) = server.workers()
        os.kill(worker, signal.SIGSTOP)
        assert "hangs" in server.event("worker ended")["reason"]
        wait_until(lambda: server.workers() not in ([], [worker]))
        assert np.array_equal(client.infer_int8(q), reference.run_int(graph, q))


def test_a_killed_idle_worker_costs_no_call_while_another_lives(tmp_path: Path) -> None:
    graph = lenet()
    q = inputs(graph, 1)
    expected = reference.run_int(graph, q)
    with (
        HeServerProcess(tmp_path, graph, workers=2) as server,
        HeClient(server.target, tls=server.tls()) as client,
    ):
        for turn in range(6):
            wait_until(lambda: len(server.workers()) == 2)
            client.infer_int8(q)
            for worker in server.workers()[turn % 2 :][:1]:
                os.kill(worker, signal.SIGKILL)
            assert np.array_equal(client.infer_int8(q), expected)


def test_a_call_in_flight_is_answered_after_sigterm_to_everybody(tmp_path: Path) -> None:
    """As a supervisor sends it: to the whole group, workers included."""
    net = Net(5, (6,))
    net.linear(3)  # one layer: one call
    graph, metrics = net.done(), f"127.0.0.1:{free_ports(1)[0]}"
    q = inputs(graph, 1)
    with (
        HeServerProcess(tmp_path, graph, metrics=metrics, grace_s=0.1) as server,
        HeClient(server.target, tls=server.tls()) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        client.infer_int8(q)
        (worker,) = server.workers()
        os.kill(worker, signal.SIGSTOP)
        future = pool.submit(client.infer_int8, q)
        wait_until(lambda: running_calls(metrics) == 1)
        for pid in [worker, *server.templates(), server.process.pid]:
            os.kill(pid, signal.SIGTERM)
        time.sleep(0.6)  # longer than its grace
        assert server.process.poll() is None
        os.kill(worker, signal.SIGCONT)
        assert np.array_equal(future.result(20), reference.run_int(graph, q))
        assert server.process.wait(ample(20)) == 0


def test_a_worker_that_hangs_is_replaced(tmp_path: Path) -> None:
    graph = lenet()
    q = inputs(graph, 1)
    with (
        HeServerProcess(tmp_path, graph, evaluate_s=ample(0.5)) as server,
        HeClient(server.target, tls=server.tls()) as client,
    ):
        client.infer_int8(q)
        wait_until(lambda: len(server.workers()) == 1)
        os.kill(*server.workers(), signal.SIGSTOP)
        with pytest.raises(DeadlineExceeded, match="evaluation"):
            client.infer_int8(q)
        assert np.array_equal(client.infer_int8(q), reference.run_int(graph, q))


def test_a_caller_that_gives_up_leaves_the_worker_in_order(tmp_path: Path) -> None:
    graph = lenet()
    q = inputs(graph, 1)
    with (
        HeServerProcess(tmp_path, graph) as server,
        HeClient(server.target, tls=server.tls()) as client,
    ):
        client.infer_int8(q)
        (worker,) = server.workers()
        os.kill(worker, signal.SIGSTOP)
        with pytest.raises(DeadlineExceeded):
            client.infer_int8(q, timeout=0.3)
        os.kill(worker, signal.SIGCONT)
        assert np.array_equal(client.infer_int8(q), reference.run_int(graph, q))
        assert server.workers() == [worker]


def test_a_stopped_server_ends_cleanly_and_a_new_one_is_found(tmp_path: Path) -> None:
    graph, (port,) = lenet(), free_ports(1)
    q = inputs(graph, 1)
    with HeServerProcess(tmp_path, graph, port=port) as server:
        client = HeClient(server.target, tls=server.tls())
        expected = client.infer_int8(q)
        workers = server.workers()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(ample(15)) == 0
        wait_until(lambda: not any(map(alive, workers)))
    start = time.monotonic()
    with pytest.raises(PeerUnavailable):
        client.infer_int8(q)
    assert time.monotonic() - start < ample(2)
    with HeServerProcess(tmp_path, graph, port=port), client:
        wait_until(lambda: _answers(client, q, expected))


def _answers(client: HeClient, q: np.ndarray, expected: np.ndarray) -> bool:
    try:
        return bool(np.array_equal(client.infer_int8(q), expected))
    except PeerUnavailable:
        return False


def test_a_server_that_dies_takes_its_workers_along(tmp_path: Path) -> None:
    with HeServerProcess(tmp_path, lenet(), workers=2) as server:
        wait_until(lambda: len(server.workers()) == 2)
        workers = server.workers()
        server.process.kill()
        wait_until(lambda: not any(map(alive, workers)))
