"""Public models on the wire: round trip, frozen bytes, nothing secret, nothing believed."""

import hashlib

import numpy as np
import pytest

from conformance.builder import Net
from secure_quant import Graph
from secure_quant.errors import HashMismatch, MalformedMessage, MalformedModel
from secure_quant.ir import ops
from secure_quant.wire import graph_from_proto, graph_to_proto, info_from_proto, info_to_proto
from secure_quant.wire.gen.model_pb2 import ModelInfo, PublicModel


def tiny(seed: int = 7) -> Graph:
    net = Net(seed, (1, 6, 6), zero_point=3)
    net.conv(2, (3, 3))
    net.requantize(zero_point=-5)
    net.max_pool((2, 2), (2, 2))
    net.flatten()
    net.linear(4)
    return net.done(salt=bytes(range(32)), per_channel=True)


def test_round_trip_keeps_hash_and_nodes() -> None:
    graph = tiny()
    wired = PublicModel.FromString(graph_to_proto(graph).SerializeToString())
    back = graph_from_proto(wired)
    assert back.hash == graph.hash
    assert back.nodes == graph.nodes
    assert back.is_public


def by_hand() -> Graph:
    """Every field written out, so that only the wire format can change its bytes."""
    nodes = (
        ops.Input(name="x", shape=(3,), scale=0.5, zero_point=1),
        ops.Linear(
            name="fc", inputs=("x",), in_features=3, out_features=2,
            bias=True, bound=4096, scale=0.25,
        ),
        ops.Requantize(
            name="q", inputs=("fc",), multiplier=(3, 200), axis=-1, offset=512, shift=8,
            table=(-128, -1, 0, 127), scale=0.125, zero_point=-1,
        ),
        ops.Output(name="y", inputs=("q",), scale=0.125),
    )  # fmt: skip
    parameters = {
        "fc.weight": np.array([[1, -2, 3], [4, 5, -6]], np.int8),
        "fc.bias": np.array([7, -8], np.int32),
    }
    return Graph(nodes, parameters, bytes(range(32)))


def test_encoded_bytes_are_frozen() -> None:
    """A change here is another wire format: it needs a new version, not a new constant."""
    info = info_to_proto(by_hand(), b"{}")
    digest = hashlib.sha256(info.SerializeToString(deterministic=True)).hexdigest()
    assert digest == "392d30d108f1306d5b6634f7d4c88a15a42aaadbbbcc151b569f57584f95faab"


def test_no_parameter_and_no_salt_is_sent() -> None:
    graph = tiny()
    sent = info_to_proto(graph, b"{}").SerializeToString()
    assert graph.salt not in sent
    for name, array in graph.parameters.items():
        assert array.tobytes() not in sent, name


def test_another_model_than_expected_is_refused() -> None:
    with pytest.raises(HashMismatch, match="another model"):
        info_from_proto(info_to_proto(tiny(), b""), expected_hash=tiny(8).hash)


@pytest.mark.parametrize("part", ["tables", "multipliers", "commitment"])
def test_one_flipped_bit_is_noticed(part: str) -> None:
    info = info_to_proto(tiny(), b"")
    changed = bytearray(getattr(info.model, part))
    changed[-1] ^= 1
    setattr(info.model, part, bytes(changed))
    with pytest.raises((HashMismatch, MalformedModel)):
        info_from_proto(info)


def test_a_name_changed_in_the_graph_is_noticed() -> None:
    info = info_to_proto(tiny(), b"")
    info.model.graph = info.model.graph.replace(b'"y"', b'"z"')
    with pytest.raises(HashMismatch):
        info_from_proto(info)


def test_garbage_is_malformed() -> None:
    info = info_to_proto(tiny(), b"")
    rng = np.random.default_rng(0)
    with pytest.raises(MalformedMessage, match="public model"):
        info_from_proto(ModelInfo(model_hash="00"))
    info.model.commitment = b"short"
    with pytest.raises(MalformedMessage, match="32 bytes"):
        info_from_proto(info)
    info.model.commitment = bytes(32)
    info.model.graph = rng.bytes(200)
    with pytest.raises(MalformedModel):
        info_from_proto(info)
