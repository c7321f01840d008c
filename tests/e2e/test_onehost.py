"""One host through a real server process over mutual TLS."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from e2e.he_server import inputs, lenet
from e2e.onehost_server import LastingOneHostProcess, OneHostProcess, SilentOneHostProcess
from patience import ample
from slow.client.forking import in_child
from unit.mpc.protocol.graphs import Builder

from secure_quant import Graph, reference
from secure_quant.errors import (
    BudgetExceeded,
    ConfigError,
    DeadlineExceeded,
    HashMismatch,
    Overloaded,
    PairingSpent,
    PeerUnavailable,
    SecureQuantError,
    ServiceError,
    ShapeMismatch,
)
from secure_quant.ir import ops
from secure_quant.onehost.bundle import load_client, split
from secure_quant.onehost.cot import KAPPA, STEP_BYTES
from secure_quant.onehost.groups import GROUP
from secure_quant.onehost.masked import WIDEST
from secure_quant.onehost.softspoken import extension_bytes
from secure_quant_cli.cluster import free_ports
from secure_quant_client import AsyncOneHostClient, OneHostClient
from secure_quant_client.onehost.link import Link


@pytest.fixture(scope="module")
def graph() -> Graph:
    return lenet()


@pytest.fixture(scope="module")
def server(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneHostProcess]:
    with OneHostProcess(tmp_path_factory.mktemp("onehost"), graph) as started:
        yield started


def wait_until(condition: Callable[[], bool], limit: float) -> None:
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def exact(client: OneHostClient, graph: Graph, seed: int = 0, batch: int = 1) -> bool:
    q = inputs(graph, batch, seed)
    y = client.infer_int8(q, timeout=ample(30))
    return np.array_equal(y, reference.run_int(graph, q))


def test_tens_of_inferences_are_exact(server: OneHostProcess, graph: Graph) -> None:
    with OneHostClient(server.target, tls=server.tls(), expected_hash=graph.hash) as client:
        assert all(exact(client, graph, seed) for seed in range(25))
        assert all(exact(client, graph, batch, batch) for batch in (2, 9))


def test_float_in_float_out(server: OneHostProcess, graph: Graph) -> None:
    x = np.random.default_rng(4).normal(0, 2, (2, *graph.input.shape)).astype(np.float32)
    with OneHostClient(server.target, tls=server.tls(), stock=0) as client:
        assert np.array_equal(client.infer(x, timeout=ample(30)), reference.run(graph, x))


def test_what_was_sent_is_what_the_plan_says(server: OneHostProcess, graph: Graph) -> None:
    plan = load_client(split(graph)["client"])
    with OneHostClient(server.target, tls=server.tls(), stock=0) as client:
        for batch in (1, 2):
            q = inputs(graph, batch)
            stats = client.infer_int8_with_stats(q, timeout=ample(30)).stats
            cost = plan.cost(batch)
            assert (stats.bytes_up, stats.bytes_down) == (cost.bytes_up, cost.bytes_down)
            assert stats.flights == stats.rounds == cost.flights
            # What is left of an extension serves the next item.
            assert 0 <= cost.offline_bytes_up - stats.offline_bytes_up < 1024
            assert 0 <= cost.offline_bytes_down - stats.offline_bytes_down < 1024
            assert stats.samples == batch


@pytest.mark.heavy
def test_ferret_sends_less_and_answers_alike(graph: Graph, tmp_path: Path) -> None:
    """The first item begins it; the third takes what the first two left and one batch more."""
    plan = load_client(split(graph, "traffic")["client"])
    lpn, (first, second) = plan.lpn, plan.cots(1)
    assert lpn is not None
    with (
        SilentOneHostProcess(tmp_path, graph) as server,
        OneHostClient(server.target, tls=server.tls(), stock=0) as client,
    ):
        before = [0, 0]
        for item in range(1, 6):
            q = inputs(graph, 1, item)
            answer = client.infer_int8_with_stats(q, timeout=ample(30))
            assert np.array_equal(answer.y, reference.run_int(graph, q))
            stats, cost = answer.stats, plan.cost(1)
            batches = [-(-item * count // lpn.made) for count in (second, first)]
            sent = (stats.offline_bytes_up, stats.offline_bytes_down)
            material = (cost.material_up, cost.material_down)
            for side in (0, 1):
                fresh = (batches[side] - before[side]) * lpn.batch_bytes
                begun = extension_bytes(lpn.reserve, KAPPA) if item == 1 else 0
                assert sent[side] == material[side] + STEP_BYTES + fresh + begun
            before = batches


@pytest.mark.heavy
def test_images_of_many_pieces_in_rings_of_three_primes(tmp_path: Path) -> None:
    """A stem as ResNet-18's at half the size: one gate takes nearly three times the COTs
    that are in memory at once; bytes are the plan's."""
    b = Builder((3, 112, 112), seed=8)
    x = b.conv("stem", "x", 3, 32, (7, 7), (2, 2), (3, 3))
    x = b.pool("pool", b.requantize("q", x, shift=10), (3, 3), (2, 2))
    x = b.requantize("r", b.conv("c", x, 32, 8, (3, 3), (2, 2)), shift=12)
    x = b.add(ops.Reshape(name="flat", inputs=(x,), shape=(8 * 13 * 13,)))
    graph = b.graph(b.linear("head", x, 8 * 13 * 13, 10))
    plan = load_client(LastingOneHostProcess.split(graph)["client"])
    assert {step.layout(1).ring for step in plan.masked.he.steps} == {WIDEST}
    assert max(sum(half.cots(1)) for half in plan.halves.values()) > 2 * GROUP
    assert max(sum(taken) for taken in plan.cost(1).taken) <= GROUP
    with (
        LastingOneHostProcess(tmp_path, graph) as server,
        OneHostClient(server.target, tls=server.tls(), stock=0) as client,
    ):
        for batch in (1, 2):
            q = inputs(graph, batch, batch)
            answer = client.infer_int8_with_stats(q, timeout=ample(120))
            y = reference.run_int(graph, q)
            assert np.array_equal(answer.y, y)
            assert len(np.unique(y)) > 5
            stats, cost = answer.stats, plan.cost(batch)
            assert (stats.bytes_up, stats.bytes_down) == (cost.bytes_up, cost.bytes_down)
            # What is left of an extension serves the next one.
            left = 1024 * len(cost.taken)
            assert abs(cost.offline_bytes_up - stats.offline_bytes_up) < left
            assert abs(cost.offline_bytes_down - stats.offline_bytes_down) < left


