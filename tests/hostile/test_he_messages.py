"""Messages made to break the homomorphic-encryption server: each gets a named error or an answer,
no worker dies, and an honest client is served right after."""

import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from e2e.he_server import HeServerProcess, inputs, lenet
from patience import ample

from secure_quant import reference
from secure_quant.errors import (
    InternalError,
    MalformedMessage,
    MessageTooLarge,
    ModelNotFound,
    SecureQuantError,
)
from secure_quant.he.bundle import load_client, split
from secure_quant.transport import Limits, sync_channel
from secure_quant.wire import raised
from secure_quant.wire.gen.secure_inference_pb2 import EvaluateLinearRequest
from secure_quant.wire.gen.secure_inference_pb2_grpc import SecureInferenceServiceStub
from secure_quant_client import HeClient

GRAPH = lenet()
_, PLAN = load_client(split(GRAPH)["client"])
STEPS = len(PLAN.steps)
RNG = np.random.default_rng(0)


def right_length(step: int, batch: int = 1) -> int:
    return PLAN.steps[step].call(batch).cost.bytes_up


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HeServerProcess]:
    with HeServerProcess(tmp_path_factory.mktemp("hostile"), GRAPH) as started:
        yield started


@pytest.fixture
def channel(server: HeServerProcess) -> Iterator[grpc.Channel]:
    """Afterwards the same worker must still serve, and rightly."""
    before = server.workers()
    limits = Limits(message_bytes=256 * 2**20)
    with sync_channel(server.target, server.tls(), server_role="he", limits=limits) as opened:
        yield opened
    time.sleep(0.05)  # idle long enough for a worker to turn to its stock
    q = inputs(GRAPH, 1)
    with HeClient(server.target, tls=server.tls()) as client:
        assert np.array_equal(client.infer_int8(q), reference.run_int(GRAPH, q))
    assert server.workers() == before


def send(channel: grpc.Channel, data: bytes, **fields: object) -> bytes | SecureQuantError:
    chosen = {"model_hash": GRAPH.hash, "step": 0, "batch": 1} | fields
    request = EvaluateLinearRequest(ciphertexts=data, **chosen)
    try:
        answer = SecureInferenceServiceStub(channel).EvaluateLinear(request, timeout=ample(10))
    except grpc.RpcError as error:
        return raised(error)
    return answer.ciphertexts


@pytest.mark.parametrize("step", range(STEPS))
def test_wrong_lengths(channel: grpc.Channel, step: int) -> None:
    right = right_length(step)
    for length in (0, 1, 63, right // 2, right - 1, right + 1, 2 * right):
        error = send(channel, RNG.bytes(length), step=step)
        assert type(error) is MalformedMessage, length
        assert str(right) in str(error)


@pytest.mark.parametrize("step", range(STEPS))
@pytest.mark.parametrize("fill", [b"\x00", b"\xff", b"\x80", None], ids=repr)
def test_right_length_wrong_content(channel: grpc.Channel, step: int, fill: bytes | None) -> None:
    length = right_length(step)
    found = send(channel, RNG.bytes(length) if fill is None else fill * length, step=step)
    # Random values are a ciphertext of something unless one exceeds the modulus.
    assert isinstance(found, bytes | MalformedMessage)
    if fill == b"\xff":
        assert type(found) is MalformedMessage
    if isinstance(found, bytes):
        assert len(found) == PLAN.steps[step].call(1).cost.bytes_down


@pytest.mark.parametrize("step", [STEPS, STEPS + 1, 2**31, 2**32 - 1])
def test_a_step_that_is_not_there(channel: grpc.Channel, step: int) -> None:
    assert type(send(channel, b"", step=step)) is MalformedMessage


@pytest.mark.parametrize("batch", [0, 257, 2**31 - 1, 2**32 - 1])
def test_a_batch_out_of_range(channel: grpc.Channel, batch: int) -> None:
    assert type(send(channel, bytes(right_length(0)), batch=batch)) is MalformedMessage


def test_one_sample_called_two(channel: grpc.Channel) -> None:
    data = RNG.bytes(right_length(STEPS - 1, 1))
    expected = right_length(STEPS - 1, 64)
    error = send(channel, data, step=STEPS - 1, batch=64)
    assert type(error) is MalformedMessage
    assert str(expected) in str(error)


@pytest.mark.parametrize("model", ["", "0" * 64, "../../etc/passwd", "x" * 100_000, "é\0"])
def test_a_model_that_is_not_there(channel: grpc.Channel, model: str) -> None:
    found = send(channel, b"", model_hash=model)
    assert type(found) is (ModelNotFound if model else MalformedMessage)
    assert len(str(found)) < 600


def test_a_message_above_the_limit(channel: grpc.Channel) -> None:
    assert type(send(channel, bytes(65 * 2**20))) is MessageTooLarge


@pytest.mark.parametrize("data", [b"\xff" * 50, b"\x22\xff\xff\xff\xff\x7f", RNG.bytes(5000)])
def test_bytes_that_are_no_protobuf(channel: grpc.Channel, data: bytes) -> None:
    call = channel.unary_unary("/secure_quant.v1.SecureInferenceService/EvaluateLinear")
    with pytest.raises(grpc.RpcError) as caught:
        call(data, timeout=ample(10))
    assert isinstance(raised(caught.value), InternalError | MalformedMessage)


@pytest.mark.parametrize(
    "method", ["/x/y", "/", "/secure_quant.v1.SecureInferenceService/Nothing", "/a" * 500]
)
def test_methods_that_are_not_there(channel: grpc.Channel, method: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(method)(b"", timeout=ample(10))
    assert isinstance(raised(caught.value), SecureQuantError)


def test_a_bundle_that_is_none_is_named(tmp_path: Path) -> None:
    import asyncio

    from secure_quant.errors import ConfigError, MalformedModel
    from secure_quant.transport import InsecurePlaintext
    from secure_quant_server.he import HeOptions, HeServer

    async def start(bundle: bytes | Path) -> None:
        options = HeOptions(
            listen="127.0.0.1:0", security=InsecurePlaintext(), bundles=[bundle], workers=1
        )
        await HeServer(options).start()

    good = split(GRAPH)["server"]
    for bad in (b"", b"garbage", good[:-1], good + b"\0", split(GRAPH)["client"]):
        with pytest.raises(MalformedModel):
            asyncio.run(start(bad))
    with pytest.raises(ConfigError, match="bundle"):
        asyncio.run(start(tmp_path / "none.sqb"))
