"""Products that multiply by numbers as they are opened."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from conformance import sum_cases
from secure_quant.ir import Graph, ops
from secure_quant.mpc.protocol.gates.counting import CountingGate
from secure_quant.mpc.protocol.gates.scaled import ScaledProductGate
from secure_quant.mpc.protocol.plan import MpcPlan, plan
from secure_quant.mpc.protocol.scaling import scaling_of
from secure_quant.reference import run_int
from tests.unit.mpc.protocol import graphs
from tests.unit.mpc.protocol.harness import Pair, chi_square, run_gate, unpacked, words


def scaled(
    shape: tuple[int, ...], numbers: tuple[int, ...], width: int, ring: int, floor: int
) -> ScaledProductGate:
    free, dealt = ScaledProductGate.material(shape, numbers, width, ring)
    return ScaledProductGate(
        name="p", inputs=("v", "y"), shape=shape, bits=ring, width=width, floor=floor,
        numbers=numbers, zero_point=-3, free_words=free, dealt_words=dealt,
        payloads=(((int(np.prod(shape)), ring),),),
    )  # fmt: skip


@pytest.mark.parametrize(("width", "ring"), [(1, 9), (3, 9), (3, 2), (2, 64)])
def test_every_number_under_every_mask(width: int, ring: int) -> None:
    size = 1 << width
    pairs = np.array(list(itertools.product(range(size), repeat=2)), np.uint64)
    y, n = np.repeat(pairs, 5, 0).T[:, :, None]
    rng = np.random.default_rng(ring)
    gate = scaled((len(y), 4), (len(y), 1), width, ring, -2)
    v = rng.integers(-9, 9, gate.shape)
    opened = ((y ^ n) - n).view(np.int64)  # the harness adds the mask
    got, _, _ = run_gate(gate, [v, opened], [words(rng, *v.shape), n], seed=width)
    want = (v + 3) * (y.astype(np.int64) - 2)
    wrapped = np.uint64(64 - ring)
    assert (got == (want.view(np.uint64) << wrapped).view(np.int64) >> np.int64(wrapped)).all()


def test_what_is_opened_is_uniform() -> None:
    gate = scaled((20000, 1), (20000, 1), 5, 12, 7)
    rng = np.random.default_rng(2)
    n = words(rng, 20000, 1) & np.uint64(31)
    opened = ((np.uint64(9) ^ n) - n).view(np.int64)
    masks = [words(rng, 20000, 1), n]
    _, _, ((one, two),) = run_gate(gate, [np.full((20000, 1), 5), opened], masks, seed=4)
    shares = [unpacked(data, 20000, 12) for data in (one, two)]
    for values in (*shares, (shares[0] + shares[1]) % np.uint64(1 << 12)):
        assert chi_square(values, 12) < 6


def quotient(tables: int = 2, *, softmax: bool = False, read_twice: bool = False) -> Graph:
    """(e · v) times a sum of tables of Σ e, as a softmax has it; e of x less a maximum of steps
    with ``softmax``."""
    build, e = graphs.Builder((3, 4)), "e"
    made: list[ops.Node] = []
    if softmax:
        build.requantize("low", "x", table=(0, 1, 2, 3), shift=6, offset=128, zero_point=0)
        made = [
            ops.ReduceMax(name="m", inputs=("low",)),
            ops.Add(name="d", inputs=("x", "m"), factors=(1, -64), bound=400, scale=1.0),
        ]
    made.append(
        ops.Requantize(
            name=e, inputs=("d" if softmax else "x",), multiplier=(1,), axis=-1,
            offset=320 if softmax else 128, shift=1 if softmax else 0, table=tuple(range(256)),
            scale=1.0, zero_point=0,
        )
    )  # fmt: skip
    nodes = [
        *build.nodes, *made,
        ops.ReduceSum(name="s", inputs=(e,), bound=1020, scale=1.0),
        ops.MatMul(
            name="pv", inputs=(e, "x"), transpose_b=True, bound=255 * 128 * 4, scale=1.0
        ),
    ]  # fmt: skip
    rng = np.random.default_rng(tables)
    names = []
    for place in range(tables):
        table = tuple(rng.integers(-300, 300, 200).tolist())
        nodes.append(
            ops.Requantize(
                name=f"t{place}", inputs=("s",), multiplier=(3,), axis=-1, offset=-40,
                shift=place + 2, table=table, scale=1.0, zero_point=5,
            )
        )  # fmt: skip
        names.append(f"t{place}")
    while len(names) > 1:
        name = f"a{len(names)}"
        inputs = (names.pop(), names.pop())
        bound = 400 * (tables + 1 - len(names))
        nodes.append(ops.Add(name=name, inputs=inputs, factors=(1, 1), bound=bound, scale=1.0))
        names.append(name)
    nodes.append(ops.Mul(name="y", inputs=("pv", names[0]), bound=255 * 128 * 4 * 4000, scale=1.0))
    nodes.append(
        ops.Requantize(
            name="q", inputs=("y",), multiplier=(1,), axis=-1, offset=1 << 27, shift=20,
            table=tuple(range(-128, 128)), scale=1.0, zero_point=0,
        )
    )  # fmt: skip
    last = "q"
    if read_twice:
        nodes.append(ops.Add(name="more", inputs=("q", "t0"), factors=(1, 1), bound=999, scale=1.0))
        last = "more"
    nodes.append(ops.Output(name="out", inputs=(last,), scale=1.0))
    return Graph(nodes=tuple(nodes), parameters=dict(build.parameters))


@pytest.mark.parametrize("tables", [1, 2, 3])
def test_a_quotient_is_the_reference(tables: int) -> None:
    graph = quotient(tables)
    pair = Pair(graph, "latency")
    gates = {gate.name: gate for gate in pair.plan.gates}
    assert isinstance(gates["y"], ScaledProductGate)
    assert set(gates) & {"t0", "t1", "t2"} == ({"t0"} if tables == 1 else set())
    before = plan(graph.public(), "latency", version=4)
    assert pair.plan.rounds < before.rounds
    q = np.random.default_rng(3).integers(-128, 128, (40, 3, 4)).astype(np.int8)
    q[0], q[1] = -128, 127
    got, _, rounds = pair.infer(q)
    assert (got == run_int(graph, q)).all()
    assert len(rounds) == pair.plan.rounds
    assert sum(len(one) for one, _ in rounds) == pair.plan.cost(40).online_bytes_per_direction
    made = MpcPlan.from_json(pair.plan.to_json(), graph.public())
    assert made.to_json() == pair.plan.to_json()


def openings(plan: MpcPlan, rounds: list[tuple[bytes, bytes]], batch: int) -> list[Any]:
    """What both parties saw of every gate in every round: uint64[batch, elements] each."""
    places, made = [0] * len(rounds), []
    for gate in plan.gates:
        for index, ((count, bits),) in enumerate(gate.payloads):
            number = plan._starts[gate.name] + index
            size = (batch * count * bits + 7) // 8
            part = slice(places[number], places[number] + size)
            places[number] = part.stop
            one, two = (unpacked(data[part], batch * count, bits) for data in rounds[number])
            last = index + 1 == len(gate.payloads) and not gate.xored
            summed = last or (isinstance(gate, CountingGate) and not index)
            whole = (one + two) & np.uint64(2**bits - 1) if summed else one ^ two
            made.append(whole.reshape(batch, count))
    assert places == [len(one) for one, _ in rounds]
    return made


def test_openings_are_independent_of_each_other() -> None:
    """Of one input: any two openings of a softmax, from the scores' levels to the division, differ
    in their lowest bits as often as not, place by place. A mask that is used twice does not."""
    graph, batch = quotient(softmax=True), 800
    pair = Pair(graph, "latency")
    gates = {gate.name: gate for gate in pair.plan.gates}
    counting = gates["m"]
    assert isinstance(counting, CountingGate)
    assert counting.bare
    assert isinstance(gates["y"], ScaledProductGate)
    q = np.random.default_rng(8).integers(-128, 128, graph.input.shape).astype(np.int8)
    got, _, rounds = pair.infer(np.stack([q] * batch))
    assert (got == run_int(graph, q[None])).all()
    seen = openings(pair.plan, rounds, batch)
    neighbours = [(one[:, 1:], one[:, :-1]) for one in seen if one.shape[1] > 1]
    for one, two in [*itertools.combinations(seen, 2), *neighbours]:
        columns = min(one.shape[1], two.shape[1])
        differs = (one[:, :columns] ^ two[:, :columns]) & np.uint64(1)
        assert abs(differs.mean(0) - 0.5).max() < 6 * 0.5 / batch**0.5


def test_what_is_no_scaling() -> None:
    """A table that something else reads, and factors of other things."""
    assert scaling_of(quotient(2), "y") is not None
    assert scaling_of(quotient(2, read_twice=True), "y") is None
    assert scaling_of(quotient(2), "q") is None
    graph = sum_cases.normalized_rows()
    products = [node.name for node in graph.nodes if isinstance(node, ops.Mul)]
    assert products
    assert [scaling_of(graph, name) for name in products] == [None] * len(products)