def test_two_clients_at_once_and_both_kinds(server: OneHostProcess, graph: Graph) -> None:
    async def main() -> list[np.ndarray]:
        async with (
            AsyncOneHostClient(server.target, tls=server.tls()) as first,
            AsyncOneHostClient(server.target, tls=server.tls(), stock=0) as second,
        ):
            await first.prepare(timeout=ample(30))
            calls = [
                client.infer_int8(inputs(graph, 1, seed), timeout=ample(60))
                for client in (first, second)
                for seed in range(4)
            ]
            return await asyncio.gather(*calls)

    for place, y in enumerate(asyncio.run(main())):
        assert np.array_equal(y, reference.run_int(graph, inputs(graph, 1, place % 4)))


def test_threads_take_turns(server: OneHostProcess, graph: Graph) -> None:
    found: list[bool] = []
    with OneHostClient(server.target, tls=server.tls()) as client:
        threads = [
            threading.Thread(target=lambda seed=seed: found.append(exact(client, graph, seed)))
            for seed in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(ample(60))
    assert found == [True] * 4


def test_wrong_input_and_wrong_model(server: OneHostProcess, graph: Graph) -> None:
    with OneHostClient(server.target, tls=server.tls()) as client:
        with pytest.raises(ShapeMismatch):
            client.infer_int8(np.zeros((1, 3), np.int8))
        assert exact(client, graph)
    with pytest.raises(ServiceError):
        client.infer_int8(inputs(graph, 1))
    other = OneHostClient(server.target, tls=server.tls(), expected_hash="0" * 64)
    with other, pytest.raises((HashMismatch, ServiceError)):
        other.infer_int8(inputs(graph, 1))
    with pytest.raises(ConfigError):
        OneHostClient(server.target, tls=server.tls(), stock=-1)


class Spy:
    """Every item that clients asked to use or to drop, by link."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[int, int]] = []
        self.links: list[Link] = []  # kept, so that ids stay theirs
        plain = Link.send

        def send(link: Link, frame: Any) -> None:
            kind = frame.WhichOneof("message")
            if kind in ("infer", "drop"):
                self.links.append(link)
                self.seen.append((id(link), getattr(frame, kind).item))
            plain(link, frame)

        monkeypatch.setattr(Link, "send", send)

    def check(self, inferences: int) -> None:
        assert len(self.seen) == len(set(self.seen)) >= inferences


def test_a_server_that_stalls_costs_the_item_and_the_pairing(
    server: OneHostProcess, graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(monkeypatch)
    with OneHostClient(server.target, tls=server.tls(), stock=3) as client:
        client.prepare(timeout=ample(30))
        assert exact(client, graph)
        first = client._model._paired
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            with pytest.raises(DeadlineExceeded):
                client.infer_int8(inputs(graph, 1), timeout=1.0)
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
        assert not first.alive
        assert not first._ready
        assert exact(client, graph, 1)
        assert client._model._paired is not first
    spy.check(3)


def test_the_server_dies_between_and_during_inferences(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(monkeypatch)
    (port,) = free_ports(1)
    with OneHostProcess(tmp_path, graph, port=port) as first:
        client = OneHostClient(first.target, tls=first.tls())
        client.prepare(timeout=ample(30))
        assert exact(client, graph)
        first.process.kill()
        first.process.wait(ample(10))
        wait_until(lambda: not client._model._paired.alive, ample(20))
        with pytest.raises(PeerUnavailable):
            client.infer_int8(inputs(graph, 1), timeout=ample(5))
    with OneHostProcess(tmp_path, graph, port=port) as second:
        client.prepare(timeout=ample(30))  # pairs anew
        assert exact(client, graph, 1)
        failed: list[SecureQuantError] = []

        def ask() -> None:
            try:
                client.infer_int8(inputs(graph, 1), timeout=ample(30))
            except SecureQuantError as error:
                failed.append(error)

        client.prepare(timeout=ample(30))
        os.kill(second.process.pid, signal.SIGSTOP)
        asked = threading.Thread(target=ask)
        before = len(spy.seen)
        asked.start()
        wait_until(lambda: len(spy.seen) > before, ample(20))  # it is under way
        second.process.kill()
        asked.join(ample(30))
        assert isinstance(failed[0], PeerUnavailable)
    with OneHostProcess(tmp_path, graph, port=port), client:
        assert exact(client, graph, 2)
    spy.check(4)


def test_budgets_and_bounds(graph: Graph, tmp_path: Path) -> None:
    with OneHostProcess(
        tmp_path, graph, budget=4, budget_window_s=1e6, pairings_per_client=1, stock=2
    ) as server, OneHostClient(server.target, tls=server.tls(), stock=9) as client:  # fmt: skip
        client.prepare(timeout=ample(30))
        assert len(client._model._paired._ready) == 2  # what the host allows
        with (
            OneHostClient(server.target, tls=server.tls()) as other,
            pytest.raises(Overloaded, match="pairings of one client"),
        ):
            other.infer_int8(inputs(graph, 1), timeout=ample(30))
        # Those that were paid for are served.
        assert all(exact(client, graph, seed) for seed in range(4))
        with pytest.raises(BudgetExceeded):
            client.infer_int8(inputs(graph, 1), timeout=ample(30))
        assert client._model._paired.alive


def test_a_client_s_samples_are_counted_across_restarts(graph: Graph, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.json"
    with OneHostProcess(tmp_path, graph, ledger=str(ledger)) as server:
        with OneHostClient(server.target, tls=server.tls(), stock=0) as client:
            assert exact(client, graph)
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(ample(20))
    text = ledger.read_text()
    assert ": 1}" in text
    plan = load_client(split(graph)["client"])
    ledger.write_text(text.replace(": 1}", f": {plan.calls - 1}}}"))
    with (
        OneHostProcess(tmp_path, graph, ledger=str(ledger)) as server,
        OneHostClient(server.target, tls=server.tls(), stock=0) as client,
    ):
        assert exact(client, graph)
        with pytest.raises(BudgetExceeded, match="for ever"):
            client.infer_int8(inputs(graph, 1), timeout=ample(30))


def test_idle_pairings_end_and_clients_pair_anew(graph: Graph, tmp_path: Path) -> None:
    with (
        OneHostProcess(tmp_path, graph, idle_s=ample(1.0)) as server,
        OneHostClient(server.target, tls=server.tls(), stock=1) as client,
    ):
        assert exact(client, graph)
        wait_until(lambda: not client._model._paired.alive, ample(30))
        assert exact(client, graph, 1)


def test_a_stop_ends_pairings_in_order(graph: Graph, tmp_path: Path) -> None:
    with (
        OneHostProcess(tmp_path, graph) as server,
        OneHostClient(server.target, tls=server.tls()) as client,
    ):
        assert exact(client, graph)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(ample(20)) == 0
        wait_until(lambda: not client._model._paired.alive, ample(20))
        with pytest.raises(PeerUnavailable):
            client.infer_int8(inputs(graph, 1), timeout=ample(5))


def test_a_forked_child_has_no_pairing(server: OneHostProcess, graph: Graph) -> None:
    with OneHostClient(server.target, tls=server.tls()) as client:
        client.prepare(timeout=ample(30))
        model, paired = client._model, client._model._paired
        pairing = paired._program.pairing

        def child() -> bool:
            gone = model._paired is None and not paired._ready and paired._program is None
            for use in (lambda: client.infer_int8(inputs(graph, 1)), client.prepare):
                with pytest.raises(ConfigError, match="forked process"):
                    use()
            with pytest.raises(PairingSpent, match="another process"):
                pairing.random(1)
            client.close()
            return gone

        with model._choosing, paired._changed:  # as if other threads were in the midst of it
            assert in_child(child)
        assert exact(client, graph)


def test_the_command_infers(server: OneHostProcess, graph: Graph, tmp_path: Path) -> None:
    q, out = inputs(graph, 3), tmp_path / "y.npz"
    np.savez(tmp_path / "x.npz", x=q)
    done = subprocess.run(
        [sys.executable, "-m", "secure_quant_cli", "infer", "--engine", "onehost",
         "--target", server.target, "--input", str(tmp_path / "x.npz"), "--out", str(out),
         "--tls", str(server.certs), "--model-hash", graph.hash, "--integers", "--json",
         "--timeout", str(ample(30))],
        capture_output=True, text=True, timeout=ample(60),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(out)["y"], reference.run_int(graph, q))
    stats = json.loads(done.stdout)["stats"]
    assert stats["samples"] == 3
    assert stats["flights"] == load_client(split(graph)["client"]).cost(3).flights
    assert min(stats["offline_bytes_up"], stats["offline_bytes_down"]) > 0
