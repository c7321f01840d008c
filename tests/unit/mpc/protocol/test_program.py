"""Whole graphs: both parties and the dealer against the reference; counts; views; misuse."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest

from secure_quant import reference
from secure_quant.errors import (
    DtypeMismatch,
    HashMismatch,
    MalformedMessage,
    MalformedModel,
    MaterialReused,
    ShapeMismatch,
    UnsupportedVersion,
)
from secure_quant.ir import artifact
from secure_quant.keystream import Keystream, words_under
from secure_quant.mpc.protocol.bundle import load_client, load_dealer, load_party
from secure_quant.mpc.protocol.material import Item
from secure_quant.mpc.protocol.plan import MpcPlan, Objective, plan
from tests.unit.mpc.protocol import graphs
from tests.unit.mpc.protocol.harness import Pair, chi_square, drive, unpacked


def inputs(graph: Any, batch: int, seed: int = 0) -> Any:
    shape = (batch, *graph.input.shape)
    return np.random.default_rng(seed).integers(-128, 128, shape).astype(np.int8)


@pytest.mark.parametrize("objective", ["latency", "balanced", "traffic"])
@pytest.mark.parametrize("name", graphs.ALL)
def test_equals_the_reference_at_the_planned_cost(name: str, objective: str) -> None:
    graph = graphs.ALL[name]()
    pair = Pair(graph, objective)
    for batch in (1, 3):
        q = inputs(graph, batch, batch)
        got, _, rounds = pair.infer(q, batch)
        assert (got == reference.run_int(graph, q)).all()
        cost = pair.plan.cost(batch)
        assert len(rounds) == cost.rounds
        assert sum(len(a) for a, _ in rounds) == cost.online_bytes_per_direction
        item = pair.dealer.deal()
        assert (len(item.seed0), len(item.seed1)) == (32, 32)
        assert cost.offline_bytes_party0 == 32 * batch
        assert cost.offline_bytes_party1 == (32 + len(item.corrections)) * batch


def test_the_figures_of_a_lenet() -> None:
    fast, even, lean = (plan(graphs.lenet(), each).cost() for each in get_args(Objective))
    assert even.rounds <= 22
    assert even.online_bytes_per_direction <= 76_000
    assert even.offline_bytes_party1 <= 900_000
    assert fast.rounds <= 18
    assert fast.online_bytes_per_direction <= 76_000
    assert lean.offline_bytes_party1 <= 400_000
    assert lean.rounds <= 30


def test_parallel_branches_share_rounds() -> None:
    made = plan(graphs.attention())
    alone = sum(len(gate.payloads) for gate in made.gates)
    assert made.rounds < alone
    by_name = {gate.name: gate for gate in made.gates}
    chain = ("x", "q", "qr", "s", "sr", "top", "e", "most", "e2", "nr", "p", "pr", "o")
    assert made.rounds == sum(len(by_name[name].payloads) for name in chain)


def test_bundles_say_no_more_than_their_role() -> None:
    graph = graphs.mlp()
    pair = Pair(graph)
    held = {role: artifact.read_tensors(data)[0] for role, data in pair.bundles.items()}
    public = {"public.tables", "public.multipliers"}
    assert set(held["client"]) == public
    assert set(held["dealer"]) == public | {"seeds"}
    layers = {f"{name}.{kind}" for name in ("f1", "f2") for kind in ("masked", "bias")}
    for role in ("party0", "party1"):
        assert set(held[role]) == public | {"seed"} | layers
    assert (held["party0"]["seed"] != held["party1"]["seed"]).any()
    for name in ("f1", "f2"):
        assert (held["party0"][f"{name}.masked"] == held["party1"][f"{name}.masked"]).all()
        total = held["party0"][f"{name}.bias"] + held["party1"][f"{name}.bias"]
        assert (total.view(np.int64) == graph.parameters[f"{name}.bias"]).all()
    public_graph, made = load_client(pair.bundles["client"])
    assert public_graph.hash == graph.hash == made.graph.hash == pair.dealer.model_hash
    assert public_graph.is_public


def test_bundles_of_another_role_or_plan_are_refused() -> None:
    pair = Pair(graphs.mlp())
    with pytest.raises(MalformedModel):
        load_party(pair.bundles["dealer"])
    with pytest.raises(MalformedModel):
        load_dealer(pair.bundles["party0"])
    text = pair.plan.to_json()
    with pytest.raises(HashMismatch):
        MpcPlan.from_json(text.replace(b'"rounds":', b'"rounds":1'), pair.plan.graph)
    with pytest.raises(MalformedModel):
        MpcPlan.from_json(b"[]", pair.plan.graph)
    with pytest.raises(UnsupportedVersion, match="split the model again"):
        MpcPlan.from_json(text.replace(b'"version":5', b'"version":1'), pair.plan.graph)
    tensors, metadata = artifact.read_tensors(pair.bundles["party0"])
    with pytest.raises(MalformedModel):
        load_party(artifact.write_tensors(tensors | {"more": tensors["seed"]}, metadata))
    short = {name: array for name, array in tensors.items() if name != "f1.bias"}
    with pytest.raises(MalformedModel):
        load_party(artifact.write_tensors(short, metadata))
    with pytest.raises(HashMismatch):
        load_party(artifact.write_tensors(tensors, metadata | {"hash": "0" * 64}))


def test_material_is_used_once() -> None:
    pair = Pair(graphs.single())
    item = pair.dealer.deal()
    mine, share = Item(0, item.seed0), np.zeros((1, 32), np.uint8)
    assert item.seed0.hex() not in repr(mine)
    next(pair.parties[0].run(share, [mine]))
    with pytest.raises(MaterialReused):
        pair.parties[0].run(share, [mine])
    ready = pair.parties[1].prepare([Item(1, item.seed1, item.corrections)])
    next(pair.parties[1].run(share, ready))
    with pytest.raises(MaterialReused):
        pair.parties[1].run(share, ready)


def test_material_of_the_wrong_party_or_length() -> None:
    pair = Pair(graphs.mlp())
    item = pair.dealer.deal()
    share = np.zeros((1, 64), np.uint8)
    with pytest.raises(MalformedMessage):
        pair.parties[1].run(share, [Item(0, item.seed0)])
    with pytest.raises(MalformedMessage):
        pair.parties[1].run(share, [Item(1, item.seed1, item.corrections[:-1])])
    with pytest.raises(MalformedMessage):
        Item(0, item.seed0[:-1])
    with pytest.raises(MalformedMessage):
        Item(0, item.seed0, item.corrections)


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b[:0]])
def test_payloads_of_another_length(change: Any) -> None:
    pair = Pair(graphs.mlp())
    item = pair.dealer.deal()
    run = pair.parties[0].run(np.zeros((1, 64), np.uint8), [Item(0, item.seed0)])
    sent = next(run)
    with pytest.raises(MalformedMessage):
        run.send(change(sent))


def test_shares_of_another_shape_or_dtype() -> None:
    pair = Pair(graphs.mlp())
    item = Item(0, pair.dealer.deal().seed0)
    with pytest.raises(ShapeMismatch):
        pair.parties[0].run(np.zeros((2, 64), np.uint8), [item])
    with pytest.raises(DtypeMismatch):
        pair.parties[0].run(np.zeros((1, 64), np.int8), [item])  # type: ignore[arg-type]
    item.take()  # neither consumed it


def test_corrections_may_start_at_any_address() -> None:
    pair = Pair(graphs.mlp())
    item, q = pair.dealer.deal(), inputs(pair.plan.graph, 1)
    odd = memoryview(b"\0" + item.corrections)[1:]
    runs = [
        pair.parties[0].run(q.view(np.uint8), [Item(0, item.seed0)]),
        pair.parties[1].run(np.zeros((1, 64), np.uint8), [Item(1, item.seed1, odd)]),
    ]
    one, two, _ = drive(*runs)
    assert ((one + two).view(np.int64) == reference.run_int(graphs.mlp(), q)).all()


@pytest.mark.parametrize("objective", ["latency", "traffic"])
def test_what_is_seen_is_uniform(objective: str) -> None:
    """One input 200 times: what each party sends and what both open, round by round.

    A smoke test: six standard deviations are never reached by chance, and a mask left out, used
    twice or too narrow gives many more.
    """
    pair = Pair(graphs.mlp(), objective)
    _, shares, rounds = pair.infer(np.zeros((200, 64), np.int8))
    gates = [(gate, parts) for gate in pair.plan.gates for parts in gate.payloads]
    assert len(gates) == len(rounds)  # a chain: one gate a round
    for (gate, ((count, bits),)), sent in zip(gates, rounds, strict=True):
        one, two = (unpacked(data, 200 * count, bits) for data in sent)
        added = bits == gate.bits
        opened = (one + two) % np.uint64(1 << bits) if added and bits < 64 else one ^ two
        opened = one + two if added and bits == 64 else opened
        for values in (one, two, opened):
            assert chi_square(values, bits) < 6
    for share in shares:
        assert chi_square(share.reshape(-1), 64) < 6


def test_a_stream_is_aes_256_in_counter_mode() -> None:
    """NIST SP 800-38A, F.5.5's key: the first block is the block cipher of a zero counter."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    got = words_under(key, 20000).astype("<u8").tobytes()
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 - one block each
    for number in (0, 1, 4095, 4096, 9999):
        assert got[16 * number : 16 * number + 16] == block.update(number.to_bytes(16, "big"))


def test_the_dealer_needs_no_randomness_but_the_seeds() -> None:
    dealer = Pair(graphs.mlp()).dealer
    made = [dealer.correct(Keystream(b"1" * 32), Keystream(b"2" * 32)) for _ in range(2)]
    assert (made[0] == made[1]).all()
    one, two = dealer.deal(), dealer.deal()
    assert len({one.seed0, one.seed1, two.seed0, two.seed1}) == 4
    assert one.seed0.hex() not in repr(one)
