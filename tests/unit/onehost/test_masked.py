"""Linear layers on masks under homomorphic encryption: exact, sized by formula, and hiding W."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import prod
from typing import Any

import numpy as np
import pytest

from secure_quant.errors import MalformedMessage, OpNotSupported, ShapeMismatch, ValueOutOfRange
from secure_quant.he.evaluate import Evaluator
from secure_quant.he.noise import margin, weight_noise
from secure_quant.he.plan import HePlan, Layout, Step
from secure_quant.he.search import layer_of, search
from secure_quant.ir import Graph, ops
from secure_quant.mpc.protocol.gates.linear import LinearGate
from secure_quant.mpc.protocol.ring import centred, reduce, to_ring
from secure_quant.onehost import masked
from secure_quant.onehost.linear import HostLinear, receive, serve_mask, words
from secure_quant.onehost.masked import (
    BUDGET,
    RINGS,
    TIER,
    WIDEST,
    MaskedPlan,
    residues,
    rounded,
)
from secure_quant_client.he.ckks import _public_key
from secure_quant_client.onehost import masks
from secure_quant_client.onehost.masks import MaskKeys
from tests.unit.mpc.protocol.graphs import Builder, lenet
from tests.unit.onehost.drive import drive
from tests.unit.onehost.drive import words as drawn

U64 = np.uint64


ALL = (*RINGS, WIDEST)


def of_bits(ring: Any) -> str:
    return str(prod(ring.primes).bit_length())


@pytest.mark.parametrize("ring", ALL, ids=of_bits)
@pytest.mark.parametrize("bits", [1, 8, 21, 24, 31])
def test_masks_are_rounded_at_the_whole_modulus(ring: Any, bits: int) -> None:
    """Against fractions: the nearest integer to Q·r/2^k, by its residues."""
    whole, rng = prod(ring.primes), np.random.default_rng(bits)
    r = np.concatenate([reduce(drawn(rng, 200), bits), [0, 2**bits - 1, 2 ** (bits - 1)]])
    r = r.astype(U64)
    for value, row in zip(r.tolist(), residues(r, bits, ring).tolist(), strict=True):
        m = round(Fraction(whole * value, 2**bits))  # Q is odd: there is no tie but at 0
        assert row == [m % prime for prime in ring.primes] or 2 * value * whole % 2**bits == 0
        assert abs(Fraction(whole * value, 2**bits) - m) <= Fraction(1, 2)


@pytest.mark.parametrize("prime", [ring.prime for ring in ALL])
@pytest.mark.parametrize("bits", [1, 8, 21, 31])
def test_answers_are_rounded_to_the_ring(prime: int, bits: int) -> None:
    rng = np.random.default_rng(bits)
    raw = rng.integers(0, prime, 300, dtype=U64)
    raw[:3] = [0, prime - 1, prime // 2]
    for value, got in zip(raw.tolist(), rounded(raw, bits, prime).tolist(), strict=True):
        assert got == (2 * value * 2**bits + prime) // (2 * prime) % 2**bits


def layers() -> Graph:
    """Rows, a strided, padded, dilated convolution in groups, a plain one, and a vector."""
    b = Builder((2, 6, 6), zero_point=3)
    c = b.conv("c", "x", 2, 4, (3, 3), (2, 1), (1, 2), (1, 2), groups=2)
    r = b.requantize("r", c, multiplier=(3, 255, 16, 7), shift=13)
    d = b.requantize("s", b.conv("d", r, 4, 3, (2, 2), padding=(1, 1)), shift=8)
    rows = b.linear("rows", d, 7, 5)
    flat = b.add(ops.Reshape(name="flat", inputs=(b.requantize("t", rows, axis=-1),), shape=(60,)))
    return b.graph(b.linear("vector", flat, 60, 9))


def linear_nodes(graph: Graph) -> list[Any]:
    return [node for node in graph.nodes if isinstance(node, ops.Linear | ops.Conv2d)]


def gate_of(graph: Graph, node: Any, bits: int) -> LinearGate:
    return LinearGate(
        name=node.name, inputs=node.inputs, shape=graph.values[node.name].shape, bits=bits,
        node=node, zero_point=graph.values[node.inputs[0]].zero_point, opened=True,
    )  # fmt: skip


def offline(plan: MaskedPlan, evaluator: Any, name: str, r: Any, seed: int = 0) -> Any:
    """(s, u, bytes sent)."""
    fresh = drawn(np.random.default_rng(seed), words(plan, name, len(r)))
    return drive(MaskKeys(plan).share(name, r), serve_mask(plan, evaluator, name, len(r), fresh))


@pytest.mark.parametrize(
    ("batch", "last", "calls"), [(1, False, 10), (1, True, 10), (3, False, 10), (3, True, 2**44)]
)
def test_layers_are_exact(batch: int, last: bool, calls: int) -> None:
    """Both halves, against integers: D_y less both shares is W·x̂ + b."""
    graph, rng = layers(), np.random.default_rng(batch)
    nodes = linear_nodes(graph)
    bits = {node.name: 20 + i for i, node in enumerate(nodes)}
    plan = masked.plan(graph, bits, calls)
    assert (WIDEST in {step.layout(1).ring for step in plan.he.steps}) == (calls > 10)
    evaluator = Evaluator(graph, plan.he, skip_zeros=False)
    for node in nodes:
        k, source = bits[node.name], graph.values[node.inputs[0]]
        gate = gate_of(graph, node, k)
        weight, bias = graph.parameters[f"{node.name}.weight"], graph.bias(node)
        host = HostLinear.of(gate, weight, bias)
        r = [reduce(drawn(rng, batch, *source.shape), k) for _ in range(2)]
        s, u, sent = offline(plan, evaluator, node.name, r[0])
        cost = plan.he.steps[plan.step(node.name)].call(batch).cost
        assert sent == [(cost.bytes_up, 0), (0, cost.bytes_down)]
        z = None if last else reduce(drawn(rng, batch, *gate.shape), k)
        x = rng.integers(-128, 128, (batch, *source.shape))
        masked_x = reduce(to_ring(x, 64) + r[0] + r[1], k)
        got, mine, sent = drive(receive(gate, batch), host.send(host.state(r[1], u, z), masked_x))
        assert (got == mine).all()
        assert sent == [(0, (got.size * k + 7) // 8)]
        y = centred(reduce(got - s - (U64(0) if z is None else z), k), k)
        assert (y == plain(node, x - source.zero_point, weight, bias)).all(), node.name


def plain(node: Any, x: Any, weight: Any, bias: Any) -> Any:
    """Torch's own convolution, in float64, which holds these integers."""
    torch = pytest.importorskip("torch")
    x, w, b = (torch.tensor(np.asarray(v), dtype=torch.float64) for v in (x, weight, bias))
    if isinstance(node, ops.Linear):
        return torch.nn.functional.linear(x, w, b).numpy().astype(np.int64)
    made = torch.nn.functional.conv2d(
        x, w, b, node.stride, node.padding, node.dilation, node.groups
    )
    return made.numpy().astype(np.int64)


