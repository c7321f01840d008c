"""The model file and the public encoding: round trips, determinism, compact weights, saving."""

from __future__ import annotations

import dataclasses
import stat

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance import cases
from conformance.builder import Net
from conformance.random_nets import random_graph
from secure_quant import reference
from secure_quant.errors import HashMismatch, MalformedModel
from secure_quant.ir import Graph, artifact, load, save
from secure_quant.ir.public import decode_public, encode_public

ROUND = [*cases.NAMED, *(lambda seed=seed: random_graph(seed) for seed in range(20))]


def same(a: Graph, b: Graph) -> bool:
    return (
        a.nodes == b.nodes
        and (a.salt, a.commitment, a.hash) == (b.salt, b.commitment, b.hash)
        and a.parameters.keys() == b.parameters.keys()
        and all(np.array_equal(a.parameters[n], b.parameters[n]) for n in a.parameters)
        and all(a.parameters[n].dtype == b.parameters[n].dtype for n in a.parameters)
    )


@pytest.mark.parametrize("build", ROUND)
def test_decode_inverts_encode(build):
    graph = build()
    data = artifact.encode(graph)
    assert same(artifact.decode(data, expected_hash=graph.hash), graph)
    assert artifact.encode(artifact.decode(data)) == data
    assert artifact.encode(build()) == data
    public = artifact.decode(artifact.encode(graph.public()))
    assert same(public, graph.public())
    again = decode_public(encode_public(graph), commitment=graph.commitment)
    assert same(again, graph.public())
    assert len(safetensors.numpy.load(data)) == len(artifact.read_tensors(data)[0])


def test_public_file_holds_no_secret():
    # No run of bytes that a table or a list of integers could hold by chance.
    salt = bytes.fromhex("9d4ce1b07a36f2588b03d7c4e9156fa2417ec8930bd65f2aa4f1387c56be20d9")
    graph = Graph(cases.mlp().nodes, cases.mlp().parameters, salt)
    public = artifact.encode(graph.public())
    assert graph.salt not in public
    for array in graph.parameters.values():
        assert array.tobytes() not in public


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 70), st.integers(1, 20), st.booleans()
)
def test_weights_with_few_values_are_stored_in_half_a_byte(seed, out, inner, levels, by_row):
    net = Net(seed, (inner,))
    name = net.linear(out)
    rng = np.random.default_rng(seed)
    rows = out if by_row else 1
    books = np.stack([rng.choice(256, levels, replace=False) - 128 for _ in range(rows)])
    picks = rng.integers(0, levels, (out, inner))
    weight = np.take_along_axis(np.broadcast_to(books, (out, levels)), picks, 1).astype(np.int8)
    net.parameters[f"{name}.weight"] = weight
    net.nodes = [dataclasses.replace(n, bound=2**30) if n.name == name else n for n in net.nodes]
    data = artifact.encode(net.done(salt=cases.SALT))
    tensors, _ = artifact.read_tensors(data)
    distinct = [len(np.unique(row)) for row in weight]
    cheapest = weight.size
    if len(np.unique(weight)) <= 16:
        cheapest = min(cheapest, 16 + (weight.size + 1) // 2)
    if max(distinct) <= 16:
        cheapest = min(cheapest, 16 * out + (weight.size + 1) // 2)
    stored = sum(a.nbytes for n, a in tensors.items() if n.startswith(name) and "bias" not in n)
    assert stored == cheapest
    np.testing.assert_array_equal(artifact.decode(data).parameters[f"{name}.weight"], weight)


def test_convolutions_are_coded_too():
    net = Net(1, (4, 6, 6))
    name = net.conv(8, (3, 3), groups=2, largest=3)
    graph = net.done(salt=cases.SALT)
    tensors, _ = artifact.read_tensors(artifact.encode(graph))
    assert f"{name}.codes" in tensors
    decoded = artifact.decode(artifact.encode(graph))
    np.testing.assert_array_equal(
        decoded.parameters[f"{name}.weight"], net.parameters[f"{name}.weight"]
    )


def test_every_array_in_a_file_is_aligned():
    data = artifact.encode(cases.lenet())
    tensors, _ = artifact.read_tensors(data)
    start = np.frombuffer(data, np.uint8).__array_interface__["data"][0]
    for name, array in tensors.items():
        place = array.__array_interface__["data"][0] - start
        assert place % array.dtype.itemsize == 0, name
        assert not array.flags.writeable


def test_save_and_load(tmp_path):
    graph, path = cases.mlp(), tmp_path / "model.sq"
    save(graph, path)
    assert same(load(path, expected_hash=graph.hash), graph)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    other = cases.linear()
    save(other, str(path))
    assert load(str(path)).hash == other.hash
    assert [p.name for p in tmp_path.iterdir()] == ["model.sq"]
    with pytest.raises(HashMismatch):
        load(path, expected_hash=graph.hash)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    graph, path = cases.linear(), tmp_path / "model.sq"
    save(graph, path)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        save(cases.mlp(), path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.sq"]
    assert load(path).hash == graph.hash


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing.sq")


def test_a_file_above_the_limit_is_not_read(tmp_path):
    path = tmp_path / "huge.sq"
    with path.open("wb") as file:
        file.truncate(4 * 2**30 + 1)  # sparse: takes no room
    with pytest.raises(MalformedModel, match="<= 4294967296"):
        load(path)


def test_the_answers_survive_the_file():
    graph = cases.attention()
    q = np.random.default_rng(0).integers(-128, 128, (3, *graph.input.shape)).astype(np.int8)
    again = artifact.decode(artifact.encode(graph))
    np.testing.assert_array_equal(reference.run_int(again, q), reference.run_int(graph, q))


@pytest.mark.parametrize("dtype", ["i1", "u1", "<i2", ">i2", "<i4", "<i8", "<u8", ">u8"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 5), (2, 3, 4)])
def test_containers_hold_every_integer_type_and_shape(dtype, shape):
    array = (np.arange(np.prod(shape, dtype=int)) * 3 % 120).reshape(shape).astype(dtype)
    data = artifact.write_tensors({"b": array, "a": array[..., :1] if shape else array}, {"k": "é"})
    tensors, metadata = artifact.read_tensors(data)
    assert metadata == {"k": "é"}
    assert tensors["b"].shape == shape
    np.testing.assert_array_equal(tensors["b"], array)
    theirs = safetensors.numpy.load(data)
    np.testing.assert_array_equal(theirs["b"], array)


@pytest.mark.parametrize(
    "array", [np.zeros(2), np.zeros(2, bool), np.zeros(2, object), np.zeros(2, "S1")]
)
def test_containers_refuse_other_types(array):
    with pytest.raises(MalformedModel, match="expected I8"):
        artifact.write_tensors({"a": array}, {})
