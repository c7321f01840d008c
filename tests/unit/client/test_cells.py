"""Several cells: the choice, and a client before parties in this process that come and go."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import HealthServicer
from patience import ample

from conformance.builder import Net
from secure_quant import Graph, reference
from secure_quant.errors import (
    BudgetExceeded,
    ConfigError,
    HashMismatch,
    Overloaded,
    PeerUnavailable,
    SecureQuantError,
)
from secure_quant.keystream import Keystream
from secure_quant.transport import InsecurePlaintext
from secure_quant.wire import SHARING, info_to_proto, to_status
from secure_quant.wire.gen import share_inference_pb2 as pb
from secure_quant.wire.gen.share_inference_pb2_grpc import (
    ShareInferenceServiceServicer,
    add_ShareInferenceServiceServicer_to_server,
)
from secure_quant_client import AsyncMpcClient, MpcClient
from secure_quant_client.cells import Cells


def net(seed: int = 1) -> Graph:
    made = Net(seed, (4,))
    made.linear(3)
    return made.done(salt=bytes(32))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_least_loaded_is_chosen_and_equals_in_turn() -> None:
    cells = Cells("abc")
    assert sorted(cells.pick([]).client for _ in range(3)) == ["a", "b", "c"]
    a, b, c = cells.all
    with cells.running(a), cells.running(a), cells.running(b):
        assert cells.pick([]) is c
        assert cells.pick([c]) is b
        assert cells.pick([b, c]) is a
        with cells.running(c), cells.running(c):
            assert cells.pick([]) is b
    assert cells.pick([a, b, c]) is None


def test_one_that_is_away_is_asked_now_and_then() -> None:
    clock = Clock()
    cells = Cells("ab", clock=clock)
    a, b = cells.all
    cells.failed(a)
    assert {cells.pick([]) for _ in range(4)} == {b}
    assert cells.pick([b]) is a  # better than none
    assert cells.due() == []
    waits = []
    for _ in range(7):
        before = clock.now
        while not (due := cells.due()):
            clock.now += 0.25
        assert due == [a]
        assert cells.due() == []  # somebody asks already
        waits.append(clock.now - before)
        cells.failed(a)
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    cells.back(a)
    assert {cells.pick([]) for _ in range(4)} == {a, b}
    cells.failed(a)
    clock.now += 0.5
    assert cells.due() == [a]


def test_many_that_fail_at_once_are_one_failure() -> None:
    clock = Clock()
    cells = Cells("ab", clock=clock)
    for _ in range(50):
        cells.failed(cells.all[0])
    clock.now = 0.5
    assert cells.due() == [cells.all[0]]


def test_cells_serve_one_model() -> None:
    cells = Cells("ab")
    cells.require_same("1")
    cells.require_same("1")
    with pytest.raises(HashMismatch, match="the cells serve different models"):
        cells.require_same("2")


class Pair:
    """Two parties that meet in this process, and answer by the reference once both shares came."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.shares = graph, {}
        self.changed = threading.Condition()
        self.answered, self.refuses = 0, None

    def infer(self, party: int, request: Any, context: Any) -> pb.InferResponse:
        if self.refuses is not None and party == 1:
            abort(context, self.refuses)
        size = 4 * request.batch
        raw = Keystream(request.seed).bytes(size) if request.seed else request.share
        with self.changed:
            mine = self.shares.setdefault(request.request_id, {})
            mine[party] = np.frombuffer(bytes(raw), np.int8).reshape(request.batch, 4)
            self.changed.notify_all()
            there = self.changed.wait_for(lambda: len(mine) == 2, ample(5))
            if not there:
                abort(context, PeerUnavailable("the other share"))
            self.answered += party
        y = reference.run_int(self.graph, mine[0] ^ mine[1]).astype(np.uint64)
        mask = np.full_like(y, 12345)
        return pb.InferResponse(share=(y - mask if party else mask).astype("<u8").tobytes())


def abort(context: Any, error: SecureQuantError) -> None:
    code, text, details = to_status(error)
    context.set_trailing_metadata(details)
    context.abort(code, text)


class Party(ShareInferenceServiceServicer):
    def __init__(self, party: int, pair: Pair) -> None:
        self.party, self.pair = party, pair

    def GetModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pb.ShareInferenceServiceGetModelResponse(
            info=info_to_proto(self.pair.graph, b"{}"), party=self.party, sharing=SHARING
        )

    def Infer(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self.pair.infer(self.party, request, context)


@contextmanager
def cell(pair: Pair, at: list[str] | None = None) -> Iterator[list[str]]:
    """Its addresses; everything of it is gone after the block."""
    servers, addresses = [], []
    for party in (0, 1):
        server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        add_ShareInferenceServiceServicer_to_server(Party(party, pair), server)
        health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(), server)
        port = server.add_insecure_port(at[party] if at else "127.0.0.1:0")
        addresses.append(f"127.0.0.1:{port}")
        server.start()
        servers.append(server)
    try:
        yield addresses
    finally:
        for server in servers:
            server.stop(0).wait()


PLAIN = {"tls": InsecurePlaintext()}
Q = np.arange(-8, 8, dtype=np.int8).reshape(4, 4)


