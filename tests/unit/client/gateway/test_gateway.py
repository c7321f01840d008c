"""The gateway over its protocol, before a server in this process; HTTP where aiohttp is there."""

from __future__ import annotations

import asyncio
import json
from http.client import HTTPConnection
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from patience import ample
from unit.client.gateway.asking import DATATYPES, GRAPH, answered, asking, equal, given, ran
from unit.client.gateway.house import behind, gateway

from plain_insecure.model import MAX_BATCH
from secure_quant import __version__
from secure_quant.errors import (
    Overloaded,
)
from secure_quant.wire.gen import open_inference_pb2 as pb
from secure_quant.wire.gen.open_inference_pb2_grpc import GRPCInferenceServiceStub
from secure_quant_client.gateway.serve import Gateway

Code = grpc.StatusCode


def stub_at(started: Gateway) -> tuple[grpc.aio.Channel, Any]:
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{started.port}")
    return channel, GRPCInferenceServiceStub(channel)


async def http(
    port: int, path: str, document: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """What curl would see."""

    def ask() -> tuple[int, dict[str, str], bytes]:
        connection = HTTPConnection("127.0.0.1", port, timeout=ample(20))
        body = json.dumps(document) if document is not None else None
        connection.request("POST" if body else "GET", path, body, headers or {})
        response = connection.getresponse()
        found = response.status, dict(response.getheaders()), response.read()
        connection.close()
        return found

    return await asyncio.to_thread(ask)


def test_metadata_and_answers_over_grpc() -> None:
    async def test() -> None:
        async with behind(GRAPH) as server, gateway(server.target) as started:
            channel, stub = stub_at(started)
            assert (await stub.ServerLive(pb.ServerLiveRequest())).live
            assert (await stub.ServerReady(pb.ServerReadyRequest())).ready
            assert (await stub.ModelReady(pb.ModelReadyRequest(name="model"))).ready
            about = await stub.ServerMetadata(pb.ServerMetadataRequest())
            assert (about.name, about.version) == ("secure-quant", __version__)
            found = await stub.ModelMetadata(pb.ModelMetadataRequest(name="model"))
            assert found.versions == [GRAPH.hash]
            assert {each.name: each.datatype for each in found.inputs} == DATATYPES
            assert [(each.name, list(each.shape)) for each in found.outputs] == [
                (port.name, [-1, *port.shape]) for port in GRAPH.output_ports
            ]
            response = await stub.ModelInfer(asking(given(), id="7", model_version=GRAPH.hash))
            assert (response.model_name, response.id) == ("model", "7")
            assert response.model_version == GRAPH.hash
            equal(answered(response), given())
            typed = asking(given())
            del typed.raw_input_contents[:]
            for each, name in zip(typed.inputs, given(), strict=True):
                fields = {"BOOL": "bool_contents", "INT64": "int64_contents"}
                field = fields.get(DATATYPES[name], "fp32_contents")
                getattr(each.contents, field).extend(given()[name].reshape(-1).tolist())
            response = await stub.ModelInfer(typed)
            assert not response.raw_output_contents
            equal(answered(response), given())
            two = asking(given(), outputs=[{"name": "read"}, {"name": "logits"}])
            assert list(answered(await stub.ModelInfer(two))) == ["read", "logits"]
            await channel.close()

    ran(test)


def test_metadata_and_answers_over_http() -> None:
    pytest.importorskip("aiohttp")

    async def test() -> None:
        options = {"listen": None, "http_listen": "localhost:0", "models": {"m": GRAPH.hash}}
        async with behind(GRAPH) as server, gateway(server.target, **options) as started:
            port = started.http_port
            for path, want in (
                ("/v2/health/live", {"live": True}),
                ("/v2/health/ready", {"live": True, "ready": True}),
                ("/v2/models/m/ready", {"name": "m", "ready": True}),
                (f"/v2/models/m/versions/{GRAPH.hash}/ready", {"name": "m", "ready": True}),
            ):
                status, _, body = await http(port, path)
                assert (status, json.loads(body)) == (200, want)
            assert json.loads((await http(port, "/v2"))[2])["extensions"] == ["binary_tensor_data"]
            about = json.loads((await http(port, "/v2/models/m"))[2])
            assert {each["name"]: each["datatype"] for each in about["inputs"]} == DATATYPES
            inputs = [
                {"name": name, "datatype": DATATYPES[name], "shape": array.shape,
                 "data": array.tolist()}
                for name, array in given().items()
            ]  # fmt: skip
            status, headers, body = await http(port, "/v2/models/m/infer", {"inputs": inputs})
            assert (status, headers["Content-Type"]) == (200, "application/json")
            outputs = json.loads(body)["outputs"]
            found = {
                each["name"]: np.float32(each["data"]).reshape(each["shape"]) for each in outputs
            }
            equal(found, given())
            ask = {"inputs": inputs, "parameters": {"binary_data_output": True}}
            status, headers, body = await http(port, "/v2/models/m/infer", ask)
            size = int(headers["Inference-Header-Content-Length"])
            raw, found = body[size:], {}
            for each in json.loads(body[:size])["outputs"]:
                length = each["parameters"]["binary_data_size"]
                part, raw = raw[:length], raw[length:]
                found[each["name"]] = np.frombuffer(part, "<f4").reshape(each["shape"])
            equal(found, given())
            assert raw == b""

    ran(test)


def test_requests_that_wait_go_together_up_to_the_servers_batch() -> None:
    async def test() -> None:
        async with behind(GRAPH) as server, gateway(server.target, at_once=1) as started:
            channel, stub = stub_at(started)
            server.gate.clear()
            sizes = [1, 2, 30, 30, 3, 70, 1]
            calls = [
                asyncio.ensure_future(stub.ModelInfer(asking(given(size, seed))))
                for seed, size in enumerate(sizes)
            ]
            (joiner,) = [each.joiner for each in started.models.values()]
            while joiner is None or joiner.requests < len(sizes):
                await asyncio.sleep(0.01)
                (joiner,) = [each.joiner for each in started.models.values()]
            server.gate.set()
            for seed, (size, call) in enumerate(zip(sizes, calls, strict=True)):
                equal(answered(await call), given(size, seed))
            # The first found nobody before it; of the others as many as fit, 70 in two parts.
            assert sum(server.samples) == sum(sizes)
            assert max(server.samples) <= MAX_BATCH
            assert joiner.inferences < len(sizes)
            assert len(server.samples) == joiner.inferences + 1
            await channel.close()

    ran(test)


def test_who_has_gone_takes_no_part() -> None:
    async def test() -> None:
        async with behind(GRAPH) as server, gateway(server.target, at_once=1) as started:
            channel, stub = stub_at(started)
            await stub.ModelInfer(asking(given(1)))
            server.gate.clear()
            first = asyncio.ensure_future(stub.ModelInfer(asking(given(1))))
            while len(server.samples) < 2:
                await asyncio.sleep(0.01)
            with pytest.raises(grpc.aio.AioRpcError) as found:
                await stub.ModelInfer(asking(given(40)), timeout=ample(0.5))
            assert found.value.code() is Code.DEADLINE_EXCEEDED
            last = asyncio.ensure_future(stub.ModelInfer(asking(given(2))))
            while started.models["model"].joiner.requests < 4:
                await asyncio.sleep(0.01)
            server.gate.set()
            equal(answered(await last), given(2))
            await first
            assert server.samples == [1, 1, 2]
            await channel.close()

    ran(test)


BAD = {
    "a shape": (lambda: given() | {"row": np.zeros((3, 9), np.float32)}, "'row'"),
    "a number of samples": (lambda: given() | {"row": np.zeros((2, 10), np.float32)}, "samples"),
    "NaN": (lambda: given() | {"row": np.full((3, 10), np.nan, np.float32)}, "'row'"),
    "an index": (lambda: given() | {"words": np.full((3, 2), 20)}, "'words'"),
    "one too few": (lambda: {"row": given()["row"]}, "'picture'"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_input_is_named_and_the_next_one_served(what: str) -> None:
    make, named = BAD[what]

    async def test() -> None:
        async with behind(GRAPH) as server, gateway(server.target) as started:
            channel, stub = stub_at(started)
            with pytest.raises(grpc.aio.AioRpcError) as found:
                await stub.ModelInfer(asking(make()))
            assert found.value.code() is Code.INVALID_ARGUMENT
            assert named in (found.value.details() or "")
            assert server.samples == []
            equal(answered(await stub.ModelInfer(asking(given()))), given())
            await channel.close()

    ran(test)


def test_errors_of_requests_over_http() -> None:
    pytest.importorskip("aiohttp")

    async def test() -> None:
        options = {"http_listen": "127.0.0.1:0", "listen": None}
        async with behind(GRAPH) as server, gateway(server.target, **options) as started:
            port, infer = started.http_port, "/v2/models/model/infer"
            for path, document, headers, status, said in (
                (infer, {}, {}, 400, "inputs"),
                (infer, {"inputs": [{"name": "row", "datatype": "FP32", "shape": [1, 10],
                                     "data": [1] * 9}]}, {}, 400, "'row'"),
                ("/v2/models/other/infer", {}, {}, 404, "ModelNotFound: model: got 'other'"),
                ("/v2/models/model/versions/1/infer", {"inputs": [{
                    "name": "row", "datatype": "FP32", "shape": [1], "data": [1]}]}, {}, 404,
                 "version of model"),
                ("/v2/models/other", None, {}, 404, "expected 'model'"),
                ("/v2/models/other/ready", None, {}, 404, "'other'"),
                ("/v3", None, {}, 404, "Not Found"),
                (infer, None, {}, 405, "Not Allowed"),
                (infer, {}, {"Origin": "https://elsewhere.example"}, 403, "web page"),
                (infer, {}, {"Content-Encoding": "gzip"}, 400, ""),
                (infer, {}, {"Inference-Header-Content-Length": "9"}, 400, "Content-Length"),
            ):  # fmt: skip
                found, _, body = await http(port, path, document, headers)
                assert found == status, (path, body)
                assert said in json.loads(body)["error"], body
            assert (await http(port, "/v2/health/ready"))[0] == 200

    ran(test)


@pytest.mark.parametrize(
    ("trouble", "code"), [("budget", Code.RESOURCE_EXHAUSTED), ("cut", Code.INTERNAL),
                          ("full", Code.RESOURCE_EXHAUSTED), ("bug", Code.INTERNAL)],
)  # fmt: skip
def test_what_the_servers_refuse_or_answer_wrongly_is_told_apart(trouble: str, code: Any) -> None:
    async def test() -> None:
        budget = 4 if trouble == "budget" else None
        async with behind(GRAPH, budget=budget) as server, gateway(server.target) as started:
            channel, stub = stub_at(started)
            equal(answered(await stub.ModelInfer(asking(given()))), given())
            server.cut = int(trouble == "cut")
            server.error = {"full": Overloaded("calls"), "bug": KeyError("a secret")}.get(trouble)
            with pytest.raises(grpc.aio.AioRpcError) as found:
                await stub.ModelInfer(asking(given()))
            assert found.value.code() is code
            assert "secret" not in (found.value.details() or "")
            names = {"budget": "BudgetExceeded", "cut": "MalformedMessage", "full": "Overloaded",
                     "bug": "InternalError"}  # fmt: skip
            assert (found.value.details() or "").startswith(names[trouble])
            server.cut, server.error = 0, None
            if trouble != "budget":
                equal(answered(await stub.ModelInfer(asking(given()))), given())
            await channel.close()

    ran(test)


def test_servers_that_are_away_and_come_back() -> None:
    async def test() -> None:
        async with behind(GRAPH) as first:
            target = first.target
        async with gateway(target) as started:
            channel, stub = stub_at(started)
            assert (await stub.ServerLive(pb.ServerLiveRequest())).live
            assert not (await stub.ServerReady(pb.ServerReadyRequest())).ready
            with pytest.raises(grpc.aio.AioRpcError) as found:
                await stub.ModelInfer(asking(given()))
            assert found.value.code() is Code.UNAVAILABLE
            async with behind(GRAPH, listen=target):
                until = asyncio.get_running_loop().time() + ample(20)
                while not (await stub.ServerReady(pb.ServerReadyRequest())).ready:
                    assert asyncio.get_running_loop().time() < until
                    await asyncio.sleep(0.1)
                equal(answered(await stub.ModelInfer(asking(given()))), given())
            await channel.close()

    ran(test)


def test_more_than_may_wait_is_refused() -> None:
    async def test() -> None:
        options = {"at_once": 1, "pending": 1}
        async with behind(GRAPH) as server, gateway(server.target, **options) as started:
            joiner = (await started.models["model"]._connected())[1]
            server.gate.clear()
            q = np.zeros((1, *GRAPH.input.shape), np.int8)
            first = asyncio.ensure_future(joiner.infer(q, ample(20)))
            while not server.samples:
                await asyncio.sleep(0.01)
            second = asyncio.ensure_future(joiner.infer(q, ample(20)))
            await asyncio.sleep(0)
            with pytest.raises(Overloaded, match="requests that wait"):
                await joiner.infer(q, ample(20))
            server.gate.set()
            np.testing.assert_array_equal(await first, await second)

    ran(test)


def test_a_request_that_is_no_message_is_named_over_grpc() -> None:
    async def test() -> None:
        async with behind(GRAPH) as server, gateway(server.target) as started:
            channel, stub = stub_at(started)
            for method in ("ModelInfer", "ServerReady", "ModelMetadata"):
                call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
                for body in (b"\xff" * 30, b"\x0a\xff\xff\xff\xff\x0f"):
                    with pytest.raises(grpc.RpcError) as caught:
                        await call(body, timeout=ample(5))
                    assert caught.value.code() is Code.INVALID_ARGUMENT
                    assert "MalformedMessage" in caught.value.details()
            assert (await stub.ServerReady(pb.ServerReadyRequest(), timeout=ample(5))).ready
            await channel.close()

    ran(test)


HTTP = b" HTTP/1.1\r\nHost: x\r\n"
HALF = HTTP + b"Content-Length: 9\r\n\r\n{}"
BROKEN = {
    "no method": b"FOO /" + HTTP + b"\r\n",
    "a long line": b"POST /" + b"m" * 9000 + HTTP + b"\r\n",
    "half a body": b"POST /v2/models/model/infer" + HALF,
    "half a body of nothing": b"POST /x" + HALF,
    "half a body read by nobody": b"PUT /v2" + HALF,
    "an encoding": b"PUT /v2" + HTTP + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nabcde",
    "a chunk": b"POST /x" + HTTP + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n",
}


def test_who_breaks_http_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("aiohttp")

    async def test() -> None:
        http_listen = {"http_listen": "127.0.0.1:0"}
        async with behind(GRAPH) as server, gateway(server.target, **http_listen) as started:
            for kind, sent in BROKEN.items():
                reader, writer = await asyncio.open_connection("127.0.0.1", started.http_port)
                writer.write(sent)
                if kind.startswith("half"):
                    writer.write_eof()
                await reader.read()
                writer.close()
            code, _, _ = await http(started.http_port, "/v2/health/live")
            assert code == 200

    ran(test)
    said = [(each.getMessage(), each.exc_info) for each in caplog.records if each.levelno >= 30]
    assert said == []


def test_bodies_that_do_not_come_hold_up_nobody(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("aiohttp")
    inputs = [
        {"name": name, "datatype": DATATYPES[name], "shape": each.shape, "data": each.tolist()}
        for name, each in given().items()
    ]
    head = b"POST /v2/models/model/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"

    async def test() -> None:
        http_listen = {"http_listen": "127.0.0.1:0"}
        async with behind(GRAPH) as server, gateway(server.target, **http_listen) as started:
            idle = []
            for _ in range(20):
                _, writer = await asyncio.open_connection("127.0.0.1", started.http_port)
                writer.write(head)
                idle.append(writer)
            await asyncio.sleep(0.2)
            path = "/v2/models/model/infer"
            code, _, _ = await http(started.http_port, path, {"inputs": inputs})
            assert code == 200
            for writer in idle:
                writer.transport.abort()
            await asyncio.sleep(0.2)
            code, _, _ = await http(started.http_port, path, {"inputs": inputs})
            assert code == 200

    ran(test)
    assert not [each for each in caplog.records if each.getMessage() == "request failed"]
