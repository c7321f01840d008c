"""Encrypted layers against the reference, to the last bit, and hostile requests."""

from __future__ import annotations

import numpy as np
import pytest
from unit.he.models import conv, lenet, linear, random_input
from unit.he.walk import infer, layer

from secure_quant import reference
from secure_quant.errors import MalformedMessage
from secure_quant.he.blinds import blind_size
from secure_quant.he.evaluate import Evaluator
from secure_quant.he.plan import HeCost, plan
from secure_quant.he.weights import Taps
from secure_quant.ir import Graph, Interval, ops
from secure_quant.ir.verify import linear_bound, public_bound
from secure_quant_client.he.ckks import CkksKeys

LAYERS = {
    "linear": linear(400, 120),
    "rows of a sequence": linear(48, 40, lead=(2, 5)),
    "one weight": linear(1, 1),
    "conv": conv(6, 16, (14, 14), (5, 5)),
    "padding and stride": conv(3, 8, (17, 19), (3, 3), stride=(2, 2), padding=(1, 1)),
    "dilation": conv(4, 4, (12, 12), (3, 3), padding=(2, 2), dilation=(2, 2)),
    "groups": conv(12, 12, (10, 10), (3, 3), padding=(1, 1), groups=4),
    "depthwise": conv(24, 24, (7, 7), (3, 3), padding=(1, 1), groups=24),
    "image in tiles": conv(1, 2, (70, 70), (3, 3), padding=(1, 1)),
}


