"""Calls over HTTPS: the Connect protocol on the wire, and the same guard as over gRPC."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

aiohttp = pytest.importorskip("aiohttp")

from patience import ample  # noqa: E402
from unit.mpc.protocol import graphs  # noqa: E402
from unit.server import support  # noqa: E402 - after the extra

from secure_quant.errors import ConfigError  # noqa: E402
from secure_quant.mpc.protocol.bundle import split  # noqa: E402
from secure_quant.transport import InsecurePlaintext, ServerPair, Tls  # noqa: E402
from secure_quant.wire.gen import secure_inference_pb2 as pb  # noqa: E402
from secure_quant.wire.rpc_status import decode_error_info  # noqa: E402
from secure_quant_server.common import (  # noqa: E402
    Budgets,
    GrpcServer,
    Tokens,
    make_token,
)
from secure_quant_server.common.bundles import Bundle  # noqa: E402
from secure_quant_server.common.web import WebFront, methods_of  # noqa: E402
from secure_quant_server.mpc.party import Front  # noqa: E402
from secure_quant_server.options import PartyOptions  # noqa: E402

ALICE, BOB = "alice's token", "bob's token"
TOKENS = Tokens({n: hashlib.sha256(t.encode()).hexdigest() for n, t in (("a", ALICE), ("b", BOB))})
SERVICE = "/secure_quant.v1.SecureInferenceService"
APP = "https://app.example"
STEP = pb.EvaluateLinearRequest(
    model_hash=support.graph().hash, step=0, batch=1, ciphertexts=bytes(7)
)


@asynccontextmanager
async def listening(server: GrpcServer, service: object, **told: object) -> AsyncIterator[WebFront]:
    chosen = {
        "listen": "127.0.0.1:0", "security": server.options.security, "pair": None,
        "plaintext": False, "origins": APP, "has_tokens": True, "request_bytes": 5000,
        "max_connections": 100,
    } | told  # fmt: skip
    methods = methods_of(pb.DESCRIPTOR.services_by_name["SecureInferenceService"], service)
    front = WebFront(server.guard, methods, **chosen)
    await front.start()
    try:
        yield front
    finally:
        await front.stop(0.2)


class Answers:
    """A servicer whose answer is the request's hash, after what a test puts in between."""

    async def GetModel(self, request: pb.GetModelRequest, context: object) -> pb.GetModelResponse:  # noqa: N802
        return pb.GetModelResponse(leveled=pb.LeveledInfo(public_model=request.model_hash.encode()))

    async def EvaluateLinear(self, request: object, context: object) -> object:  # noqa: N802
        left = context.time_remaining()
        if left is not None:
            await asyncio.sleep(30)
        return pb.EvaluateLinearResponse(ciphertexts=hashlib.sha256(request.ciphertexts).digest())

    async def EvaluateModel(self, request: object, context: object) -> object:  # noqa: N802
        raise ValueError("a secret of the server")


@asynccontextmanager
async def calling(front: WebFront, scheme: str = "https") -> AsyncIterator[object]:
    context = ssl.create_default_context(cadata=support.AUTHORITY.pem.decode())
    connector = aiohttp.TCPConnector(ssl=context)
    async with aiohttp.ClientSession(
        f"{scheme}://127.0.0.1:{front.port}", connector=connector
    ) as s:

        async def call(path: str, body: bytes, token: str | None = ALICE, **headers: str):
            told = {"Content-Type": "application/proto", "Connect-Protocol-Version": "1"}
            told |= {name.replace("_", "-"): value for name, value in headers.items()}
            if token is not None:
                told["Authorization"] = f"Bearer {token}"
            method = told.pop("method", "POST")
            async with s.request(method, path, data=body, headers=told) as answer:
                return answer.status, dict(answer.headers), await answer.read()

        yield call


def reason(body: bytes) -> tuple[str, str]:
    told = json.loads(body)
    (detail,) = told["details"]
    assert detail["type"] == "google.rpc.ErrorInfo"
    value = base64.b64decode(detail["value"] + "=" * (-len(detail["value"]) % 4))
    # As in a google.rpc.Status: field 3, an Any of type_url and value.
    url = b"type.googleapis.com/google.rpc.ErrorInfo"
    any_ = b"\x0a" + bytes([len(url)]) + url + b"\x12" + _varint(len(value)) + value
    info = decode_error_info(b"\x1a" + _varint(len(any_)) + any_)
    return told["code"], info.reason


def _varint(n: int) -> bytes:
    return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + _varint(n >> 7)


def test_a_call_and_its_answer_are_plain_protobuf():
    async def test():
        async with (
            support.serving(tokens=TOKENS) as server,
            listening(server, Answers()) as front,
            calling(front) as call,
        ):
            status, headers, body = await call(
                f"{SERVICE}/EvaluateLinear", STEP.SerializeToString()
            )
            assert (status, headers["Content-Type"]) == (200, "application/proto")
            made = pb.EvaluateLinearResponse.FromString(body).ciphertexts
            assert made == hashlib.sha256(bytes(7)).digest()
            assert "Access-Control-Allow-Origin" not in headers
            seen = server.metrics.registry.get_sample_value(
                "secure_quant_calls_total", {"method": f"{SERVICE}/EvaluateLinear", "code": "OK"}
            )
            assert seen == 1

    support.run(test)


