"""What a client of two parties makes of one that refuses while the other waits."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
from patience import ample

from conformance.builder import Net
from secure_quant.errors import BudgetExceeded, ServiceError
from secure_quant.transport import InsecurePlaintext, Limits
from secure_quant.wire import SHARING, info_to_proto, to_status
from secure_quant.wire.gen.share_inference_pb2 import ShareInferenceServiceGetModelResponse
from secure_quant.wire.gen.share_inference_pb2_grpc import (
    ShareInferenceServiceServicer,
    add_ShareInferenceServiceServicer_to_server,
)
from secure_quant_client import AsyncMpcClient, MpcClient
from secure_quant_client.mpc.model import IN_FLIGHT, MpcModel


def graph():
    net = Net(1, (4,))
    net.linear(3)
    return net.done()


class Party(ShareInferenceServiceServicer):
    def __init__(self, party, graph, refuses):
        self.party, self.graph, self.refuses = party, graph, refuses
        self.waits = threading.Event()
        self.ended = threading.Event()

    def GetModel(self, request, context):  # noqa: N802
        info = info_to_proto(self.graph, b"{}")
        return ShareInferenceServiceGetModelResponse(info=info, party=self.party, sharing=SHARING)

    def Infer(self, request, context):  # noqa: N802
        if not context.add_callback(self.ended.set):
            self.ended.set()  # cancelled before it began: no callback comes any more
        if self.refuses:
            code, text, details = to_status(BudgetExceeded("query budget", got="2 samples"))
            context.set_trailing_metadata(details)
            context.abort(code, text)
        self.waits.set()
        if not self.ended.wait(ample(20)):
            raise AssertionError("nobody cancelled the call that waits")
        context.abort(grpc.StatusCode.CANCELLED, "nobody waits")

    def left_alone(self):
        """True if no call waits here: it was cancelled, be it before it arrived."""
        return not self.waits.is_set() or self.ended.wait(ample(5))


@contextmanager
def parties(refusing):
    made, servers, model = [], [], graph()
    for party in (0, 1):
        server = grpc.server(ThreadPoolExecutor(4))
        made.append(Party(party, model, refuses=party == refusing))
        add_ShareInferenceServiceServicer_to_server(made[-1], server)
        made[-1].address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        servers.append(server)
    try:
        yield made
    finally:
        for server in servers:
            server.stop(0).wait()


@pytest.mark.parametrize("refusing", [0, 1])
@pytest.mark.parametrize("batch", [2, 70])
def test_one_refusal_ends_both_calls_at_once_under_its_own_name(refusing, batch):
    with (
        parties(refusing) as two,
        MpcClient([each.address for each in two], tls=InsecurePlaintext()) as client,
    ):
        begun = time.monotonic()
        with pytest.raises(BudgetExceeded, match="2 samples"):
            client.infer_int8(np.zeros((batch, 4), np.int8))
        assert time.monotonic() - begun < ample(5)
        assert two[1 - refusing].left_alone()


@pytest.mark.parametrize("refusing", [0, 1])
def test_one_refusal_ends_both_calls_for_asyncio_too(refusing):
    async def work(two):
        targets = [each.address for each in two]
        async with AsyncMpcClient(targets, tls=InsecurePlaintext()) as client:
            await client.infer_int8(np.zeros((2, 4), np.int8))

    with parties(refusing) as two:
        with pytest.raises(BudgetExceeded, match="2 samples"):
            asyncio.run(asyncio.wait_for(work(two), ample(5)))
        assert two[1 - refusing].left_alone()


def test_a_call_holds_as_many_samples_as_a_message_may():
    # Four bytes a sample there, three elements of eight back.
    limits = Limits(message_bytes=1024 + 3 * 8 * 3 + 7)
    with (
        parties(None) as two,
        MpcClient([p.address for p in two], tls=InsecurePlaintext(), limits=limits) as client,
    ):
        model = client._connect(client._deadline())
        calls = list(model.parts(np.zeros((8, 4), np.int8)))
        assert [first.batch for first, _ in calls] == [3, 3, 2]
        assert max(request.ByteSize() for part in calls for request in part) <= (
            limits.message_bytes
        )


def test_closing_a_client_ends_its_calls_with_a_named_error():
    with parties(None) as two:
        client = MpcClient([each.address for each in two], tls=InsecurePlaintext())
        assert client.graph.input.shape == (4,)
        threading.Timer(0.3, client.close).start()
        with pytest.raises(ServiceError):
            client.infer_int8(np.zeros((2, 4), np.int8))


def test_parts_are_made_when_there_is_room_to_send_them(monkeypatch):
    """Neither client makes all parts of a large input before its first call."""
    made = []
    part = MpcModel._part

    def counted(model, values):
        made.append(len(values))
        return part(model, values)

    monkeypatch.setattr(MpcModel, "_part", counted)
    q = np.zeros((5000, 4), np.int8)

    async def use(two):
        async with AsyncMpcClient([p.address for p in two], tls=InsecurePlaintext()) as client:
            answer = asyncio.ensure_future(client.infer_int8(q))
            assert await asyncio.to_thread(two[0].waits.wait, 20)
            await asyncio.sleep(0.1)
            answer.cancel()
            with pytest.raises(asyncio.CancelledError):
                await answer

    with parties(None) as two:
        asyncio.run(use(two))
    assert 1 <= len(made) <= IN_FLIGHT
    made.clear()
    with parties(None) as two:
        client = MpcClient([p.address for p in two], tls=InsecurePlaintext())
        with client, ThreadPoolExecutor(1) as pool:
            answer = pool.submit(client.infer_int8, q)
            assert two[0].waits.wait(ample(20))
            client.close()
            assert isinstance(answer.exception(20), ServiceError)
    assert 1 <= len(made) <= IN_FLIGHT + 1