@pytest.mark.parametrize("calls", [1, 1000, 10**6, 2**40])
def test_lenet_and_its_budget(calls: int) -> None:
    """Five layers exact in every ring that the budget leads to, and errors below half a step."""
    graph = lenet()
    bits = {node.name: 22 for node in linear_nodes(graph)}
    plan = masked.plan(graph, bits, calls)
    assert plan.calls >= calls
    assert plan.distance() * calls <= BUDGET
    evaluator, rng = Evaluator(graph, plan.he, skip_zeros=False), np.random.default_rng(calls)
    for node in linear_nodes(graph):
        r = reduce(drawn(rng, 1, *graph.values[node.inputs[0]].shape), 22)
        keys = MaskKeys(plan)
        fresh = drawn(rng, words(plan, node.name, 1))
        run = serve_mask(plan, evaluator, node.name, 1, fresh)
        next(run)
        response = run.send(keys.request(node.name, r)).sent
        step = plan.he.steps[plan.step(node.name)]
        call = step.call(1)
        with pytest.raises(StopIteration) as end:
            run.send(b"")
        host = HostLinear.of(
            gate_of(graph, node, 22), graph.parameters[f"{node.name}.weight"], graph.bias(node)
        )
        exact = reduce(host.gate.apply(host.weight, r) - end.value.value, 22)
        assert (keys.answer(node.name, 1, response) == exact).all()
        errors = errors_of(keys._raw(call, response), call, exact, 22)
        layer = layer_of(step.geometry, step.layout(1).tile)
        room, hiding = margin(layer, call.ring, TIER, call.scaling)
        assert room > weight_noise(layer, 0) / call.ring.dropped
        assert hiding > 1.01
        assert np.abs(errors).max() < call.scaling.unit / 2 - room


def errors_of(raw: Any, call: Any, s: Any, bits: int) -> Any:
    """Errors of decrypted answers in their own unit, float64: raw - q·s/2^k, mod q."""
    own = call.packing.geometry.restore(raw)
    wrapped = own * 2**bits - np.int64(call.ring.prime) * centred(s, bits)  # mod 2^64: small
    made = wrapped.astype(np.float64) / 2**bits
    wide = float(call.ring.prime)
    return made - np.rint(made / wide) * wide


