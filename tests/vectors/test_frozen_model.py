"""The frozen model file: written as committed, and meaning what the specification says."""

from __future__ import annotations

import numpy as np
import safetensors.numpy
from vectors import make_tiny_model, verify_tiny_model

from secure_quant import reference
from secure_quant.ir import artifact, load

HASH = "bb02a1403927c47ca0bde4ff774860149a80c4c5e51011264d8a35b6dfee5c8b"
FROZEN = make_tiny_model.PATH


def test_the_writer_still_makes_the_committed_bytes():
    assert artifact.encode(make_tiny_model.tiny_model()) == FROZEN.read_bytes()
    assert make_tiny_model.tiny_model().hash == HASH


def test_the_independent_verifier_agrees():
    found = verify_tiny_model.read(FROZEN.read_bytes())
    graph = load(FROZEN, expected_hash=HASH)
    assert found["hash"] == HASH
    assert found["salt"] == graph.salt
    assert [node["name"] for node in found["nodes"]] == [node.name for node in graph.nodes]
    assert found["nodes"][2]["table"] == list(graph.by_name["q1"].table)
    assert found["parameters"].keys() == graph.parameters.keys()
    for name, (shape, numbers) in found["parameters"].items():
        assert graph.parameters[name].shape == tuple(shape)
        assert graph.parameters[name].ravel().tolist() == numbers


def test_the_independent_verifier_computes_the_same_answers():
    found, graph = verify_tiny_model.read(FROZEN.read_bytes()), load(FROZEN)
    q = np.random.default_rng(0).integers(-128, 128, (200, 3)).astype(np.int8)
    want = [verify_tiny_model.infer(found, row) for row in q.tolist()]
    assert reference.run_int(graph, q).tolist() == want
    assert len({tuple(row) for row in want}) > 10


def test_the_file_is_safetensors_to_the_safetensors_library():
    theirs = safetensors.numpy.load(FROZEN.read_bytes())
    ours, _ = artifact.read_tensors(FROZEN.read_bytes())
    assert theirs.keys() == ours.keys()
    for name, array in theirs.items():
        assert array.dtype == ours[name].dtype
        np.testing.assert_array_equal(array, ours[name])