class Both:
    """A client of either kind, called alike."""

    def __init__(self, kind: str, cells: list[list[str]]) -> None:
        self._loop = asyncio.new_event_loop() if kind == "asyncio" else None
        self._client: Any = self._do(self._made(kind, cells))

    async def _made(self, kind: str, cells: list[list[str]]) -> Any:
        return (AsyncMpcClient if kind == "asyncio" else MpcClient)(cells=cells, **PLAIN)

    def _do(self, call: Any) -> Any:
        if self._loop is not None:
            return self._loop.run_until_complete(call)
        return asyncio.run(call) if asyncio.iscoroutine(call) else call

    def __getattr__(self, name: str) -> Any:
        return lambda *words, **more: self._do(getattr(self._client, name)(*words, **more))

    @property
    def away(self) -> list[bool]:
        return [each.away for each in self._client._cells.cells.all]

    def end(self) -> None:
        self.close()
        if self._loop is not None:
            self._loop.close()


def raised(client: Both, q: np.ndarray) -> type:
    try:
        client.infer_int8(q)
    except SecureQuantError as error:
        return type(error)
    return type(None)


@pytest.fixture(params=["threads", "asyncio"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def test_inferences_are_shared_out_and_go_elsewhere_when_a_cell_is_away(kind: str) -> None:
    pairs = [Pair(net()), Pair(net())]
    want = reference.run_int(net(), Q)
    with ExitStack() as stack, cell(pairs[1]) as second:
        first = stack.enter_context(cell(pairs[0]))
        client = Both(kind, [first, second])
        stack.callback(client.end)
        for _ in range(6):
            assert np.array_equal(client.infer_int8(Q), want)
        assert [pair.answered for pair in pairs] == [3, 3]
        client.check_ready()
    # Both are gone with the blocks; now one after the other comes back where it was.
    client = Both(kind, [first, second])
    with pytest.raises(PeerUnavailable):
        client.infer_int8(Q, timeout=ample(5))
    with pytest.raises(PeerUnavailable):
        client.check_ready()
    assert client.away == [True, True]
    with cell(pairs[1], second):
        until = time.monotonic() + ample(20)
        answered = None
        while answered is None:
            assert time.monotonic() < until
            try:
                answered = client.infer_int8(Q, timeout=ample(5))
            except PeerUnavailable:  # gRPC waits a moment before it connects again
                time.sleep(0.1)
        assert np.array_equal(answered, want)
        client.check_ready()
        for _ in range(4):  # the first cell is away, and costs no error
            assert np.array_equal(client.infer_int8(Q), want)
        before = pairs[0].answered
        with cell(pairs[0], first):
            while pairs[0].answered == before:
                assert time.monotonic() < until + ample(20)
                assert np.array_equal(client.infer_int8(Q), want)
                time.sleep(0.02)
    client.end()


def test_a_cell_that_is_full_refuses_and_another_answers(kind: str) -> None:
    pairs = [Pair(net()), Pair(net())]
    pairs[0].refuses = Overloaded("calls at once")
    with cell(pairs[0]) as first, cell(pairs[1]) as second:
        client = Both(kind, [first, second])
        for _ in range(4):
            assert np.array_equal(client.infer_int8(Q), reference.run_int(net(), Q))
        assert (pairs[0].answered, pairs[1].answered) == (0, 4)
        pairs[1].refuses, pairs[0].refuses = pairs[0].refuses, None
        large = [raised(client, np.zeros((40, 4), np.int8)) for _ in range(2)]
        assert sorted(map(str, large)) == ["<class 'NoneType'>", str(Overloaded)]
        pairs[0].refuses = pairs[1].refuses
        pairs[1].refuses = Overloaded("calls at once")
        with pytest.raises(Overloaded):
            client.infer_int8(Q)
        client.end()


def test_what_may_have_begun_is_not_repeated(kind: str) -> None:
    pairs = [Pair(net()), Pair(net())]
    for pair in pairs:
        pair.refuses = PeerUnavailable("the other party")
    with cell(pairs[0]) as first, cell(pairs[1]) as second:
        client = Both(kind, [first, second])
        with pytest.raises(PeerUnavailable, match="the other party"):
            client.infer_int8(Q)
        assert sorted(client.away) == [False, True]
        for pair in pairs:
            pair.refuses = BudgetExceeded("query budget")
        with pytest.raises(BudgetExceeded):  # no cell makes up for another one's budget
            client.infer_int8(Q)
        client.end()


def test_a_cell_of_another_model_is_an_error(kind: str) -> None:
    with cell(Pair(net())) as first, cell(Pair(net(seed=2))) as second:
        client = Both(kind, [first, second])
        found = [raised(client, Q) for _ in range(2)]
        assert sorted(map(str, found)) == ["<class 'NoneType'>", str(HashMismatch)]
        client.end()


@pytest.mark.parametrize(
    ("targets", "cells"),
    [
        (None, None), (["a:1", "b:2"], [["a:1", "b:2"]]), (None, []), (None, ["a:1", "b:2"]),
        (None, [["a:1"]]), (None, [["a:1", "b:2"], ["a:1", "b:2"]]), (["a:1"], None),
    ],
)  # fmt: skip
def test_addresses_that_make_no_cells(targets: Any, cells: Any) -> None:
    with pytest.raises(ConfigError, match=r"targets|cells"):
        MpcClient(targets, cells=cells, **PLAIN)