def test_distance_is_that_of_the_definition() -> None:
    graph = lenet()
    plan = masked.plan(graph, {node.name: 22 for node in linear_nodes(graph)}, 100)
    total = 0.0
    for step in plan.he.steps:
        layout = step.layout(1)
        hidden = weight_noise(layer_of(step.geometry, layout.tile), 0) * np.sqrt(1 + 1 / 126)
        outputs = prod(step.geometry.out_shape)
        total += outputs * hidden / (2 * layout.scaling.flood * layout.ring.dropped)
    assert plan.distance() == pytest.approx(total, rel=1e-9)


def test_what_no_ring_holds_is_refused() -> None:
    graph = lenet()
    bits = {node.name: 22 for node in linear_nodes(graph)}
    with pytest.raises(
        OpNotSupported, match=r"one client: got good for \d+ .*--samples-per-client"
    ):
        masked.plan(graph, bits, calls=2**60)
    with pytest.raises(OpNotSupported, match="samples of one client"):
        masked.narrow(graph, bits, calls=2**30)
    with pytest.raises(OpNotSupported):
        masked.plan(graph, bits | {"f1": 50})


def test_messages_are_checked() -> None:
    graph = layers()
    plan = masked.plan(graph, {node.name: 20 for node in linear_nodes(graph)})
    keys, evaluator = MaskKeys(plan), Evaluator(graph, plan.he)
    with pytest.raises(ValueOutOfRange):
        keys.request("vector", np.full((1, 60), 2**20, U64))
    with pytest.raises(ShapeMismatch):
        keys.request("vector", np.zeros((1, 61), U64))
    run = serve_mask(plan, evaluator, "vector", 1, drawn(np.random.default_rng(0), 4096)[:9])
    exchange = next(run)
    with pytest.raises(MalformedMessage):
        run.send(bytes(exchange.expected - 1))
    with pytest.raises(MalformedMessage):
        keys.answer("vector", 1, b"x")


def test_zero_weights_are_not_skipped() -> None:
    graph = layers()
    node = graph.by_name["vector"]
    parameters = dict(graph.parameters) | {"vector.weight": np.zeros((9, 60), np.int8)}
    sparse = Graph(graph.nodes, parameters)
    plan = masked.plan(sparse, {n.name: 20 for n in linear_nodes(sparse)})
    for skip, count in ((True, 0), (False, 1)):
        evaluator = Evaluator(sparse, plan.he, skip_zeros=skip)
        evaluator.prepare(plan.step(node.name), 1)
        (prepared,) = evaluator._weights.values()
        assert {len(row.inputs) for group in prepared.weights.rows for row in group} == {count}


def test_three_primes_only_where_two_do_not_do() -> None:
    """What two primes hold keeps its plan, to the byte; and the default asks two primes first."""
    graph = lenet()
    bits = {node.name: 22 for node in linear_nodes(graph)}
    for calls in (1, 1000, 10**6):
        plans = [planned(graph, bits, calls).he for planned in (masked.plan, masked.narrow)]
        assert plans[0].to_json() == plans[1].to_json()
    wide = masked.plan(graph, bits, calls=2**40)
    assert {step.layout(1).ring for step in wide.he.steps} == {WIDEST}
    assert all(step.distance(1) < 2**-80 for step in wide.he.steps)


