"""What a graph knows of itself: names, readers, commitment, hash, the public half."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import numpy as np
import pytest

from conformance import cases
from conformance.builder import Net
from secure_quant.errors import HashMismatch, InvalidGraph, MissingParameters
from secure_quant.ir import Graph, ops


def _net() -> Net:
    net = Net(1, (4,))
    net.linear(3)
    net.requantize()
    net.linear(2, bias=False)
    return net


def test_hash_binds_every_part():
    graph = _net().done(salt=cases.SALT)
    hashes = {graph.hash}
    hashes.add(_net().done(salt=bytes(32)).hash)
    hashes.add(Graph(graph.nodes, graph.parameters).hash)
    for name, array in graph.parameters.items():
        changed = array.copy()
        changed.flat[0] += 1 if changed.flat[0] < 0 else -1
        hashes.add(Graph(graph.nodes, {**graph.parameters, name: changed}, graph.salt).hash)
    for place, field, value in (
        (0, "scale", 0.5), (1, "bound", 2**25), (2, "offset", 3), (4, "scale", 3.0),
        (2, "table", (1, 2)), (4, "multiplier", (9,)),
    ):  # fmt: skip
        nodes = list(graph.nodes)
        nodes[place] = dataclasses.replace(nodes[place], **{field: value})
        hashes.add(Graph(tuple(nodes), graph.parameters, graph.salt).hash)
    assert len(hashes) == 3 + 3 + 6


def test_same_parts_same_hash_whatever_the_memory_layout():
    graph = _net().done(salt=cases.SALT)
    other = {
        name: np.asfortranarray(array.astype(array.dtype.newbyteorder(">")))
        for name, array in reversed(list(graph.parameters.items()))
    }
    assert Graph(graph.nodes, other, graph.salt).hash == graph.hash


@pytest.mark.parametrize("build", [cases.mlp, cases.moves_only])
def test_public_half(build):
    graph = build()
    public = graph.public()
    assert public.hash == graph.hash
    assert not public.parameters
    assert public.salt == b""
    assert public.public().hash == graph.hash
    assert public.is_public is (build is cases.mlp)
    assert not graph.is_public


def test_missing_parameters():
    public = _net().done().public()
    node = public.nodes[1]
    for read in (public.weight, public.bias):
        with pytest.raises(MissingParameters, match="fc1"):
            read(node)


def test_absent_bias_is_zero():
    graph = _net().done()
    assert graph.bias(graph.nodes[3]).tolist() == [0, 0]


def test_parameters_cannot_be_changed_from_outside():
    net = _net()
    graph = net.done()
    digest = graph.hash
    net.parameters["fc1.weight"][:] = 0
    assert graph.weight(graph.nodes[1]).any()
    with pytest.raises(ValueError, match="read-only"):
        graph.parameters["fc1.weight"][0, 0] = 1
    with pytest.raises(TypeError):
        graph.parameters["fc1.weight"] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        graph.nodes = ()
    assert Graph(graph.nodes, graph.parameters, graph.salt).hash == digest


def test_commitment_must_open():
    graph = _net().done()
    with pytest.raises(HashMismatch, match="commitment"):
        Graph(graph.nodes, graph.parameters, bytes(32), graph.commitment)
    changed = {**graph.parameters, "fc1.bias": graph.parameters["fc1.bias"] + 1}
    with pytest.raises(HashMismatch, match="commitment"):
        Graph(graph.nodes, changed, graph.salt, graph.commitment)


@pytest.mark.parametrize(
    ("salt", "commitment"),
    [(b"", b""), (bytes(32), bytes(32)), (b"", bytes(31)), (bytes(3), bytes(32)), (bytes(32), b"")],
)
def test_a_graph_without_its_parameters_needs_a_commitment_alone(salt, commitment):
    with pytest.raises(InvalidGraph, match="commitment"):
        Graph(_net().done().nodes, {}, salt, commitment)


def test_salt_is_fresh_unless_given():
    assert _net().done().hash != _net().done().hash


def test_readers_are_in_order_and_counted_twice_where_read_twice():
    graph = cases.residual()
    (twice,) = (n for n in graph.nodes if isinstance(n, ops.Add) and n.inputs[0] == n.inputs[1])
    assert graph.consumers[twice.inputs[0]] == (twice, twice)
    assert graph.consumers[graph.output.name] == ()
    for node in graph.nodes:
        assert graph.by_name[node.name] is node
        assert all(node in graph.consumers[name] for name in node.inputs)


def test_a_copy_is_the_graph_itself():
    """Nothing in it changes, so that whoever copies what holds one needs no second."""
    graph = _net().done()
    assert copy.copy(graph) is graph
    assert copy.deepcopy({"model": graph})["model"] is graph


def test_a_pickle_of_a_graph_names_what_to_do_instead():
    with pytest.raises(TypeError, match="save"):
        pickle.dumps(_net().done())
