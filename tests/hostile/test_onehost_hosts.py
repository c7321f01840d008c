"""What a host may answer: the client names it, and forgets the pairing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import grpc
import numpy as np
import pytest
from patience import ample

from secure_quant.errors import (
    BudgetExceeded,
    DeadlineExceeded,
    HashMismatch,
    InsecureRefused,
    InternalError,
    MalformedMessage,
    PeerUnavailable,
    SecureQuantError,
)
from secure_quant.onehost.cot import PAIRING_BYTES, STEP_BYTES, Pairing
from secure_quant.onehost.plan import KAPPA, plan
from secure_quant.onehost.softspoken import GRAIN, extension_bytes
from secure_quant.onehost.stream import Inbox, drive
from secure_quant.wire import info_to_proto
from secure_quant.wire.gen.one_host_pb2 import (
    OneHostServiceGetModelResponse,
    PairMaking,
    PairOpened,
    PairRefused,
    PairResponse,
)
from secure_quant.wire.gen.one_host_pb2_grpc import (
    OneHostServiceServicer,
    add_OneHostServiceServicer_to_server,
)
from secure_quant_client import InsecurePlaintext, OneHostClient
from secure_quant_client.onehost.link import Link
from secure_quant_server.common.messages import error_to_bytes
from tests.unit.mpc.protocol import graphs

GRAPH = graphs.mlp()
Q = np.zeros((1, *GRAPH.input.shape), np.int8)
EXTENSION = STEP_BYTES + extension_bytes(
    -(-plan(GRAPH.public()).cots(1)[1] // GRAIN) * GRAIN, KAPPA
)
OPENED = PairResponse(opened=PairOpened(samples=4))
Script = Callable[[Iterator[Any]], Iterator[PairResponse]]


class Host(OneHostServiceServicer):
    """Answers as ``script`` says."""

    def __init__(self, script: Script, stated: bytes) -> None:
        self.script, self.stated, self.pairings = script, stated, 0

    def GetModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        info = info_to_proto(GRAPH.public(), self.stated)
        return OneHostServiceGetModelResponse(info=info)

    def Pair(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
        self.pairings += 1
        yield from self.script(request_iterator)


@contextmanager
def hosted(
    script: Script, stated: bytes | None = None, **options: Any
) -> Iterator[tuple[Host, OneHostClient]]:
    server = grpc.server(ThreadPoolExecutor(4))
    host = Host(script, stated or plan(GRAPH.public()).to_json())
    add_OneHostServiceServicer_to_server(host, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        target, tls = f"127.0.0.1:{port}", InsecurePlaintext()
        with OneHostClient(target, tls=tls, stock=0, **options) as client:
            yield host, client
    finally:
        server.stop(None)


def says(*answers: PairResponse) -> Script:
    """At once, and then nothing until the client leaves."""

    def script(frames: Iterator[Any]) -> Iterator[PairResponse]:
        yield from answers
        for _ in frames:
            pass

    return script


def paired_then(*answers: PairResponse) -> Script:
    """An honest pairing, and then what comes next."""

    def script(frames: Iterator[Any]) -> Iterator[PairResponse]:
        next(frames)
        yield OPENED
        inbox, out = Inbox(PAIRING_BYTES), SimpleQueue[bytes]()

        def feed() -> None:
            while not inbox.complete:
                inbox.feed(next(frames).ahead)

        with ThreadPoolExecutor(2) as pool:
            fed = pool.submit(feed)
            pool.submit(drive, Pairing.make(1), out.put, inbox, lambda: ample(20))
            left = PAIRING_BYTES
            while left:
                piece = out.get(timeout=ample(20))
                left -= len(piece)
                yield PairResponse(ahead=piece)
            fed.result(ample(20))
        yield from answers
        for _ in frames:
            pass

    return script


def ends(frames: Iterator[Any]) -> Iterator[PairResponse]:
    next(frames)
    yield OPENED


DEVIATIONS: dict[str, tuple[Script, type[SecureQuantError]]] = {
    "an empty frame": (says(PairResponse()), MalformedMessage),
    "no opening": (says(PairResponse(making=PairMaking(item=1))), MalformedMessage),
    "no stock": (says(PairResponse(opened=PairOpened())), MalformedMessage),
    "bytes in place of an opening": (
        says(PairResponse(ahead=bytes(PAIRING_BYTES + 1))), MalformedMessage,
    ),
    "bytes of no inference": (says(OPENED, PairResponse(online=b"x")), MalformedMessage),
    "an empty piece": (says(OPENED, PairResponse(ahead=b"")), MalformedMessage),
    "points that are none": (
        says(OPENED, PairResponse(ahead=bytes(PAIRING_BYTES))), MalformedMessage,
    ),
    "more than a pairing": (
        says(OPENED, PairResponse(ahead=bytes(PAIRING_BYTES + 1))), MalformedMessage,
    ),
    "answers that nobody asked for": (says(*[OPENED] * 50), MalformedMessage),
    "the end": (ends, PeerUnavailable),
    "another item": (paired_then(PairResponse(making=PairMaking(item=2))), MalformedMessage),
    "open again": (paired_then(OPENED), MalformedMessage),
    "a refusal of another": (paired_then(PairResponse(refused=PairRefused(item=5))),
                             MalformedMessage),
    "a refusal without a reason": (paired_then(PairResponse(refused=PairRefused(item=1))),
                                   InternalError),
    "more than an item": (
        paired_then(PairResponse(making=PairMaking(item=1)),
                    *[PairResponse(ahead=bytes(2**18))] * 40),
        MalformedMessage,
    ),
    "another step": (
        paired_then(PairResponse(making=PairMaking(item=1)),
                    PairResponse(ahead=b"\xff" * EXTENSION)),
        MalformedMessage,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", DEVIATIONS)
def test_every_deviation_has_a_name(what: str) -> None:
    script, expected = DEVIATIONS[what]
    with hosted(script) as (host, client):
        with pytest.raises(SecureQuantError) as found:
            client.infer_int8(Q, timeout=ample(20))
        assert type(found.value) is expected
        if expected is not InternalError:  # a refusal ends nothing
            assert not client._model._paired.alive
            before = host.pairings
            with pytest.raises(SecureQuantError):
                client.infer_int8(Q, timeout=ample(20))
            assert host.pairings > before  # anew, and not on the old one


def test_the_host_s_first_bytes_may_come_with_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Link.answered

    def slowly(link: Link, seconds: float) -> PairResponse:
        found = plain(link, seconds)
        time.sleep(0.2)
        return found

    monkeypatch.setattr(Link, "answered", slowly)
    details = error_to_bytes(BudgetExceeded("samples"))
    refusal = PairResponse(refused=PairRefused(item=1, details=details))
    with hosted(paired_then(refusal)) as (_, client), pytest.raises(BudgetExceeded):
        client.infer_int8(Q, timeout=ample(20))


def test_silence_ends_with_the_caller_s_time() -> None:
    with hosted(says(OPENED)) as (_, client), pytest.raises(DeadlineExceeded):
        client.infer_int8(Q, timeout=1.0)


def test_a_plan_that_rests_on_lpn_is_refused_by_who_does_not_allow_it() -> None:
    text = plan(GRAPH.public(), objective="traffic").to_json()
    with hosted(says(OPENED), text, allow_lpn=False) as (host, client):
        for _ in range(2):
            with pytest.raises(InsecureRefused, match=r"rests on LPN.*latency.*allow_lpn=True"):
                client.infer_int8(Q, timeout=ample(20))
        assert host.pairings == 0
    with hosted(says(OPENED), text) as (_, client):
        assert client.graph.hash == GRAPH.hash
    with hosted(says(OPENED), allow_lpn=False) as (_, client):
        assert client.graph.hash == GRAPH.hash


def test_another_plan_is_refused_before_anything_is_paired() -> None:
    document = json.loads(plan(GRAPH.public()).to_json())
    document["online"] = [1, 1, 1]
    text = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    with hosted(says(OPENED), text) as (host, client):
        with pytest.raises(HashMismatch):
            client.infer_int8(Q, timeout=ample(20))
        assert host.pairings == 0
