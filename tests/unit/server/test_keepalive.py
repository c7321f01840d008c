"""Pings of a client at rest, and of one whose call takes long, draw no GOAWAY.

At ``Limits``' own pace this takes minutes (``bench/keepalive.py`` does that); here both ends keep
time forty times as fast.
"""

import asyncio

import grpc
import pytest
from grpc import ChannelConnectivity
from patience import ample
from unit.server.support import calling, graph, run, serving

from secure_quant.errors import PeerUnavailable
from secure_quant.transport import Limits
from secure_quant.wire import raised
from secure_quant.wire.gen.secure_inference_pb2 import EvaluateLinearRequest, GetModelRequest

FAST = Limits(keepalive_s=1.0)
PINGS = 8  # a server that expects fewer loses patience at the sixth


async def rest(data: bytes) -> bytes:
    await asyncio.sleep(PINGS * FAST.keepalive_s)
    return data


async def lost(channel: grpc.aio.Channel) -> None:
    """Returns once the channel is not connected any more."""
    assert channel.get_state() is ChannelConnectivity.READY
    await channel.wait_for_state_change(ChannelConnectivity.READY)


def slow() -> EvaluateLinearRequest:
    return EvaluateLinearRequest(model_hash=graph().hash, step=0, batch=1, ciphertexts=b"x")


def test_a_session_may_idle() -> None:
    async def test() -> None:
        async with serving(limits=FAST) as server, calling(server, limits=FAST) as (stub, channel):
            await stub.GetModel(GetModelRequest(), timeout=ample(5))
            gone = asyncio.create_task(lost(channel))
            await asyncio.sleep(PINGS * FAST.keepalive_s)
            assert not gone.done()
            await stub.GetModel(GetModelRequest(), timeout=ample(5))
            assert not gone.done()
            gone.cancel()

    run(test)


def test_a_call_may_take_long() -> None:
    async def test() -> None:
        async with (
            serving(rest, limits=FAST) as server,
            calling(server, limits=FAST) as (stub, channel),
        ):
            await stub.GetModel(GetModelRequest(), timeout=ample(5))
            gone = asyncio.create_task(lost(channel))
            assert (await stub.EvaluateLinear(slow(), timeout=ample(15))).ciphertexts == b"x"
            assert not gone.done()
            gone.cancel()

    run(test)


def test_who_pings_without_end_is_sent_away() -> None:
    """Which shows that the two tests above can fail."""

    async def test() -> None:
        async with serving(rest) as server, calling(server, limits=FAST) as (stub, _):
            with pytest.raises(grpc.RpcError) as caught:
                await stub.EvaluateLinear(slow(), timeout=ample(15))
            error = raised(caught.value)
            assert type(error) is PeerUnavailable
            assert "ping" in str(error).lower()

    run(test)
