"""Weights that are widened a block at a time give the products of Python's integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from secure_quant import reference
from secure_quant.keystream import Keystream, words_under
from secure_quant.mpc.protocol import bundle, weights
from secure_quant.mpc.protocol.ring import limb_counts, split
from secure_quant.mpc.protocol.weights import Weights, narrow_kind, sums
from tests.unit.mpc.protocol import graphs
from tests.unit.mpc.protocol.harness import Pair


@pytest.mark.parametrize("block", [1, 50, 10**6])
@pytest.mark.parametrize("bits", [9, 26, 32, 33, 64])
def test_products_by_blocks(bits: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "BLOCK", block)
    rng = np.random.default_rng(bits)
    top = 2**bits - 1
    data = rng.integers(0, top, (2, 7, 13), np.uint64, endpoint=True).astype(narrow_kind(bits))
    right = rng.integers(0, top, (3, 2, 13, 5), np.uint64, endpoint=True)
    left, count = limb_counts(bits, 13)
    want = data.astype(object) @ right.astype(object) % 2**bits
    for kept in (False, True):
        got = Weights(data, bits, left, kept).times(split(right, bits, count))
        assert (got.astype(object) == want).all()


def test_sums_are_of_the_streams_from_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "BLOCK", 7)
    one, two = (words_under(seed * 32, 50) for seed in (b"1", b"2"))
    streams = [Keystream(seed * 32) for seed in (b"1", b"2")]
    first = sums((3, 10), 20, streams, lambda words, at: words + np.uint64(at))
    second = sums((1, 20), 40, streams)
    assert (first.dtype, second.dtype) == (np.uint32, np.uint64)
    steps = np.arange(30, dtype=np.uint64) // np.uint64(7) * np.uint64(7)
    total = one + two
    assert (first.reshape(-1) == (total[:30] + steps) % np.uint64(2**20)).all()
    assert (second.reshape(-1) == total[30:] % np.uint64(2**40)).all()


@pytest.mark.parametrize("name", ["lenet", "attention"])
def test_models_whose_limbs_are_not_kept(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "KEPT", 0)
    monkeypatch.setattr(weights, "BLOCK", 100)
    graph = graphs.ALL[name]()
    pair = Pair(graph, "balanced")
    q = np.random.default_rng(1).integers(-128, 128, (3, *graph.input.shape)).astype(np.int8)
    got, _, _ = pair.infer(q)
    assert (got == reference.run_int(graph, q)).all()
    held: Any = [*pair.parties[0]._parameters.values(), *pair.parties[1]._parameters.values()]
    for each in held:
        for part in (each.masked, each.factor):
            assert part.data.dtype.itemsize == (4 if part.bits <= 32 else 8)
            assert "_whole" not in vars(part)


def test_a_front_knows_the_plan_and_no_weights() -> None:
    pair = Pair(graphs.mlp())
    light = bundle.load_party(pair.bundles["party0"], weights=False)
    assert light.plan.to_json() == pair.plan.to_json()
    assert not light._parameters