@pytest.mark.parametrize("tier", ["T1", "T1-strict"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_layer_equals_the_reference(name: str, batch: int, tier: str) -> None:
    graph = LAYERS[name]
    q = random_input(graph, batch)
    assert np.array_equal(layer(graph, plan(graph, tier=tier), q), reference.run_int(graph, q))


@pytest.mark.parametrize("name", LAYERS)
def test_layer_of_bytes_equals_the_reference(name: str) -> None:
    graph = LAYERS[name]
    q, made = random_input(graph, 2), plan(graph)
    evaluator = Evaluator(graph, made, weight_memory=0)
    got, _ = infer(graph, evaluator, CkksKeys(graph.public(), made), q)
    (kept,) = evaluator._weights.values()
    assert isinstance(kept.weights, Taps)
    assert np.array_equal(got, reference.run_int(graph, q))


@pytest.mark.parametrize("memory", [0, 2**40])
@pytest.mark.parametrize("objective", ["latency", "traffic"])
def test_extreme_values(objective: str, memory: int) -> None:
    rows = np.array([[127] * 300, [-127] * 300, [127, -127] * 150, [0] * 300])
    graph = linear(300, 4, weight=rows)
    q = np.array([[127] * 300, [-128] * 300, [127, -128] * 150, [-128, 127] * 150], np.int8)
    got = layer(graph, plan(graph, objective), q, weight_memory=memory)
    assert np.array_equal(got, reference.run_int(graph, q))
    assert np.abs(got).max() > 0.99 * 300 * 127 * 131


@pytest.mark.parametrize("memory", [0, 2**40])
@pytest.mark.parametrize("tier", ["T1", "T1-strict"])
def test_accumulators_near_the_limit_of_the_graph(tier: str, memory: int) -> None:
    rows = np.full((2, 100_000), 127)
    rows[1, ::2] = -127
    graph = linear(100_000, 2, weight=rows)
    q = np.full((1, 100_000), 127, np.int8)
    q[0, 1::2] = -128
    q[0, :60_000] = -128
    got = layer(graph, plan(graph, tier=tier), q, weight_memory=memory)
    assert np.array_equal(got, reference.run_int(graph, q))
    assert np.abs(got).max() > 2**29


def test_int16_activations() -> None:
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (10, 50)).astype(np.int8)
    table = tuple(rng.integers(-32768, 32768, 256).tolist())
    bound = public_bound(linear_bound(weight, np.zeros(10, np.int32), Interval(-32768, 32767)))
    graph = Graph(
        (
            ops.Input(name="x", shape=(50,), scale=1.0, zero_point=0),
            ops.Requantize(
                name="wide", inputs=("x",), multiplier=(1,), axis=-1, offset=128, shift=0,
                table=(*table[:-2], -32768, 32767), scale=1.0, zero_point=0,
            ),
            ops.Linear(
                name="layer", inputs=("wide",), in_features=50, out_features=10, bias=False,
                bound=bound, scale=1.0,
            ),
            ops.Output(name="y", inputs=("layer",), scale=1.0),
        ),
        {"layer.weight": weight},
    )  # fmt: skip
    q = random_input(graph, 3)
    assert np.array_equal(layer(graph, plan(graph), q), reference.run_int(graph, q))


def test_all_weights_zero() -> None:
    graph = linear(50, 30, weight=np.zeros((30, 50)))
    q = random_input(graph, 2)
    assert np.array_equal(layer(graph, plan(graph), q), reference.run_int(graph, q))


def test_zero_weight_polynomials_are_skipped() -> None:
    weight = np.zeros((120, 400), np.int8)
    weight[:3, :3] = 1
    graph = linear(400, 120, weight=weight)
    evaluator = Evaluator(graph, plan(graph))
    evaluator.prepare(0, 1)
    (prepared,) = evaluator._weights.values()
    rows = prepared.weights.rows[0]
    assert len(rows) > 1
    assert [row.inputs.tolist() for row in rows if len(row.inputs)] == [[0]]


@pytest.fixture(scope="module")
def net() -> Graph:
    return lenet()


@pytest.mark.parametrize("tier", ["T1", "T1-strict"])
@pytest.mark.parametrize("batch", [1, 5, 8])
def test_lenet_and_its_cost_to_the_byte(net: Graph, batch: int, tier: str) -> None:
    made = plan(net, tier=tier)
    q = random_input(net, batch)
    got, sent = infer(net, Evaluator(net, made), CkksKeys(net.public(), made), q)
    assert np.array_equal(got, reference.run_int(net, q))
    assert sent == made.cost(batch)


def test_lenet_stays_within_its_traffic(net: Graph) -> None:
    cost = plan(net, "traffic").cost()
    assert cost.bytes_up + cost.bytes_down <= 340_000
    assert isinstance(cost, HeCost)


def test_stock_is_used_once_and_bounded(net: Graph) -> None:
    made = plan(net)
    evaluator = Evaluator(net, made, stock_limit=2)
    assert [evaluator.prepare(4, 1) for _ in range(3)] == [True, True, False]
    session = CkksKeys(net.public(), made)
    session.prepare(1)
    x = np.ones((1, 84), np.int64)
    request = session.encrypt(4, x)
    responses = {evaluator.evaluate(4, 1, request) for _ in range(4)}
    assert len(responses) == 4
    decrypted = [session.decrypt(4, 1, response) for response in responses]
    assert all(np.array_equal(decrypted[0], other) for other in decrypted)
    assert evaluator.prepare(4, 1)


def test_stock_keeps_within_its_memory(net: Graph) -> None:
    made = plan(net)
    sizes = {batch: blind_size(made.steps[4].call(batch)) for batch in (1, 2, 3, 256)}
    room = sizes[1] + sizes[2] + sizes[3]
    assert sizes[256] > room
    evaluator = Evaluator(net, made, stock_memory=room)
    assert all(evaluator.prepare(4, batch) for batch in (1, 2, 3))
    assert not evaluator.prepare(4, 256)
    for (_, batch), (blinds,) in ((k, v) for k, v in evaluator._stock.items() if v):
        assert sum(blind.size for blind in blinds) == sizes[batch]
    assert evaluator.prepare(4, 1)  # the least recently used kind makes room
    assert {batch: len(kept) for (_, batch), kept in evaluator._stock.items() if kept} == {
        3: 1, 1: 2,
    }  # fmt: skip
    assert evaluator._stocked == 2 * sizes[1] + sizes[3] <= room


@pytest.mark.parametrize("tier", ["T1", "T1-strict"])
def test_size_of_stock_is_known_beforehand(net: Graph, tier: str) -> None:
    made = plan(net, tier=tier)
    evaluator = Evaluator(net, made)
    for step in range(5):
        evaluator.prepare(step, 3)
    found = [blind for kept in evaluator._stock.values() for blind in kept[0]]
    assert sum(blind.size for blind in found) == evaluator._stocked


def test_weights_beyond_the_limit_are_not_kept_and_stale_ones_go(net: Graph) -> None:
    evaluator = Evaluator(net, plan(net), weight_memory=1)
    steps = len(evaluator.plan.steps)
    for walk in range(3):
        for step in range(steps):
            evaluator.prepare(step, 1)
            assert [step for step, _ in evaluator._weights] == [0], (walk, step)
    for _ in range(steps + 1):  # the last walk asked for step 0 first
        evaluator.prepare(1, 1)
    assert [step for step, _ in evaluator._weights] == [0]
    evaluator.prepare(1, 1)
    assert [step for step, _ in evaluator._weights] == [1]


class TestHostileRequests:
    graph = linear(40, 10)
    made = plan(graph)
    evaluator = Evaluator(graph, made)

    def test_padding_that_is_not_zero(self) -> None:
        call = self.made.steps[0].call(1)
        assert call.packing.spare % 8
        data = bytearray(self.request())
        data[sum(call.request_sizes[:3]) - 1] |= 0x80
        with pytest.raises(MalformedMessage, match="padding"):
            self.evaluator.evaluate(0, 1, bytes(data))

    def request(self) -> bytes:
        return CkksKeys(self.graph.public(), self.made).encrypt(0, np.ones((1, 40), np.int64))

    @pytest.mark.parametrize("change", [b"", b"x", b"\0" * 10**6])
    def test_wrong_length(self, change: bytes) -> None:
        for data in (change, self.request()[:-1], self.request() + b"\0"):
            with pytest.raises(MalformedMessage, match="bytes"):
                self.evaluator.evaluate(0, 1, data)

    @pytest.mark.parametrize("batch", [0, -1, 257, 2**31, 2**63])
    def test_batch_out_of_range(self, batch: int) -> None:
        with pytest.raises(MalformedMessage, match="batch"):
            self.evaluator.evaluate(0, batch, self.request())

    def test_largest_batch_with_a_short_message(self) -> None:
        with pytest.raises(MalformedMessage, match="bytes"):
            self.evaluator.evaluate(0, 256, self.request())

    @pytest.mark.parametrize("step", [-1, 1, 2**31])
    def test_step_out_of_range(self, step: int) -> None:
        with pytest.raises(MalformedMessage, match="step"):
            self.evaluator.evaluate(step, 1, self.request())

    @pytest.mark.parametrize(("tier", "parts"), [("T1", [2, 3]), ("T1-strict", [1, 2, 3])])
    def test_values_not_below_the_prime(self, tier: str, parts: list[int]) -> None:
        made = plan(self.graph, tier=tier)
        evaluator, session = Evaluator(self.graph, made), CkksKeys(self.graph.public(), made)
        sizes = made.steps[0].call(1).request_sizes
        for part in parts:  # T1 sends too few bits of the key for a value beyond the prime
            start = sum(sizes[:part])
            data = bytearray(session.encrypt(0, np.ones((1, 40), np.int64)))
            data[start : start + 100] = b"\xff" * 100
            with pytest.raises(MalformedMessage, match="coefficient"):
                evaluator.evaluate(0, 1, bytes(data))

    def test_any_other_bytes_are_answered(self) -> None:
        call = self.made.steps[0].call(1)
        for filler in (b"\0", b"\x01", b"\x7f"):
            data = bytearray(filler * sum(call.request_sizes))
            end = sum(call.request_sizes[:3])
            data[end - 8 : end] = bytes(8)  # where there is padding
            answer = self.evaluator.evaluate(0, 1, memoryview(data))
            assert len(answer) == sum(call.response_sizes)
