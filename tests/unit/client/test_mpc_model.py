"""What a sharing client believes of the parties, and what it sends them."""

from __future__ import annotations

import numpy as np
import pytest
from unit.mpc.protocol import graphs

from conformance.builder import Net
from secure_quant import Graph
from secure_quant.errors import MalformedMessage, ValueOutOfRange
from secure_quant.keystream import Keystream
from secure_quant.wire import SHARING, info_to_proto
from secure_quant.wire.gen.share_inference_pb2 import ShareInferenceServiceGetModelResponse
from secure_quant_client.mpc.model import AROUND, MpcModel


def received(
    graph: Graph,
    message_bytes: int = 2**20,
    sharing: tuple[int, int] = (SHARING,) * 2,
    batch: tuple[int, int] = (0, 0),
):
    answers = [
        ShareInferenceServiceGetModelResponse(
            info=info_to_proto(graph, b"{}"), party=party, sharing=number, batch=most
        )
        for party, (number, most) in enumerate(zip(sharing, batch, strict=True))
    ]
    return MpcModel.receive(answers, None, message_bytes=message_bytes)


@pytest.mark.parametrize("sharing", [(0, 0), (1, 2), (2, 1), (2, 3)])
def test_parties_that_share_inputs_in_another_way_are_refused_by_name(sharing) -> None:
    with pytest.raises(MalformedMessage, match=r"way of sharing inputs.*same release"):
        received(graphs.mlp(), sharing=sharing)


def test_a_request_takes_a_byte_an_element() -> None:
    model = received(graphs.mlp())
    q = np.random.default_rng(1).integers(-128, 128, (3, 64)).astype(np.int8)
    (part,) = model.parts(q)
    first, second = part
    assert (len(first.share), second.seed and len(second.seed)) == (3 * 64, 32)
    assert first.sharing == second.sharing == SHARING
    stream = Keystream(second.seed).bytes(3 * 64)
    octets = np.frombuffer(first.share, np.uint8) ^ stream
    assert np.array_equal(octets.view(np.int8).reshape(q.shape), q)
    with pytest.raises(ValueOutOfRange):
        list(model.parts(q.astype(np.int64) + 256))


def test_as_many_samples_a_call_as_requests_and_answers_have_room_for() -> None:
    narrow = graphs.mlp()  # 64 bytes in, 10 elements of 8 bytes out
    assert received(narrow, AROUND + 80 * 5 + 79).batch == 5
    net = Net(1, (4,))
    net.linear(100)
    assert received(net.done(), AROUND + 800 * 3).batch == 3
    assert received(narrow, AROUND).batch == 1


@pytest.mark.parametrize(
    ("batch", "most"), [((0, 0), 32), ((64, 0), 32), ((64, 20), 20), ((1, 64), 1), ((64, 64), 32)]
)
def test_as_many_samples_a_call_as_both_parties_take(batch: tuple[int, int], most: int) -> None:
    model = received(graphs.mlp(), batch=batch)
    assert model.batch == most
    q = np.zeros((2 * most + 1, 64), np.int8)
    assert [first.batch for first, _ in model.parts(q)] == [most, most, 1]
