"""A browser's inferences: written as committed, and what the Python client makes of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from vectors import make_web

from secure_quant import reference
from secure_quant.wire.gen import share_inference_pb2 as pb
from secure_quant_client.mpc.model import MpcModel

DOCUMENT = json.loads(make_web.PATH.read_text())
CASES = DOCUMENT["cases"]


def test_the_writer_still_makes_the_committed_file():
    assert make_web.write() == make_web.PATH.read_text()


def test_every_message_is_in_the_encoding_that_protobuf_writes():
    for kind, data in make_web.messages(DOCUMENT):
        message = getattr(pb, kind).FromString(bytes.fromhex(data))
        assert message.SerializeToString().hex() == data


@pytest.mark.parametrize("name", CASES)
def test_the_python_client_opens_what_the_vectors_say(name: str):
    case = CASES[name]
    answers = [
        pb.ShareInferenceServiceGetModelResponse.FromString(bytes.fromhex(each))
        for each in case["models"]
    ]
    model = MpcModel.receive(answers, case["hash"], message_bytes=2**20)
    first, second = (pb.InferRequest.FromString(bytes.fromhex(each)) for each in case["requests"])
    made = [pb.InferResponse.FromString(bytes.fromhex(each)) for each in case["answers"]]
    y = model.joined([model.open((first, second), made)])
    assert [str(each) for each in y.reshape(-1).tolist()] == case["integers"]
    outputs = reference.named(model.graph, reference.dequantize(model.graph, y))
    assert outputs.keys() == case["outputs"].keys()
    for port, array in outputs.items():
        assert array.astype("<f4").tobytes().hex() == case["outputs"][port]["data"]


@pytest.mark.parametrize("name", CASES)
def test_shares_hide_and_hold_the_input(name: str):
    """With a stream made by AES on single blocks, without the code that the writer used."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    case = CASES[name]
    q = np.frombuffer(bytes.fromhex(case["quantized"]), np.uint8)
    first = pb.InferRequest.FromString(bytes.fromhex(case["requests"][0]))
    encryptor = Cipher(algorithms.AES(bytes.fromhex(case["seed"])), modes.ECB()).encryptor()  # noqa: S305 - single blocks
    blocks = b"".join(i.to_bytes(16, "big") for i in range(-(-q.size // 16)))
    stream = np.frombuffer(encryptor.update(blocks), np.uint8)[: q.size]
    np.testing.assert_array_equal(np.frombuffer(first.share, np.uint8) ^ stream, q)
    assert first.share != q.tobytes()
