"""The model file, its hash and its meaning."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from unit.he.leveled.models import extremes, random_model

from secure_quant.errors import (
    DtypeMismatch,
    HashMismatch,
    InsecureRefused,
    InvalidGraph,
    MalformedModel,
    OpNotSupported,
    SecureQuantError,
    ShapeMismatch,
    ValueOutOfRange,
)
from secure_quant.he.leveled import LeveledLayer, LeveledModel, LeveledPlan, PublicLeveled, plan
from secure_quant.he.leveled.bound import naf
from secure_quant.he.leveled.bundle import is_server, load_client, load_server, split
from secure_quant.he.leveled.plan import padded, primes_of

MODEL = random_model((5, 4, 3))


def test_reference_is_the_sentence_in_the_specification() -> None:
    x = extremes(MODEL)
    for row, y in zip(x, MODEL.reference(x), strict=True):
        value = [min(max(float(v), -1.0), 1.0) for v in row]
        for i, layer in enumerate(MODEL.layers):
            value = [v * v for v in value] if i else value
            value = [
                sum(float(s) * int(w) * v for w, v in zip(weights, value, strict=True)) + float(b)
                for weights, s, b in zip(layer.weight, layer.scale, layer.bias, strict=True)
            ]
        assert value == pytest.approx(list(y), rel=1e-12, abs=1e-12)


def test_a_file_is_the_model_and_its_hash() -> None:
    data = MODEL.encode()
    again = LeveledModel.decode(data, expected_hash=MODEL.hash)
    assert again.encode() == data
    assert again.hash == MODEL.hash == PublicLeveled.from_json(MODEL.public().to_json()).hash
    for mine, other in zip(MODEL.layers, again.layers, strict=True):
        assert np.array_equal(mine.matrix, other.matrix)
    with pytest.raises(HashMismatch):
        LeveledModel.decode(data, expected_hash="0" * 64)
    # The same weights under another salt are another commitment.
    assert LeveledModel(MODEL.layers, MODEL.input_bound).hash != MODEL.hash


@pytest.mark.parametrize("role", ["model", "server", "client"])
def test_damaged_files_are_refused(role: str) -> None:
    data = {"model": MODEL.encode(), **split(MODEL)}[role]
    load = {"model": LeveledModel.decode, "server": load_server, "client": load_client}[role]
    load(data)
    for cut in (0, 7, 100, len(data) // 2, len(data) - 1):
        with pytest.raises(SecureQuantError):
            load(data[:cut])
    # Every byte counts but those of the plan, which the hash does not cover.
    start = data.index(b'"widths"' if role == "client" else MODEL.salt)
    for place in range(start, start + 16):
        changed = bytearray(data)
        changed[place] ^= 0x55
        with pytest.raises(SecureQuantError):
            load(bytes(changed))


def test_bundles_hold_what_their_role_needs() -> None:
    bundles = split(MODEL)
    assert is_server(bundles["server"])
    assert not is_server(bundles["client"])
    with pytest.raises(MalformedModel):
        load_server(bundles["client"])
    assert MODEL.salt not in bundles["client"]
    for layer in MODEL.layers:
        assert layer.weight.tobytes() not in bundles["client"]
        assert layer.scale.tobytes()[:8] not in bundles["client"]


def test_layers_that_contradict_are_refused() -> None:
    weight, one = np.ones((2, 3), np.int8), np.ones(2)
    for bad in (
        (weight.astype(np.int16), one, one),
        (weight[0], one, one),
        (weight, np.array([1.0, 0.0]), one),
        (weight, one, np.array([np.nan, 0.0])),
        (weight, one[:1], one),
        (np.ones((1, 5000), np.int8), one[:1], one[:1]),
    ):
        with pytest.raises(InvalidGraph):
            LeveledLayer(*bad)
    layer = LeveledLayer(weight, one, one)
    for layers, bound in (((), 1.0), ((layer, layer), 1.0), ((layer,), 0.0), ((layer,), np.inf)):
        with pytest.raises(InvalidGraph):
            LeveledModel(layers, bound)


def test_inputs_that_have_no_meaning() -> None:
    for bad, error in (
        (np.zeros((1, 4)), ShapeMismatch),
        (np.zeros(5), ShapeMismatch),
        (np.zeros((1, 5), np.complex128), DtypeMismatch),
        (np.full((1, 5), np.nan), ValueOutOfRange),
        (np.full((1, 5), np.inf), ValueOutOfRange),
    ):
        with pytest.raises(error):
            MODEL.reference(bad)


def test_the_plan_is_public_and_checked() -> None:
    made = plan(MODEL)
    assert LeveledPlan.from_json(made.to_json(), MODEL.public()) == made
    assert made.degree == 8192
    assert sum(prime.bit_length() for prime in made.primes) <= 214
    with pytest.raises(InsecureRefused, match="215 bits"):  # within the tables of 2018
        LeveledPlan(made.public, 8192, (51, 41, 41, 41, 41), 41, 1e-6)
    with pytest.raises(InsecureRefused):
        LeveledPlan(made.public, 4096, made.chain_bits, made.scale_bits, 1e-6)
    with pytest.raises(InvalidGraph):
        LeveledPlan(made.public, 8192, made.chain_bits[1:], made.scale_bits, 1e-6)
    for text in (b"{}", b"[", made.to_json() + b"{", made.to_json().replace(b"8192", b"8191")):
        with pytest.raises((MalformedModel, InvalidGraph)):
            LeveledPlan.from_json(text, MODEL.public())


def test_what_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(OpNotSupported, match="128-bit"):
        plan(random_model((8,) * 9))
    with pytest.raises(OpNotSupported, match="128-bit"):
        plan(random_model((4, 4, 4), bound=1e6))
    with pytest.raises(OpNotSupported, match="error up to"):
        plan(MODEL, tolerance=1e-15)


def test_primes_are_those_of_seal() -> None:
    seal = pytest.importorskip("tenseal.sealapi")
    chains = {8192: (58, 40, 40, 40, 40), 4096: (36, 36, 37), 16384: (60, *[45] * 6)}
    for degree, bits in chains.items():
        made = seal.CoeffModulus.Create(degree, list(bits))
        assert primes_of(degree, bits) == tuple(prime.value() for prime in made)


def test_rotations_are_sums_of_those_with_a_key() -> None:
    for step in range(1, 300):
        terms = naf(step)
        assert sum(terms) == step
        assert all(abs(term).bit_count() == 1 for term in terms)
        sizes = sorted(abs(term).bit_length() for term in terms)
        assert all(b - a >= 2 for a, b in itertools.pairwise(sizes))
    assert set(naf(3)) <= set(plan(MODEL).steps)
    assert padded(MODEL.public()) == (8, 4)
