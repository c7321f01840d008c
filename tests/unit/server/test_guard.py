"""What every call passes: certificate, role, token, room; and what a failure may say."""

import asyncio
import gc
import http.client
import json
import logging
from collections.abc import Awaitable, Callable

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from patience import ample
from unit.server.support import calling, eventually, graph, run, serving, tls

from secure_quant.errors import (
    BudgetExceeded,
    ConfigError,
    InternalError,
    MalformedMessage,
    MessageTooLarge,
    ModelNotFound,
    Overloaded,
    PeerUnavailable,
    PermissionDenied,
    SecureQuantError,
    Unauthenticated,
)
from secure_quant.transport import InsecurePlaintext, Limits, Tls
from secure_quant.transport.certs import Authority
from secure_quant.wire import raised
from secure_quant.wire.gen.secure_inference_pb2 import EvaluateLinearRequest, GetModelRequest
from secure_quant_server.common import Access, Budgets, Tokens, make_token
from secure_quant_server.common.admission import Admission
from secure_quant_server.common.guard import Guard
from secure_quant_server.common.metrics import Metrics


def request(data: bytes = b"abc", **fields: int) -> EvaluateLinearRequest:
    return EvaluateLinearRequest(
        model_hash=graph().hash, ciphertexts=data, **({"step": 0, "batch": 1} | fields)
    )


async def error_of(call: Awaitable[object]) -> SecureQuantError:
    with pytest.raises(grpc.RpcError) as caught:
        await call
    return raised(caught.value)


def test_a_certified_client_is_answered() -> None:
    async def test() -> None:
        async with serving() as server, calling(server) as (stub, _):
            assert (await stub.EvaluateLinear(request(), timeout=ample(5))).ciphertexts == b"cba"
            info = (await stub.GetModel(GetModelRequest(), timeout=ample(5))).info
            assert info.model_hash == graph().hash

    run(test)


@pytest.mark.parametrize("role", ["party0", "party1", "dealer", "he"])
def test_other_roles_are_refused(role: str) -> None:
    async def test() -> None:
        async with serving() as server, calling(server, tls(role)) as (stub, _):
            error = await error_of(stub.GetModel(GetModelRequest(), timeout=ample(5)))
            assert type(error) is PermissionDenied
            assert role in str(error)

    run(test)


@pytest.mark.parametrize(
    ("security", "role"),
    [
        (tls("client/eve", Authority()), "he"),  # another authority on both ends
        (tls("client/alice"), "dealer"),  # the server is not who was asked for
        (InsecurePlaintext(), "he"),
    ],
    ids=["authority", "server role", "plaintext"],
)
def test_connections_that_must_not_come_about(security: Tls, role: str) -> None:
    async def test() -> None:
        async with serving() as server, calling(server, security, role) as (stub, _):
            error = await error_of(stub.GetModel(GetModelRequest(), timeout=ample(5)))
            assert type(error) is PeerUnavailable

    run(test)


def test_a_client_without_certificate_is_refused() -> None:
    async def test() -> None:
        async with serving() as server:
            credentials = grpc.ssl_channel_credentials(tls("client").ca)
            options = [("grpc.ssl_target_name_override", "he.secure-quant.internal")]
            target = f"127.0.0.1:{server.port}"
            async with grpc.aio.secure_channel(target, credentials, options) as channel:
                call = channel.unary_unary("/secure_quant.v1.SecureInferenceService/GetModel")
                assert type(await error_of(call(b"", timeout=ample(5)))) is PeerUnavailable

    run(test)


def test_a_client_s_certificate_cannot_impersonate_the_server() -> None:
    """Even by an address in it: the key usage says client only."""

    async def test() -> None:
        async with serving(security=tls("client/eve")) as server, calling(server) as (stub, _):
            error = await error_of(stub.GetModel(GetModelRequest(), timeout=ample(5)))
            assert type(error) is PeerUnavailable

    run(test)


def test_named_errors_keep_their_name() -> None:
    async def test() -> None:
        async with serving() as server, calling(server) as (stub, _):
            unknown = GetModelRequest(model_hash="0" * 64)
            assert type(await error_of(stub.GetModel(unknown))) is ModelNotFound
            for wrong in (request(step=2), request(step=2**32 - 1), request(batch=0)):
                assert type(await error_of(stub.EvaluateLinear(wrong))) is MalformedMessage

    run(test)