def test_pages_of_other_origins_are_refused():
    async def test():
        async with (
            support.serving(tokens=TOKENS) as server,
            listening(server, Answers()) as front,
            calling(front) as call,
        ):
            path = f"{SERVICE}/GetModel"
            asked = {"method": "OPTIONS", "Access_Control_Request_Method": "POST"}
            status, headers, _ = await call(path, b"", None, Origin=APP, **asked)
            assert status == 204
            assert headers["Access-Control-Allow-Origin"] == APP
            assert headers["Access-Control-Allow-Methods"] == "POST"
            assert "authorization" in headers["Access-Control-Allow-Headers"]
            status, headers, _ = await call(path, b"", Origin=APP)
            assert (status, headers["Access-Control-Allow-Origin"]) == (200, APP)
            for told in ({}, asked):
                status, headers, body = await call(path, b"", Origin=f"{APP}.evil", **told)
                assert (status, *reason(body)) == (403, "permission_denied", "PERMISSION_DENIED")
                assert "Access-Control-Allow-Origin" not in headers

    support.run(test)


def test_what_no_browser_of_ours_sends_is_refused():
    async def test():
        async with (
            support.serving(tokens=TOKENS) as server,
            listening(server, Answers()) as front,
            calling(front) as call,
        ):
            path, body = f"{SERVICE}/EvaluateLinear", STEP.SerializeToString()
            assert (await call("/", b""))[0] == 404
            assert (await call("/grpc.health.v1.Health/Check", b""))[0] == 404
            assert (await call(f"{SERVICE}/OpenSession", b""))[0] == 404  # a stream
            assert (await call(path, b"", method="GET"))[0] == 405
            assert (await call(path, b"{}", Content_Type="application/json"))[0] == 415
            for told, code, name in (
                ({"Connect_Protocol_Version": "2"}, 400, "MALFORMED_MESSAGE"),
                ({"Content_Encoding": "gzip"}, 501, "OP_NOT_SUPPORTED"),
                ({"Connect_Timeout_Ms": "-1"}, 400, "MALFORMED_MESSAGE"),
            ):
                status, _, answer = await call(path, body, **told)
                assert (status, reason(answer)[1]) == (code, name)
            status, _, answer = await call(path, b"\xff\xff")
            assert (status, reason(answer)[1]) == (400, "MALFORMED_MESSAGE")

    support.run(test)


def test_the_same_guard_stands_before_the_body():
    async def test():
        async with (
            support.serving(tokens=TOKENS) as server,
            listening(server, Answers()) as front,
            calling(front) as call,
        ):
            path = f"{SERVICE}/EvaluateLinear"
            large = pb.EvaluateLinearRequest(ciphertexts=bytes(6000)).SerializeToString()
            for token in (None, "another"):
                status, _, body = await call(path, large, token)
                assert (status, *reason(body)) == (401, "unauthenticated", "UNAUTHENTICATED")
            status, _, body = await call(path, large)
            assert (status, *reason(body)) == (429, "resource_exhausted", "MESSAGE_TOO_LARGE")

            async def chunked():
                for _ in range(4):
                    yield large[:2000]

            status, _, body = await call(path, chunked())  # without a length
            assert (status, reason(body)[1]) == (429, "MESSAGE_TOO_LARGE")
            body = STEP.SerializeToString()
            status, _, body = await call(path, body, Connect_Timeout_Ms="100")
            assert (status, *reason(body)) == (504, "deadline_exceeded", "DEADLINE_EXCEEDED")
            status, _, body = await call(f"{SERVICE}/EvaluateModel", b"")
            assert (status, *reason(body)) == (500, "internal", "INTERNAL_ERROR")
            assert b"secret" not in body

    support.run(test)


def test_calls_over_both_transports_share_one_bound():
    async def test():
        async with (
            support.serving(tokens=TOKENS, per_client=1, max_calls=2) as server,
            listening(server, Answers()) as front,
            calling(front) as call,
        ):
            path, body = f"{SERVICE}/EvaluateLinear", STEP.SerializeToString()
            slow = asyncio.create_task(call(path, body, Connect_Timeout_Ms="5000"))
            while server.guard._admission.running < 1:
                await asyncio.sleep(0.01)
            status, _, answer = await call(path, body)
            assert (status, reason(answer)[1]) == (429, "OVERLOADED")
            assert (await call(path, body, BOB))[0] == 200
            slow.cancel()  # the browser goes: so does its call
            while server.guard._admission.running:
                await asyncio.sleep(0.01)

    support.run(test)


