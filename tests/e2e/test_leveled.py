"""A leveled model over gRPC: one round trip, within the stated error, and what breaks is named."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from e2e.he_server import HeServerProcess, inputs, lenet
from patience import ample
from unit.he.leveled.models import extremes, random_model

from secure_quant import reference
from secure_quant.errors import (
    BudgetExceeded,
    HashMismatch,
    MalformedMessage,
    ModelNotFound,
    PermissionDenied,
    SessionNotFound,
)
from secure_quant.he.leveled.bundle import load_client, split
from secure_quant.he.leveled.wire import key_bytes, request_bytes, response_bytes
from secure_quant.transport import sync_channel
from secure_quant.wire import raised
from secure_quant.wire.gen.secure_inference_pb2 import EvaluateModelRequest, OpenSessionRequest
from secure_quant.wire.gen.secure_inference_pb2_grpc import SecureInferenceServiceStub
from secure_quant_cli.main import main
from secure_quant_client import AsyncLeveledClient, HeClient, LeveledClient
from secure_quant_client.leveled.keys import LeveledKeys

MODEL = random_model((9, 6, 3), seed=1)
BUNDLES = split(MODEL)
PLAN = load_client(BUNDLES["client"])
UNKNOWN = b"?" * 16
"""A session that the server does not know, as after its restart."""


class Server(HeServerProcess):
    """Serves an integer model as well if one is given."""

    def __init__(self, directory: Path, *graphs: Any, **options: Any) -> None:
        super().__init__(directory, *graphs, **options)
        path = directory / "leveled.sqb"
        path.write_bytes(BUNDLES["server"])
        self._options["bundles"].append(str(path))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("leveled")) as running:
        yield running


def client_of(server: Server, **options: Any) -> LeveledClient:
    return LeveledClient(server.target, tls=server.tls(), **options)


def test_answers_are_within_the_bound_and_cost_what_was_promised(server: Server) -> None:
    x = extremes(MODEL)
    with client_of(server, expected_hash=MODEL.hash) as client:
        y, stats = client.infer_with_stats(x)
        assert np.abs(y - MODEL.reference(x)).max() <= client.error_bound
        assert (stats.rounds, stats.samples) == (1, len(x))
        assert stats.bytes_up == len(x) * request_bytes(PLAN)
        assert stats.bytes_down == len(x) * response_bytes(PLAN)
        client.infer(x[:1])
        assert client.key_bytes_up == key_bytes(PLAN)  # once a session
        client.renew()
        assert np.abs(client.infer(x[3:4]) - y[3]).max() <= 2 * client.error_bound
        assert client.key_bytes_up == 2 * key_bytes(PLAN)
        client._sessions.current.id = UNKNOWN
        assert np.abs(client.infer(x[3:4]) - y[3]).max() <= 2 * client.error_bound
        assert client.key_bytes_up == 3 * key_bytes(PLAN)


def test_the_asyncio_client_gives_the_same(server: Server) -> None:
    x = extremes(MODEL)

    async def use() -> None:
        client = AsyncLeveledClient(server.target, tls=server.tls(), expected_hash=MODEL.hash)
        async with client:
            await client.prepare()
            assert client.key_bytes_up == key_bytes(PLAN)
            both = await asyncio.gather(client.infer_with_stats(x), client.infer_with_stats(x[:1]))
            bound = await client.error_bound()
            for y, stats in both:
                assert np.abs(y - MODEL.reference(x)[: len(y)]).max() <= bound
                assert stats.bytes_up == len(y) * request_bytes(PLAN)
            assert client.key_bytes_up == key_bytes(PLAN)
            await client.renew()
            assert (await client.infer(x[:1])).shape == (1, 3)
            assert client.key_bytes_up == 2 * key_bytes(PLAN)
            client._sessions.current.id = UNKNOWN
            assert (await client.infer(x[:1])).shape == (1, 3)
            assert client.key_bytes_up == 3 * key_bytes(PLAN)

    asyncio.run(use())


def test_two_clients_take_turns_on_one_worker(server: Server) -> None:
    x = extremes(MODEL)[4:6]
    with client_of(server) as first, client_of(server) as second:
        for _ in range(2):
            for client in (first, second):
                error = np.abs(client.infer(x) - MODEL.reference(x)).max()
                assert error <= client.error_bound
        assert first.key_bytes_up == key_bytes(PLAN)


def test_another_model_or_role_is_refused(server: Server) -> None:
    with client_of(server, expected_hash="0" * 64) as client, pytest.raises(ModelNotFound):
        client.infer(np.zeros((1, 9)))
    stranger = LeveledClient(server.target, tls=server.tls("dealer"))
    with stranger, pytest.raises(PermissionDenied):
        stranger.infer(np.zeros((1, 9)))
    with HeClient(server.target, tls=server.tls()) as client, pytest.raises(MalformedMessage):
        _ = client.graph
    client = HeClient(server.target, tls=server.tls(), expected_hash=MODEL.hash)
    with client, pytest.raises(HashMismatch):
        _ = client.graph


def test_workers_have_a_limit_on_memory(server: Server) -> None:
    for pid in server.workers():
        limits = Path(f"/proc/{pid}/limits").read_text()
        (line,) = [x for x in limits.splitlines() if x.startswith("Max address space")]
        assert int(line.split()[3]) <= 6 * 2**30


def test_the_command_infers(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x, out = extremes(MODEL)[3:], tmp_path / "y.npz"
    np.savez(tmp_path / "x.npz", x=x)
    options = ["--engine", "he-leveled", "--target", server.target, "--tls", str(server.certs)]
    files = ["--input", str(tmp_path / "x.npz"), "--out", str(out)]
    assert main(["infer", *options, *files, "--model-hash", MODEL.hash]) == 0
    assert np.abs(np.load(out)["y"] - MODEL.reference(x)).max() <= PLAN.error_bound
    assert "warning" not in capsys.readouterr().err
    assert main(["infer", *options, *files]) == 0
    assert "warning: no --model-hash" in capsys.readouterr().err
    assert main(["infer", *options, *files, "--integers"]) == 2
    np.savez(tmp_path / "x.npz", x=x[:0])
    assert main(["infer", *options, *files, "--model-hash", MODEL.hash]) == 2


def refused(call: Any, *arguments: Any) -> type[Exception]:
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, timeout=ample(20))
    return type(raised(caught.value))


def test_wrong_lengths_and_values_are_named(server: Server) -> None:
    keys = LeveledKeys(PLAN)
    good, request = keys.evaluation_keys(), keys.encrypt(np.zeros((1, 9)))[0]
    with sync_channel(server.target, server.tls(), server_role="he") as channel:
        stub = SecureInferenceServiceStub(channel)

        def upload(*pieces: bytes) -> Iterator[OpenSessionRequest]:
            return iter([OpenSessionRequest(keys=piece) for piece in pieces])

        for pieces in ([], [b""], [good[:-1]], [good, b"x"], [b"x" * 100]):
            assert refused(stub.OpenSession, upload(*pieces)) is MalformedMessage

        def evaluate(session: bytes, data: bytes) -> EvaluateModelRequest:
            return EvaluateModelRequest(session_id=session, ciphertexts=data)

        session = stub.OpenSession(upload(good), timeout=ample(20)).session_id
        for data in (b"", request[:-1], request + b"x", request * 65):
            assert refused(stub.EvaluateModel, evaluate(session, data)) is MalformedMessage
        beyond = request[:32] + b"\xff" * (len(request) - 32)
        assert refused(stub.EvaluateModel, evaluate(session, beyond)) is MalformedMessage
        zero = request[:32] + bytes(len(request) - 32)
        assert refused(stub.EvaluateModel, evaluate(session, zero)) is MalformedMessage
        assert refused(stub.EvaluateModel, evaluate(b"x" * 16, request)) is SessionNotFound
        # Keys of the right length whose residues are none: found when they are first used.
        session = stub.OpenSession(upload(b"\xff" * len(good)), timeout=ample(20)).session_id
        assert refused(stub.EvaluateModel, evaluate(session, request)) is MalformedMessage
    with client_of(server) as client:  # and the worker is as good as before
        assert np.abs(client.infer(np.zeros((1, 9))) - MODEL.reference(np.zeros((1, 9)))).max() < 1


def test_beside_an_integer_model_with_a_budget_and_a_dead_worker(tmp_path: Path) -> None:
    graph, x = lenet(), extremes(MODEL)[:1]
    with Server(tmp_path, graph, budget=3) as server:
        with HeClient(server.target, tls=server.tls(), expected_hash=graph.hash) as exact:
            q = inputs(graph, 1)
            assert np.array_equal(exact.infer_int8(q), reference.run_int(graph, q))
        with client_of(server, expected_hash=MODEL.hash) as client:
            client.infer(x)
            for pid in server.workers():
                os.kill(pid, signal.SIGSTOP)
                os.kill(pid, signal.SIGKILL)
            # They held no request. New ones load the same session: no new keys go up.
            for _ in range(2):
                assert np.abs(client.infer(x) - MODEL.reference(x)).max() <= client.error_bound
            assert client.key_bytes_up == key_bytes(PLAN)
            with pytest.raises(BudgetExceeded):
                client.infer(x)