@pytest.mark.parametrize("error", [MalformedMessage("x"), ValueError("unforeseen")])
def test_a_refused_request_is_let_go_at_once(error: Exception) -> None:
    """Not when the collector comes by: gRPC keeps what a call was aborted with in a circle."""

    async def refuse(_: bytes) -> bytes:
        try:
            raise KeyError
        except KeyError as cause:
            raise type(error)(*error.args) from cause

    def requests() -> int:
        return sum(type(each) is EvaluateLinearRequest for each in gc.get_objects())

    async def test() -> None:
        bodies = [each.SerializeToString() for each in (request(), request(batch=0))]
        async with serving(refuse) as server, calling(server) as (_, channel):
            method = channel.unary_unary("/secure_quant.v1.SecureInferenceService/EvaluateLinear")
            gc.collect()
            gc.disable()
            others = requests()  # what other tests of this process left
            try:
                for body in 10 * bodies:
                    await error_of(method(body, timeout=ample(5)))
                await eventually(lambda: requests() <= others + 1)
            finally:
                gc.enable()

    run(test)


def test_an_unforeseen_exception_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(data: bytes) -> bytes:
        raise RuntimeError(f"secret {data!r}")

    async def test() -> None:
        async with serving(fail) as server, calling(server) as (stub, _):
            error = await error_of(stub.EvaluateLinear(request(b"s3cret")))
            assert type(error) is InternalError
            assert "s3cret" not in str(error)
            incident = error.hint.split()[1]
            (record,) = [r for r in caplog.records if r.getMessage() == "call failed"]
            assert record.fields["incident"] == incident
            assert record.fields["error"] == "RuntimeError"
            assert "s3cret" not in json.dumps(record.fields)
            # The server goes on.
            await stub.GetModel(GetModelRequest(), timeout=ample(5))

    with caplog.at_level(logging.DEBUG, "secure_quant"):
        run(test)


