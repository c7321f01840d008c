"""Calls over HTTPS that have several answers: streams of the Connect protocol."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

pytest.importorskip("aiohttp")

from unit.server import support
from unit.server.test_web import (
    ALICE,
    APP,
    SERVICE,
    TOKENS,
    Answers,
    calling,
    listening,
    reason,
)

from secure_quant.errors import ConfigError
from secure_quant.wire.gen import secure_inference_pb2 as pb
from secure_quant_server.common import GrpcServer
from secure_quant_server.common.web import WebFront, _Method

STEPS = f"{SERVICE}/Steps"


def enveloped(message: bytes, flags: int = 0) -> bytes:
    return bytes([flags]) + len(message).to_bytes(4, "big") + message


def envelopes(body: bytes) -> list[tuple[int, bytes]]:
    found = []
    while body:
        size = int.from_bytes(body[1:5], "big")
        found.append((body[0], body[5 : 5 + size]))
        body = body[5 + size :]
    return found


async def steps(request: pb.GetModelRequest, context: object) -> AsyncIterator[pb.GetModelRequest]:
    """Two answers, and then as the request says."""
    for number in range(2):
        yield pb.GetModelRequest(model_hash=f"{number}")
    if request.model_hash == "fail":
        raise ConfigError("stream", got="enough")
    if request.model_hash == "wait":
        await asyncio.sleep(30)


@asynccontextmanager
async def streaming(server: GrpcServer) -> AsyncIterator[WebFront]:
    async with listening(server, Answers()) as front:
        method = _Method(pb.GetModelRequest.FromString, steps, True)
        front._methods = {**front._methods, STEPS: method}
        yield front


def test_several_answers_come_in_envelopes_and_the_last_tells_how_it_ended():
    async def test():
        async with (
            support.serving(tokens=TOKENS) as server,
            streaming(server) as front,
            calling(front) as call,
        ):

            def asked(word: str) -> bytes:
                return enveloped(pb.GetModelRequest(model_hash=word).SerializeToString())

            kind = {"Content_Type": "application/connect+proto"}
            status, headers, body = await call(STEPS, asked(""), Origin=APP, **kind)
            assert (status, headers["Content-Type"]) == (200, "application/connect+proto")
            assert headers["Access-Control-Allow-Origin"] == APP
            *answers, (last, end) = envelopes(body)
            assert [pb.GetModelRequest.FromString(each).model_hash for _, each in answers] == [
                "0", "1",
            ]  # fmt: skip
            assert (last, json.loads(end)) == (2, {})
            for sent, token, more, count, name in (
                (asked("fail"), ALICE, {}, 2, "CONFIG_ERROR"),
                (asked("wait"), ALICE, {"Connect_Timeout_Ms": "200"}, 2, "DEADLINE_EXCEEDED"),
                (asked(""), None, {}, 0, "UNAUTHENTICATED"),
                (b"", ALICE, {}, 0, "MALFORMED_MESSAGE"),
                (asked("x") + b"y", ALICE, {}, 0, "MALFORMED_MESSAGE"),
                (enveloped(b"\xff"), ALICE, {}, 0, "MALFORMED_MESSAGE"),
                (enveloped(b"", 1), ALICE, {}, 0, "OP_NOT_SUPPORTED"),
                (enveloped(bytes(6000)), ALICE, {}, 0, "MESSAGE_TOO_LARGE"),
                (asked(""), ALICE, {"Connect_Content_Encoding": "gzip"}, 0, "OP_NOT_SUPPORTED"),
            ):
                status, _, body = await call(STEPS, sent, token, **kind, **more)
                *answers, (last, end) = envelopes(body)
                assert (status, len(answers), last) == (200, count, 2)
                error = json.loads(end).get("error")
                found = None if error is None else reason(json.dumps(error).encode())[1]
                assert found == name
            assert (await call(STEPS, asked("")))[0] == 415
            assert (await call(f"{SERVICE}/GetModel", b"", **kind))[0] == 415

    support.run(test)
