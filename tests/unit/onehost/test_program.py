"""Whole graphs between two ends in one process, against the reference."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, get_args

import numpy as np
import pytest

from secure_quant import reference
from secure_quant.errors import (
    DtypeMismatch,
    MalformedMessage,
    MalformedModel,
    MaterialReused,
    OpNotSupported,
    ShapeMismatch,
)
from secure_quant.ir import ops
from secure_quant.mpc.protocol.cost import packed_bytes
from secure_quant.mpc.protocol.gates.product import ProductGate
from secure_quant.mpc.protocol.ring import reduce
from secure_quant.onehost import ahead as ahead_module
from secure_quant.onehost import groups as groups_module
from secure_quant.onehost import sources
from secure_quant.onehost.cot import MOST_BLOCKS, STEP_BYTES, Pairing
from secure_quant.onehost.ferret import LPN, Lpn
from secure_quant.onehost.groups import summed
from secure_quant.onehost.plan import OneHostPlan, plan
from secure_quant.onehost.product import JointProduct
from secure_quant.onehost.products import unpacked
from secure_quant.onehost.softspoken import extension_bytes
from tests.unit.mpc.protocol import graphs
from tests.unit.mpc.protocol.graphs import Builder
from tests.unit.onehost.drive import SMALL, drive, pair
from tests.unit.onehost.ends import Ends, inputs
from tests.unit.onehost.gates import in_one_piece
from tests.unit.onehost.ledger import Ledger

GRAPHS = tuple(graphs.ALL)


@pytest.fixture(scope="module")
def pairs() -> list[Pairing]:
    return pair()


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("batch", [1, 3])
def test_graphs_are_exact(name: str, batch: int, pairs: list[Pairing]) -> None:
    graph = graphs.ALL[name]()
    q = inputs(graph, batch)
    got = Ends(graph, pairs).infer(q)
    assert np.array_equal(got, reference.run_int(graph, q))


def test_a_model_with_every_kind_of_reader(pairs: list[Pairing]) -> None:
    """Several inferences over one pairing, each with an item of its own."""
    ends = Ends(graphs.activation_out(), pairs)
    for seed in range(4):
        q = inputs(ends.graph, 2, seed)
        assert np.array_equal(ends.infer(q), reference.run_int(ends.graph, q))


def test_traffic_takes_ferret(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same gates and integers; bytes of many items by the formula, what begins it included."""
    monkeypatch.setattr(sources, "LPN", SMALL)
    graph = graphs.mlp()
    plain, ends = plan(graph.public(), 1000), Ends(graph, pair(lpn=SMALL), 1000, "traffic")
    made = OneHostPlan.from_json(ends.plan.to_json(), graph.public())
    assert (made.objective, made.lpn, plain.lpn) == ("traffic", SMALL, None)
    assert "objective" not in json.loads(plain.to_json())
    cost, other = ends.plan.cost(1), plain.cost(1)
    assert dataclasses.replace(cost, objective="latency") == other

    sent, items = [0, 0], 5
    for seed in range(items):
        extension = ends.pairs[1].fill_bytes(ends.plan.cost(1).taken)
        sent = [old + new for old, new in zip(sent, extension, strict=True)]
        q = inputs(graph, 1, seed)
        assert np.array_equal(ends.infer(q), reference.run_int(graph, q))
    begin = extension_bytes(768, 6)  # SMALL's reserve in whole blocks
    batches = [-(-items * count // SMALL.made) for count in cost.cots]
    trees = [count * SMALL.batch_bytes for count in batches[::-1]]  # who does not choose sends
    assert sent == [items * STEP_BYTES + begin + each for each in trees]
    ahead = cost.offline_bytes_up - cost.material_up, cost.offline_bytes_down - cost.material_down
    for whole, mean in zip(sent, ahead, strict=True):
        assert 0 <= whole - begin - items * mean + items < SMALL.batch_bytes + items


def test_what_a_pairing_holds_between_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than a batch in each direction, and what the next one takes, however items divide it."""
    lpn = Lpn(secret=256, trees=340, depth=5)  # two items of a batch, and some left
    monkeypatch.setattr(sources, "LPN", lpn)
    ends = Ends(graphs.mlp(), pair(lpn=lpn), 1000, "traffic")
    most = (2 * 16 + 8) * lpn.made + 2 * 16 * lpn.reserve
    for _ in range(3):
        ends.prepare(1)
        for p in ends.pairs:
            made = p._source._chooser, p._source._sender
            parts = [part for stock in (*p._stock, p._bits) for part in stock._parts]
            arrays = {id(part.base): part.base for part in (*parts, *(end._base for end in made))}
            assert sum(each.nbytes for each in arrays.values()) <= most == lpn.held_bytes
    assert LPN.held_bytes < 26e6  # what is documented


def test_a_plan_with_another_objective_is_refused() -> None:
    public = graphs.mlp().public()
    document = json.loads(plan(public, 1000).to_json())
    for objective in ("balanced", 3, ["traffic"], None):
        changed = json.dumps(document | {"objective": objective}).encode()
        with pytest.raises(MalformedModel, match="objective"):
            OneHostPlan.from_json(changed, public)


def test_exchanges_ahead_of_time_do_not_grow_with_depth(pairs: list[Pairing]) -> None:
    counts = []
    for make in (graphs.mlp, graphs.lenet):
        ends = Ends(make(), pairs)
        _, _, sent = drive(ends.client.prepare(1), ends.server.prepare(1))
        counts.append(len(sent))
    assert max(counts) <= 13


def test_an_item_serves_once_and_both_ends_name_it(pairs: list[Pairing]) -> None:
    ends = Ends(graphs.single(), pairs)
    q = inputs(ends.graph, 1)
    first, second = ends.prepare(1), ends.prepare(1)
    with pytest.raises(MalformedMessage, match="item of material"):
        drive(ends.client.run(first[0], q), ends.server.run(second[1]))
    for used in (ends.client.run(first[0], q), ends.server.run(second[1])):
        with pytest.raises(MaterialReused):
            next(used)


def test_inputs_are_checked(pairs: list[Pairing]) -> None:
    ends = Ends(graphs.single(), pairs)
    item, _, _ = ends.prepare(1)
    with pytest.raises(DtypeMismatch):
        next(ends.client.run(item, np.zeros((1, 32), np.int64)))
    with pytest.raises(ShapeMismatch):
        next(ends.client.run(item, np.zeros((2, 32), np.int8)))
    with pytest.raises(MalformedMessage):
        next(ends.client.prepare(0))


def test_rows_too_long_for_the_pads_are_refused() -> None:
    node = ops.MatMul(name="m", inputs=("a", "b"), transpose_b=False, bound=1, scale=1.0)
    common = {"name": "m", "inputs": ("a", "b"), "bits": 20, "node": node, "opened": True}
    for columns in (819, 820):
        gate = ProductGate(**common, shape=(2, columns), zero_points=(0, 0))
        if columns * 20 <= 128 * MOST_BLOCKS:
            JointProduct(gate, (2, 3), (3, columns))
        else:
            with pytest.raises(OpNotSupported, match="rows of 820"):
                JointProduct(gate, (2, 3), (3, columns))


def test_products_by_formula() -> None:
    """Per MatMul [m, j]·[j, n] mod 2^k: 2·m·j·k COTs, m·j·(k + n·k(k+1)/2) bits each way."""
    made = plan(graphs.attention().public())
    half = made.halves["s"]
    assert isinstance(half, JointProduct)
    k, (heads, m, n), j = half.gate.bits, half.gate.shape, half.left[-1]
    assert half.cots(1) == (heads * m * j * k,) * 2
    bits = heads * m * j * (k + n * k * (k + 1) // 2)
    assert half.sent_bytes(1) == (bits // 8,) * 2


@pytest.mark.parametrize(
    ("left", "right", "numbers", "columns"),
    [
        ((3, 4), (3, 4), 12, 1), ((3, 4), (3, 1), 3, 4), ((3, 1), (3, 4), 3, 4),
        ((2, 3, 5), (2, 1, 1), 2, 15), ((2, 3, 5), (1, 1, 1), 1, 30), ((2, 3, 5), (1, 3, 1), 30, 1),
        ((3, 600), (3, 1), 3, 600), ((2, 900), (2, 1), 1800, 1),
    ],
)  # fmt: skip
def test_a_factor_that_is_repeated_is_chosen_by(
    left: Any, right: Any, numbers: int, columns: int
) -> None:
    """Against numpy, and 2·k COTs for each of its numbers; not where a COT's pads are too short."""
    bits, rng = 20, np.random.default_rng(columns)
    node = ops.Mul(name="p", inputs=("a", "b"), bound=2**18, scale=1.0)
    shape = np.broadcast_shapes(left, right)
    gate = ProductGate(name="p", inputs=("a", "b"), shape=shape, bits=bits, node=node,
                       zero_points=(0, 0), opened=True)  # fmt: skip
    half, ends = JointProduct(gate, left, right), pair()
    assert half.cots(2) == (2 * numbers * bits,) * 2
    sides = [[rng.integers(0, 2**bits, (2, *s), dtype=np.uint64) for s in (left, right, shape)]
             for _ in ends]  # fmt: skip
    drive(*(end.fill(*half.cots(2)) for end in ends))
    one, two, sent = drive(
        *(in_one_piece(half, end, (x, y), z) for end, (x, y, z) in zip(ends, sides, strict=True))
    )
    assert tuple(sum(side) for side in zip(*sent, strict=True)) == half.sent_bytes(2)
    x, y, z = (a + b for a, b in zip(*sides, strict=True))
    assert not ((one[2] + two[2] - x * y - z) % np.uint64(2**bits)).any()


def test_only_the_answer_itself_goes_unmasked() -> None:
    def of(name: str) -> OneHostPlan:
        return plan(graphs.ALL[name]().public())

    assert of("lenet").bare == {"f3"}
    assert of("activation_out").bare == set()
    assert of("average").bare == set()


def test_gates_in_groups_make_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes many COTs is made one after the other, and large gates in pieces, which end within
    samples; bytes and integers stay."""
    ends, exchanges = Ends(graphs.lenet(), pair()), []
    names, whole = list(ends.plan.halves), ends.plan.cost(2)
    for most in (groups_module.GROUP, sum(ends.plan.cots(2)) // 2, 2**15):
        monkeypatch.setattr(groups_module, "GROUP", most)
        ends = Ends(graphs.lenet(), ends.pairs)  # a plan keeps what it counted
        groups = ends.plan.groups(2)
        pieces = [piece for group in groups for piece in group]
        assert list(dict.fromkeys(piece.name for piece in pieces)) == names
        for name, half in ends.plan.halves.items():
            mine = [piece for piece in pieces if piece.name == name]
            starts = [0, *(piece.some.stop for piece in mine)]
            assert [piece.some.start for piece in mine] == starts[:-1]
            assert starts[-1] == half.places(2)
            assert [piece.last for piece in mine] == [False] * (len(mine) - 1) + [True]
            assert summed(piece.cots for piece in mine) == half.cots(2)
        assert all(sum(taken) <= most for taken in ends.plan.cost(2).taken)
        cost = ends.plan.cost(2)
        assert (cost.material_up, cost.material_down) == (whole.material_up, whole.material_down)
        q = inputs(ends.graph, 2)
        assert np.array_equal(ends.infer(q), reference.run_int(ends.graph, q))
        _, _, sent = drive(ends.client.prepare(2), ends.server.prepare(2))
        exchanges.append((len(groups), len(sent), len(pieces)))
    counts, flights, made = zip(*exchanges, strict=True)
    assert counts[0] == 1 < counts[1] < len(names) < counts[2]
    assert flights[0] < flights[1] < flights[2]
    assert made[0] == len(names) < made[2]


def test_a_gate_in_pieces_is_laid_out_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind of gate: integers and bytes are the plan's with at most 64 elements at once."""
    monkeypatch.setattr(groups_module, "GROUP", 1)
    pairs, kinds = pair(), set()
    for name in ("activation_out", "attention"):
        ends = Ends(graphs.ALL[name](), pairs)
        pieces = [piece for group in ends.plan.groups(3) for piece in group]
        assert all(piece.some.stop - piece.some.start <= groups_module.GRAIN for piece in pieces)
        assert len(pieces) > len(ends.plan.halves)
        kinds |= set(map(type, ends.plan.halves.values()))
        q = inputs(ends.graph, 3)
        assert np.array_equal(ends.infer(q), reference.run_int(ends.graph, q)), name
    assert kinds == set(get_args(groups_module.Half))


def test_layers_a_few_at_a_time_make_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """One in each exchange, beside gates of several groups."""
    monkeypatch.setattr(ahead_module, "ABREAST", 1)
    ends = Ends(graphs.lenet(), pair())
    monkeypatch.setattr(groups_module, "GROUP", sum(ends.plan.cots(2)) // 2)
    up = [ends.plan.masked.call(name, 2).cost.bytes_up for name in ends.host.layers]
    _, _, sent = drive(ends.client.prepare(2), ends.server.prepare(2))
    assert len(up) == 5
    assert all(size <= mine for size, (mine, _) in zip(up, sent, strict=False))
    q = inputs(ends.graph, 2)
    assert np.array_equal(ends.infer(q), reference.run_int(ends.graph, q))


@pytest.mark.parametrize("name", ["mlp", "activation_out", "attention"])
def test_nothing_secret_is_used_twice(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two items and their calls over one pairing: no key, pad block, node or leaf comes twice."""
    graph = graphs.ALL[name]()
    ends, ledger = Ends(graph, pair()), Ledger(monkeypatch)
    for seed in range(2):
        q = inputs(graph, 1, seed)
        runs = [ledger.follow(0, ends.client.prepare(1)), ledger.follow(1, ends.server.prepare(1))]
        one, two, _ = drive(*runs)
        runs = [ledger.follow(0, ends.client.run(one, q)), ledger.follow(1, ends.server.run(two))]
        got, _, _ = drive(*runs)
        assert np.array_equal(got, reference.run_int(graph, q))
    asked = ledger.check()
    assert asked["keys"] >= 2 * sum(ends.plan.cots(1))
    assert asked["pads"] > asked["keys"]
    hots = [hot for half in ends.plan.halves.values() for hot in getattr(half, "hots", ())]
    for purpose in ("digit", "main", "saturation"):
        trees = any(width > 8 for kind, _, width in hots if kind == purpose)
        assert (asked[f"leaves {purpose}"] > 0) == trees


def heard(ends: Ends, value: int, planted: str = "", n: int = 250) -> dict[str, Any]:
    """What each end receives online for a constant input, n samples, as bits; the item's number
    aside. planted: the end one of whose masks is left out."""
    q = np.full((n, *ends.graph.input.shape), value, np.int8)
    items = dict(zip(("client", "server"), ends.prepare(n)[:2], strict=True))
    if planted == "client":  # its mask of the Input, which is all of it
        items[planted].masks["x"][:] = 0
    elif planted:  # z of the first layer
        masks, made = items["server"].masks, items["server"].made
        made["f1"] = reduce(made["f1"] - masks["f1"], ends.plan.by_name["f1"].bits)
    runs = (ends.client.run(items["client"], q), ends.server.run(items["server"]))
    messages: list[Any] = [None, None]
    seen: dict[str, list[Any]] = {"server": [], "client": []}
    while True:
        try:
            sent = [
                next(run) if m is None else run.send(m)
                for run, m in zip(runs, messages, strict=True)
            ]
        except StopIteration:
            made = {end: np.unpackbits(np.concatenate(parts)[8:]) for end, parts in seen.items()}
            return made | without_s(ends, seen["client"][1], items["client"])
        messages = [sent[1].sent, sent[0].sent]
        for end, message in zip(("client", "server"), messages, strict=True):
            seen[end].append(np.frombuffer(message, np.uint8))


def without_s(ends: Ends, message: Any, item: Any) -> dict[str, Any]:
    """Bits of D - s of the first layer, which the client may compute: y + z."""
    gate = ends.plan.by_name.get("f1")
    if gate is None:
        return {}
    s = item.masks["f1"].reshape(-1)
    opened = unpacked(message[: packed_bytes(s.size, gate.bits)].tobytes(), s.size, gate.bits)
    return {"layer": np.unpackbits((opened[:, 0] - s).astype(np.uint16).view(np.uint8))}


def unevenness(bits: Any) -> float:
    """Largest deviation of the ones at any place of a byte, in standard deviations."""
    places = bits[: len(bits) // 8 * 8].reshape(-1, 8)
    counts = np.abs(places.sum(axis=0, dtype=np.int64) - len(places) / 2)
    return float(counts.max() / (np.sqrt(len(places)) / 2))


def test_views_are_even_whatever_the_input(pairs: list[Pairing]) -> None:
    """All that the server receives online, and the client up to its answer, is coins, of two inputs
    and under two sets of weights; a mask left out shows."""
    b = Builder((64,), seed=9)
    other = b.graph(
        b.linear("f2", b.requantize("r", b.linear("f1", "x", 64, 128), shift=9), 128, 10)
    )
    for value, graph in ((-128, other), (127, graphs.mlp())):
        ends = Ends(graph, pairs)
        seen = heard(ends, value)
        assert unevenness(seen["server"]) < 6.5
        assert unevenness(seen["client"]) < 6.5
        assert unevenness(seen["layer"]) < 6.5
    assert unevenness(heard(ends, 127, planted="client", n=40)["server"]) > 10
    assert unevenness(heard(ends, 127, planted="server")["layer"]) > 10
    ends = Ends(graphs.identity(), pairs)
    assert unevenness(heard(ends, 127)["server"]) < 6.5


def test_the_host_alone_is_told_what_linear_layers_alone_read() -> None:
    """The Input and activations before layers, straight or through local maps, and nothing else:
    what a maximum, a sum that is looked up, or the Output reads, both ends open."""
    of = {name: plan(graphs.ALL[name]().public()).host_only for name in ("lenet", "identity")}
    assert of == {"lenet": {"x", "p1", "p2", "flat", "r3", "r4"}, "identity": frozenset()}
    made = plan(graphs.activation_out().public())
    assert "x" in made.host_only
    assert not made.host_only & {gate.name for gate in made.answers}


def test_what_goes_to_the_host_alone_saves_the_way_back(pairs: list[Pairing]) -> None:
    """By the plan and as sent: a Requantize before a layer brings its client no last opening."""
    ends = Ends(graphs.mlp(), pairs)
    whole = {gate.name: sum(ends.plan.rounds(gate)) for gate in ends.plan.gates}
    for name, ((up, down), _) in ends.plan.layers().items():
        if name in ends.plan.halves:
            gate = ends.plan.by_name[name]
            last = ends.plan.rounds(gate)[-1] if name in ends.plan.host_only else 0
            assert (up, down) == (whole[name], whole[name] - last)
    q = inputs(ends.graph, 1)
    assert np.array_equal(ends.infer(q), reference.run_int(ends.graph, q))