def test_a_caller_that_leaves_while_it_is_answered_is_no_failure(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cancels just when its status is on the way: gRPC then raises where that is sent."""

    async def gone(*_: object) -> None:
        raise grpc.aio.InternalError("Failed grpc_call_start_batch")

    class Gone:
        abort = gone

        def invocation_metadata(self) -> tuple[()]:
            return ()

    async def test() -> None:
        async with serving(gone) as server, calling(server) as (stub, _):
            with pytest.raises(grpc.aio.AioRpcError):  # the servicer's own abort
                await stub.EvaluateLinear(request(), timeout=ample(5))
            for raised in (MalformedMessage("x"), RuntimeError("x")):
                guard = Guard(Access({}), Metrics(), Admission(
                    max_calls=1, per_client=1, message_bytes=1
                ), watch_s=1)  # fmt: skip
                monkeypatch.setattr(Access, "admit", lambda *_, raised=raised: _raise(raised))
                with pytest.raises(asyncio.CancelledError):  # which gRPC keeps quiet about
                    async with guard.admitted("/a/b", Gone()):
                        pass
                monkeypatch.undo()

    with caplog.at_level(logging.DEBUG):
        run(test)
    failed = [r for r in caplog.records if r.getMessage() == "call failed"]
    assert [r.fields["error"] for r in failed] == ["RuntimeError"]


def _raise(error: Exception) -> None:
    raise error


def test_tokens() -> None:
    token, line = make_token("bob")
    name, digest = line.split()
    tokens = Tokens({name: digest})

    async def test() -> None:
        async with serving(tokens=tokens) as server, calling(server) as (stub, channel):
            for metadata in (
                None,
                (("authorization", token),),
                (("authorization", "Bearer " + token[:-1]),),
                (("authorization", "Bearer "),),
            ):
                error = await error_of(stub.GetModel(GetModelRequest(), metadata=metadata))
                assert type(error) is Unauthenticated
                assert token not in str(error)
            ours = (("authorization", f"Bearer {token}"),)
            await stub.GetModel(GetModelRequest(), metadata=ours, timeout=ample(5))
            # Health needs a certificate only.
            health = health_pb2_grpc.HealthStub(channel)
            await health.Check(health_pb2.HealthCheckRequest(), timeout=ample(5))

    run(test)


def test_a_spent_budget_refuses_and_another_client_is_served() -> None:
    async def test() -> None:
        async with serving(budgets=Budgets(5)) as server:
            async with calling(server) as (stub, _):
                await stub.EvaluateLinear(request(batch=3))
                assert type(await error_of(stub.EvaluateLinear(request(batch=3)))) is BudgetExceeded
                await stub.EvaluateLinear(request(batch=3, step=1))  # each layer has its own
            async with calling(server, tls("client/bob")) as (stub, _):
                await stub.EvaluateLinear(request(batch=5))

    run(test)


def test_one_call_too_many_is_refused_at_once() -> None:
    held = asyncio.Event()

    async def wait(data: bytes) -> bytes:
        await held.wait()
        return data

    async def test() -> None:
        async with serving(wait, max_calls=2) as server, calling(server) as (stub, _):
            calls = [stub.EvaluateLinear(request(), timeout=ample(10)) for _ in range(3)]
            done, _ = await asyncio.wait(
                [asyncio.ensure_future(_finished(call)) for call in calls],
                return_when=asyncio.FIRST_COMPLETED,
            )
            (error,) = [task.result() for task in done]
            assert type(error) is Overloaded
            held.set()

    run(test)


async def _finished(call: Awaitable[object]) -> SecureQuantError | None:
    try:
        await call
    except grpc.RpcError as error:
        return raised(error)
    return None


def test_a_message_above_the_limit_is_refused() -> None:
    async def test() -> None:
        limits = Limits(message_bytes=100_000)
        async with serving(limits=limits) as server, calling(server) as (stub, _):
            error = await error_of(stub.EvaluateLinear(request(bytes(100_001))))
            assert type(error) is MessageTooLarge
            await stub.EvaluateLinear(request(bytes(90_000)))

    run(test)


def test_health_follows_the_server_and_any_role_may_ask() -> None:
    async def test() -> None:
        async with serving() as server, calling(server, tls("party1")) as (_, channel):
            stub, ask = health_pb2_grpc.HealthStub(channel), health_pb2.HealthCheckRequest()
            statuses = []
            for serving_now in (None, True, False):
                if serving_now is not None:
                    server.set_serving(serving_now)
                statuses.append((await stub.Check(ask, timeout=ample(5))).status)
            assert statuses == [2, 1, 2]
            watch = stub.Watch(ask, timeout=ample(5))
            assert (await watch.read()).status == 2
            server.set_serving(True)
            assert (await watch.read()).status == 1
            watch.cancel()

    run(test)


def test_reflection_lists_the_services() -> None:
    async def test() -> None:
        async with serving() as server, calling(server) as (_, channel):
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            asked = reflection_pb2.ServerReflectionRequest(list_services="")
            stream = stub.ServerReflectionInfo(iter([asked]), timeout=ample(5))
            answer = await stream.read()
            names = {service.name for service in answer.list_services_response.service}
            assert {"secure_quant.v1.SecureInferenceService", "grpc.health.v1.Health"} <= names
            asked = reflection_pb2.ServerReflectionRequest(
                file_containing_symbol="secure_quant.v1.SecureInferenceService"
            )
            answer = await stub.ServerReflectionInfo(iter([asked]), timeout=ample(5)).read()
            assert len(answer.file_descriptor_response.file_descriptor_proto) >= 1

    run(test)


def test_metrics_count_calls_and_hold_no_caller(unused_port: Callable[[], int]) -> None:
    address = f"127.0.0.1:{unused_port()}"

    async def test() -> None:
        async with serving(metrics=address) as server, calling(server) as (stub, _):
            await stub.GetModel(GetModelRequest())
            await error_of(stub.EvaluateLinear(request(batch=0)))
            page = await asyncio.to_thread(_get, address)
            method = "/secure_quant.v1.SecureInferenceService"
            assert f'calls_total{{code="OK",method="{method}/GetModel"}} 1.0' in page
            failed = f'calls_total{{code="INVALID_ARGUMENT",method="{method}/EvaluateLinear"}} 1.0'
            assert failed in page
            assert "alice" not in page

    run(test)


def _get(address: str) -> str:
    connection = http.client.HTTPConnection(address, timeout=ample(5))
    connection.request("GET", "/metrics")
    return connection.getresponse().read().decode()


def test_a_taken_port_is_named() -> None:
    async def test() -> None:
        async with serving() as server:
            with pytest.raises(ConfigError, match="listen"):
                async with serving(listen=f"127.0.0.1:{server.port}"):
                    pass

    run(test)
