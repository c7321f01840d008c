"""Weights at rest: narrow, and what the streams say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from secure_quant.keystream import Keystream, words_under
from secure_quant.mpc.protocol import bundle, weights
from secure_quant.mpc.protocol.weights import sums
from tests.unit.mpc.protocol import graphs
from tests.unit.mpc.protocol.harness import Pair


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
def test_weights_are_held_once_and_narrow(name: str) -> None:
    pair = Pair(graphs.ALL[name]())
    gates = {gate.name: gate for gate in pair.plan.gates}
    held: Any = {**pair.parties[0]._parameters}
    assert held
    for layer, each in held.items():
        for part in (each.masked, each.factor):
            assert part.dtype.itemsize == (4 if gates[layer].bits <= 32 else 8)
        assert not each.masked.flags.owndata  # a part of the bundle


def test_a_front_knows_the_plan_and_no_weights() -> None:
    pair = Pair(graphs.mlp())
    light = bundle.load_party(pair.bundles["party0"], weights=False)
    assert light.plan.to_json() == pair.plan.to_json()
    assert not light._parameters