def test_a_party_that_cannot_listen_for_browsers_listens_for_nobody(tmp_path: Path):
    tokens = tmp_path / "tokens"
    tokens.write_text(make_token("alice")[1])

    async def test():
        with socket.create_server(("127.0.0.1", 0)) as taken:
            options = PartyOptions(
                listen="127.0.0.1:0", security=InsecurePlaintext(), link="127.0.0.1:1",
                dealer="127.0.0.1:1", tokens=str(tokens), http_plaintext=True,
                http_listen=f"127.0.0.1:{taken.getsockname()[1]}",
            )  # fmt: skip
            front = Front([Bundle(split(graphs.mlp())["party1"])], options, None)
            with pytest.raises(ConfigError, match="http_listen"):
                await front.start()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", front._grpc.port)

    support.run(test)


def test_connections_are_bounded_and_silent_ones_cut(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("secure_quant_server.common.web.SILENT_S", ample(0.5))

    async def test():
        async with (
            support.serving(security=InsecurePlaintext()) as server,
            listening(server, Answers(), has_tokens=False, max_connections=2) as front,
        ):
            first, _ = await asyncio.open_connection("127.0.0.1", front.port)
            second, half = await asyncio.open_connection("127.0.0.1", front.port)
            half.write(b"POST / HTTP/1.1\r\nHost: x\r\n")
            while len(front._server.connections) < 2:
                await asyncio.sleep(0.01)
            third, _ = await asyncio.open_connection("127.0.0.1", front.port)
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await third.readexactly(1)
            for silent in (first, second):
                assert await silent.read() == b""

    support.run(test)


HOSTILE = {
    "garbage": b"\x00\xff" * 500 + b"\r\n\r\n",
    "a long line": b"POST /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 500 + b"\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "both framings": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a wrong chunk": None,
    "half a body": None,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_peer_that_breaks_http_leaves_nothing_behind(kind: str, caplog: pytest.LogCaptureFixture):
    """No call stays open, nothing unforeseen is logged, and the next call is answered."""
    head = (
        f"POST {SERVICE}/EvaluateLinear HTTP/1.1\r\nHost: x\r\nContent-Type: application/proto\r\n"
        f"Authorization: Bearer {ALICE}\r\n"
    ).encode()
    sent = HOSTILE[kind]
    if kind == "a wrong chunk":
        sent = head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n"
    elif kind == "half a body":
        sent = head + b"Content-Length: 100\r\n\r\nabc"

    async def test():
        async with (
            support.serving(security=InsecurePlaintext(), tokens=TOKENS) as server,
            listening(server, Answers()) as front,
            calling(front, "http") as call,
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
            writer.write(sent)
            if kind == "half a body":
                while not server.guard._admission.running:
                    await asyncio.sleep(0.01)
                writer.close()
            else:
                answer = await reader.readline()
                assert answer.split()[1:2] in ([b"400"], [b"404"], []), answer
                writer.close()
            while server.guard._admission.running:
                await asyncio.sleep(0.01)
            body = STEP.SerializeToString()
            assert (await call(f"{SERVICE}/EvaluateLinear", body))[0] == 200

    support.run(test)
    assert [each for each in caplog.records if each.exc_info and each.levelname == "ERROR"] == []


def test_a_pair_of_its_own_is_shown_instead():
    cert, key = support.AUTHORITY.issue("party1", hosts=["127.0.0.1", "app.example"])

    async def test():
        async with (
            support.serving(tokens=TOKENS) as server,
            listening(server, Answers(), pair=ServerPair(cert, key)) as front,
        ):
            context = ssl.create_default_context(cadata=support.AUTHORITY.pem.decode())
            _, writer = await asyncio.open_connection("127.0.0.1", front.port, ssl=context)
            shown = writer.get_extra_info("ssl_object").getpeercert()["subjectAltName"]
            assert ("DNS", "app.example") in shown
            writer.close()

    support.run(test)


@pytest.mark.parametrize(
    ("told", "what"),
    [
        ({"has_tokens": False}, "http_listen"),
        ({"plaintext": True, "listen": "0.0.0.0:0"}, "http_plaintext"),
        ({"origins": "https://app.example/page"}, "http_origins"),
        ({"origins": "app.example"}, "http_origins"),
        ({"listen": "7100"}, "http_listen"),
    ],
)
def test_settings_that_would_expose_are_refused(told: dict[str, object], what: str):
    async def test():
        async with support.serving(tokens=TOKENS, budgets=Budgets(None)) as server:
            with pytest.raises(ConfigError, match=what):
                async with listening(server, Answers(), **told):
                    pass

    support.run(test)


def test_plaintext_on_loopback_asks_for_tokens_all_the_same():
    async def test():
        async with (
            support.serving(tokens=TOKENS) as server,
            listening(server, Answers(), plaintext=True) as front,
            calling(front, "http") as call,
        ):
            assert isinstance(server.options.security, Tls)
            assert (await call(f"{SERVICE}/GetModel", b""))[0] == 200
            assert (await call(f"{SERVICE}/GetModel", b"", None))[0] == 401

    support.run(test)
