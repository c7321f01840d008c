"""Role bundles bent on purpose: named errors alone, from every engine's loader."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.builder import Net
from secure_quant.errors import InsecureRefused, ModelError
from secure_quant.he import bundle as he
from secure_quant.ir import Graph, artifact
from secure_quant.mpc.protocol import bundle as mpc

LOADERS = {
    "party0": mpc.load_party,
    "party1": mpc.load_party,
    "dealer": mpc.load_dealer,
    "mpc client": mpc.load_client,
    "server": he.load_server,
    "he client": he.load_client,
}
roles = pytest.mark.parametrize("role", LOADERS)


@cache
def graph() -> Graph:
    net = Net(1, (2, 4, 4))
    net.conv(3, (3, 3))
    net.requantize(entries=64)
    net.max_pool((2, 2), (2, 2))
    net.flatten()
    net.linear(2)
    return net.done()


@cache
def bundles() -> dict[str, bytes]:
    shares, ciphers = mpc.split(graph()), he.split(graph())
    return {
        "party0": shares["party0"], "party1": shares["party1"], "dealer": shares["dealer"],
        "mpc client": shares["client"], "server": ciphers["server"], "he client": ciphers["client"],
    }  # fmt: skip


def outcome(role: str, data: bytes) -> str:
    """What became of it; anything but a named error fails the test."""
    try:
        LOADERS[role](data)
    except (ModelError, InsecureRefused) as error:  # the latter: a plan that hides too little
        return type(error).__name__
    return "taken"


@roles
def test_honest_bundles_are_taken(role):
    assert outcome(role, bundles()[role]) == "taken"


@roles
def test_prefixes_and_tails_are_refused(role):
    data = bundles()[role]
    for length in {*range(0, len(data), max(len(data) // 150, 1)), len(data) - 1}:
        assert outcome(role, data[:length]) != "taken"
    assert outcome(role, data + b"\0") != "taken"


@roles
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_changed_bytes_raise_nothing_else(role, data):
    raw = bytearray(bundles()[role])
    head = int.from_bytes(raw[:8], "little") + 8
    for _ in range(data.draw(st.integers(1, 4))):
        end = head - 1 if data.draw(st.booleans()) else len(raw) - 1
        start = data.draw(st.integers(0, end))
        raw[start : start + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    outcome(role, bytes(raw))


@roles
def test_every_array_left_out_turned_or_retyped(role):
    tensors, metadata = artifact.read_tensors(bundles()[role])
    for name, array in tensors.items():
        for other in (None, array.astype(np.int64), array.reshape(1, *array.shape), array[:0]):
            if other is not None and other.dtype == array.dtype and other.shape == array.shape:
                continue
            changed = {**tensors, name: other}
            kept = {n: a for n, a in changed.items() if a is not None}
            assert outcome(role, artifact.write_tensors(kept, metadata)) != "taken", (name, other)


@roles
def test_every_metadata_name_left_out_or_changed(role):
    tensors, metadata = artifact.read_tensors(bundles()[role])
    assert metadata
    for name in metadata:
        for value in (None, "", "{}", "[]", "null", "[" * 5000, "\ud800", "x" * 64, "0" * 64):
            merged = {**metadata, name: value}
            kept = {n: v for n, v in merged.items() if v is not None}
            assert outcome(role, artifact.write_tensors(tensors, kept)) != "taken", (name, value)


@roles
def test_bundles_of_the_other_roles_and_the_model_itself_are_refused(role):
    for other, data in {**bundles(), "model": artifact.encode(graph())}.items():
        if LOADERS[other if other in LOADERS else role] is not LOADERS[role] or other == "model":
            assert outcome(role, data) != "taken", other


def test_no_bundle_but_the_owners_and_the_he_servers_holds_weights():
    secret = graph().parameters["fc5.weight"].tobytes()
    holders = {role for role, data in bundles().items() if secret in data}
    assert holders <= {"server"}
    salted = {role for role, data in bundles().items() if graph().salt in data}
    assert salted <= {"server"}