def test_the_key_is_the_nearest_multiple_of_what_is_dropped() -> None:
    """Of two primes and of three, against integers; its error is what the noise bound counts."""
    graph, rng = lenet(), np.random.default_rng(3)
    bits = {node.name: 22 for node in linear_nodes(graph)}
    for calls in (10**6, 2**40):
        call = masked.plan(graph, bits, calls).call("f1", 1)
        ring, whole = call.ring, prod(call.ring.primes)
        drawn_whole = [int.from_bytes(rng.bytes(32), "little") % whole for _ in range(300)]
        drawn_whole[:4] = [0, whole - 1, ring.dropped // 2, ring.dropped // 2 + 1]
        p0 = np.array([[v % prime for v in drawn_whole] for prime in ring.primes], U64)
        for value, kept in zip(drawn_whole, _public_key(call, p0).tolist(), strict=True):
            nearest = (2 * value + ring.dropped) // (2 * ring.dropped) * ring.dropped
            assert abs(value - nearest) <= ring.dropped // 2
            assert kept == nearest % ring.prime


@pytest.mark.parametrize("ring", [RINGS[-1], WIDEST], ids=of_bits)
def test_errors_deviate_as_the_derivation_says(ring: Any) -> None:
    """With a flood of one step: the key's rounding and that of rescaling, times u and s; both of
    size 1 however many primes are divided away."""
    graph, plan = one_row(ring, flood=1)
    evaluator, rng = Evaluator(graph, plan.he, skip_zeros=False), np.random.default_rng(2)
    found = [seen_errors(plan, evaluator, rng, batch=64)[0].reshape(-1) for _ in range(6)]
    small = ring.degree * 2 / 3
    expected = np.sqrt(2 * small / 12 + 1 / 3 + 1 / 12)
    assert 0.9 < np.concatenate(found).std() / expected < 1.1


# ---- the attack on a message that is rounded at one prime


def one_row(ring: Any, flood: int) -> tuple[Graph, MaskedPlan]:
    """A row of four weights, in ``ring``, with nothing dropped and another flood."""
    b = Builder((16, 4), seed=5)
    graph = b.graph(b.linear("f", "x", 4, 1))
    geometry = replace(masked.plan(graph, {"f": 20}).he.steps[0].geometry)
    ring, tile, scaling = search("f", geometry, 256, TIER, "latency", (ring,))
    small = replace(scaling, flood=flood, drop_c1=0, drop_c0=0)
    step = Step("f", geometry, (Layout(1, ring, tile, small),))
    return graph, MaskedPlan(HePlan(graph.public(), "latency", TIER, (step,)), {"f": 20})


def seen_errors(plan: MaskedPlan, evaluator: Any, rng: Any, batch: int) -> tuple[Any, Any]:
    """(errors of the answer to a fresh mask under a fresh key, the mask)."""
    r = reduce(drawn(rng, batch, 16, 4), 20)
    keys = MaskKeys(plan)
    run = serve_mask(plan, evaluator, "f", batch, drawn(rng, words(plan, "f", batch)))
    next(run)
    response = run.send(keys.request("f", r)).sent
    s, call = keys.answer("f", batch, response), plan.call("f", batch)
    return errors_of(keys._raw(call, response), call, s, 20), r


def rounded_at_one_prime(r: Any, bits: int, ring: Any) -> Any:
    """P·round(q·r/2^k), P what is divided away: what a client must not send."""
    near = rounded_product(r, bits, ring.prime)
    made = [int(v) * ring.dropped % ring.prime for v in near.reshape(-1)]
    rest = [0] * (len(ring.primes) - 1)
    return np.array([[v, *rest] for v in made], U64).reshape(*r.shape, len(ring.primes))


def rounded_product(r: Any, bits: int, q: int) -> Any:
    made = [(2 * int(v) * q + 2**bits) // 2 ** (bits + 1) for v in r.reshape(-1)]
    return np.array(made, object).reshape(r.shape)


def errors_known(r: Any, bits: int, q: int) -> Any:
    """round(q·r/2^k) - q·r/2^k, which the client knows; float64."""
    near = rounded_product(r, bits, q)
    scaled = (near * 2**bits - r.astype(object) * q).astype(np.float64)
    return scaled / 2**bits


def attack(monkeypatch: pytest.MonkeyPatch, ring: Any, wrong: bool) -> tuple[Any, Any]:
    """(weights by least squares from what a client sees, the weights). 32,768 equations, a flood of
    one step only, so that what the flood would hide shows."""
    if wrong:
        monkeypatch.setattr(masks, "residues", rounded_at_one_prime)
    graph, plan = one_row(ring, flood=1)
    evaluator, rng = Evaluator(graph, plan.he, skip_zeros=False), np.random.default_rng(1)
    seen, known = [], []
    for _ in range(8):
        errors, r = seen_errors(plan, evaluator, rng, batch=256)
        seen.append(errors.reshape(-1))
        known.append(errors_known(r, 20, ring.prime).reshape(-1, 4))
    found = np.linalg.lstsq(np.concatenate(known), np.concatenate(seen), rcond=None)[0]
    return found, graph.parameters["f.weight"].reshape(-1).astype(np.float64)


@pytest.mark.parametrize("ring", [RINGS[0], WIDEST], ids=of_bits)
def test_the_attack_finds_the_weights_of_a_wrong_rounding(
    monkeypatch: pytest.MonkeyPatch, ring: Any
) -> None:
    found, weights = attack(monkeypatch, ring, wrong=True)
    assert np.abs(found - weights).max() < 5
    assert np.abs(weights).max() > 50


@pytest.mark.parametrize("ring", [RINGS[0], WIDEST], ids=of_bits)
def test_the_attack_fails_on_ours(monkeypatch: pytest.MonkeyPatch, ring: Any) -> None:
    found, weights = attack(monkeypatch, ring, wrong=False)
    assert np.abs(found).max() < 5  # of noise alone
    assert np.abs(found - weights).max() > 45
