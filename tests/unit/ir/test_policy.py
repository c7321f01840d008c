"""What clients may learn: a graph's other end."""

import numpy as np
import pytest

from conformance.builder import Net
from conformance.cases import lenet
from conformance.port_cases import one_port_each, ports
from secure_quant import reference
from secure_quant.errors import ConfigError, OpNotSupported
from secure_quant.ir import artifact, ops
from secure_quant.ir.policy import with_output


def samples(graph, count=32):
    shape = (count, *graph.input.shape)
    return np.random.default_rng(0).integers(-128, 128, shape).astype(np.int8)


def test_the_place_of_the_largest_score_as_a_client_would_take_it():
    graph = lenet()
    made = with_output(graph, "argmax")
    q = samples(graph)
    scores = reference.run_int(graph, q) * np.array(graph.output.multiplier)
    assert np.array_equal(reference.run_int(made, q)[:, 0], scores.argmax(1))
    real = reference.dequantize(made, reference.run_int(made, q))
    assert np.array_equal(real, scores.argmax(1)[:, None])
    assert made.commitment == graph.commitment
    assert made.hash != graph.hash
    assert artifact.decode(artifact.encode(made)).hash == made.hash
    best = reference.run_int(with_output(graph, "top-3"), q)
    assert np.array_equal(best, np.argsort(-scores, axis=1, kind="stable")[:, :3])


def test_scores_are_the_graph_itself():
    graph = lenet()
    assert with_output(graph, "scores") is graph


def test_a_named_output_keeps_its_name():
    made = with_output(one_port_each(), "argmax")
    assert [(port.name, port.shape) for port in made.output_ports] == [("scores", (3, 1))]
    assert isinstance(made.nodes[-3], ops.TopK)


def test_maps_have_classes_first():
    net = Net(5, (2, 6, 6))
    net.conv(4, (3, 3))
    for per_channel in (True, False):
        made = with_output(net.done(per_channel=per_channel, axis=0), "argmax")
        assert made.values[made.output.name].shape == (1, 4, 4)


@pytest.mark.parametrize(
    "output", ["class", "top-0", "top-", "top-1e3", "top--1", "", "argmax ", "top-99999"]
)
def test_what_is_no_policy(output):
    with pytest.raises(ConfigError, match="argmax"):
        with_output(lenet(), output)


def test_what_has_no_classes_is_refused_by_name():
    one = Net(1, (4,))
    one.linear(1)
    for graph, output, words in (
        (ports(), "argmax", "9 outputs"), (one.done(), "argmax", "1 scores"),
        (lenet(), "top-11", "10 scores"),
    ):  # fmt: skip
        with pytest.raises(OpNotSupported, match=words):
            with_output(graph, output)
