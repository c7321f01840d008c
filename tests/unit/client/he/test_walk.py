"""The client's walk without a network: exact, parallel where it can be, one session each."""

import threading

import numpy as np
import pytest

from conformance.builder import Net
from secure_quant import Graph, reference
from secure_quant.errors import ConfigError
from secure_quant.he.bundle import load_client, load_server, split
from secure_quant_client.he.key_stock import KeyStock
from secure_quant_client.he.model import Values, largest_batch, walk


def net() -> Graph:
    """Three linear layers side by side, then two that wait for them."""
    made = Net(11, (6,), zero_point=-4)
    branches = []
    for _ in range(3):
        made.at("x").linear(5)
        branches.append(made.requantize(zero_point=3))
    made.concat(0, *branches)
    made.linear(4)
    made.requantize()
    made.linear(3)
    return made.done(per_channel=True)


def inputs(graph: Graph, batch: int) -> np.ndarray:
    shape = (batch, *graph.input.shape)
    return np.random.default_rng(1).integers(-128, 128, shape).astype(np.int64)


def local(graph: Graph, q: np.ndarray) -> tuple[Values, list[list[int]]]:
    """(every value, the steps of each round) with the server's half in this process."""
    bundles = split(graph)
    evaluator, (public, plan) = load_server(bundles["server"]), load_client(bundles["client"])
    with KeyStock(public, plan, 0).session(len(q)) as session:
        walking, rounds, answers = walk(public, session, q), [], None
        while True:
            try:
                requests = walking.send(answers)
            except StopIteration as done:
                return done.value, rounds
            rounds.append([request.step for request in requests])
            answers = [evaluator.evaluate(*request) for request in requests]


@pytest.mark.parametrize("batch", [1, 3])
def test_every_node_equals_the_reference(batch: int) -> None:
    graph = net()
    q = inputs(graph, batch)
    values, _ = local(graph, q)
    expected = reference.trace(graph, q)
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        assert np.array_equal(values[name], value), name


def test_layers_that_do_not_wait_for_each_other_share_a_round() -> None:
    graph = net()
    assert local(graph, inputs(graph, 1))[1] == [[0, 1, 2], [3], [4]]


def test_a_session_is_handed_out_once_and_the_stock_is_bounded() -> None:
    public, plan = load_client(split(net())["client"])
    stock = KeyStock(public, plan, 2)
    try:
        stock.fill(1)
        stock.fill(1)
        assert len(stock._ready[1]) == 2
        prepared = {id(session) for session in stock._ready[1]}
        seen = []
        for _ in range(2):
            with stock.session(1) as one, stock.session(1) as other:
                seen += [one, other]
        assert len({id(session) for session in seen}) == 4
        assert prepared <= {id(session) for session in seen}
        for batch in range(2, 8):
            with stock.session(batch):
                pass
        assert len(stock._ready) <= 4
    finally:
        stock.close()
    assert not stock._ready
    assert "session-stock" not in {thread.name for thread in threading.enumerate()}


def test_the_background_waits_for_inferences_and_then_fills() -> None:
    public, plan = load_client(split(net())["client"])
    stock = KeyStock(public, plan, 1)
    try:
        with stock.session(1), stock.session(1):
            pass
        done = threading.Event()
        for _ in range(500):
            if len(stock._ready[1]) == 1:
                break
            done.wait(0.01)
        assert len(stock._ready[1]) == 1
        with stock.session(1):
            assert stock._missing() is None  # nothing is made while an inference runs
    finally:
        stock.close()


def test_a_negative_stock_is_refused() -> None:
    public, plan = load_client(split(net())["client"])
    with pytest.raises(ConfigError):
        KeyStock(public, plan, -1)


def test_no_message_of_the_largest_batch_exceeds_the_limit() -> None:
    public, plan = load_client(split(net())["client"])
    for limit in (1, 20_000, 200_000, 64 * 2**20):
        batch = largest_batch(plan, limit)
        sizes = [
            (step.call(batch).cost.bytes_up, step.call(batch).cost.bytes_down)
            for step in plan.steps
        ]
        assert batch == 1 or max(map(max, sizes)) < limit
    assert largest_batch(plan, 64 * 2**20) == 256
    assert public.nodes == net().nodes
