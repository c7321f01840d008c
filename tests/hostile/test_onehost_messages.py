"""What clients of the one host may send: every step is named or borne, and the server stays up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import grpc
import numpy as np
import pytest
from e2e.he_server import inputs, lenet
from e2e.onehost_server import OneHostProcess
from patience import ample

from secure_quant import Graph, reference
from secure_quant.errors import (
    MalformedMessage,
    MaterialReused,
    MessageTooLarge,
    ModelNotFound,
    PermissionDenied,
    SecureQuantError,
    UnsupportedVersion,
)
from secure_quant.onehost.bundle import load_client, split
from secure_quant.onehost.cot import PAIRING_BYTES, Pairing
from secure_quant.onehost.plan import NUMBER_BYTES, OneHostPlan
from secure_quant.onehost.program import ClientProgram, Item
from secure_quant.onehost.stream import PIECE, PROTOCOL, Inbox, drive
from secure_quant.transport import sync_channel
from secure_quant.wire import raised
from secure_quant.wire.gen.one_host_pb2 import (
    PairDrop,
    PairInfer,
    PairMake,
    PairOpen,
    PairRequest,
)
from secure_quant.wire.gen.one_host_pb2_grpc import OneHostServiceStub
from secure_quant_client import OneHostClient
from secure_quant_client.onehost.masks import MaskKeys


@pytest.fixture(scope="module")
def graph() -> Graph:
    return lenet()


@pytest.fixture(scope="module")
def plan(graph: Graph) -> OneHostPlan:
    return load_client(split(graph)["client"])


@pytest.fixture(scope="module")
def server(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneHostProcess]:
    with OneHostProcess(
        tmp_path_factory.mktemp("onehost"), graph, stock=2, step_s=ample(5.0)
    ) as started:
        yield started


@pytest.fixture(scope="module", autouse=True)
def _served_to_the_end(server: OneHostProcess, graph: Graph) -> Iterator[None]:
    yield
    served(server, graph)


def served(server: OneHostProcess, graph: Graph) -> None:
    """An honest client gets the exact answer, now."""
    q = inputs(graph, 1)
    with OneHostClient(server.target, tls=server.tls(), stock=0) as client:
        y = client.infer_int8(q, timeout=ample(30))
    assert np.array_equal(y, reference.run_int(graph, q))


def eventually_served(server: OneHostProcess, graph: Graph) -> None:
    end = time.monotonic() + ample(20)
    while True:
        try:
            return served(server, graph)
        except SecureQuantError:
            assert time.monotonic() < end
            time.sleep(0.1)


class Attacker:
    """A client that says what it is told to. The first error of the stream is kept."""

    def __init__(self, server: OneHostProcess, plan: OneHostPlan, role: str = "client") -> None:
        self.plan = plan
        self.channel = sync_channel(server.target, server.tls(role), server_role="onehost")
        self.out: SimpleQueue[PairRequest | None] = SimpleQueue()
        self.heard: SimpleQueue[Any] = SimpleQueue()
        self.inbox = {"ahead": Inbox(2**40), "online": Inbox(2**40)}
        self.error: SecureQuantError | None = None
        self.call = OneHostServiceStub(self.channel).Pair(iter(self.out.get, None))
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def __enter__(self) -> Attacker:
        return self

    def __exit__(self, *_: object) -> None:
        self.call.cancel()
        self.out.put(None)
        self.channel.close()

    def _read(self) -> None:
        try:
            for frame in self.call:
                kind = frame.WhichOneof("message")
                if kind in self.inbox:
                    self.inbox[kind].feed(getattr(frame, kind))
                else:
                    self.heard.put(frame)
        except grpc.RpcError as error:
            self.error = raised(error)
            for inbox in self.inbox.values():
                inbox.fail(self.error)

    def send(self, **frame: Any) -> None:
        self.out.put(PairRequest(**frame))

    def ended(self) -> SecureQuantError:
        self.reader.join(ample(30))
        assert self.error is not None, "the stream did not end"
        return self.error

    def opened(self) -> Attacker:
        self.send(open=PairOpen(model_hash=self.plan.graph.hash, protocol=PROTOCOL))
        assert self.heard.get(timeout=ample(20)).opened.samples == 2
        return self

    def drive(self, run: Any, kind: str = "ahead") -> Any:
        send = lambda piece: self.send(**{kind: piece})  # noqa: E731
        return drive(run, send, self.inbox[kind], lambda: ample(20)).result

    def paired(self) -> Attacker:
        self.opened()
        pairing = self.drive(Pairing.make(0))
        self.program = ClientProgram(
            self.plan, pairing, lambda name, r: MaskKeys(self.plan.masked).share(name, r)
        )
        return self

    def asked(self, batch: int = 1) -> int:
        """An item is being made."""
        number = self.program.next_item
        self.send(make=PairMake(item=number, batch=batch))
        assert self.heard.get(timeout=ample(20)).making.item == number
        return number

    def made(self) -> Item:
        self.asked()
        return self.drive(self.program.prepare(1))

    def infer(self, item: Item) -> Any:
        self.send(infer=PairInfer(item=item.number))
        q = inputs(self.plan.graph, 1)
        return self.drive(self.program.run(item, q), "online")


def swapped(attacker: Attacker, item: Item, number: int) -> None:
    """All that an inference takes, of one item under the number of another."""
    named = item.number.to_bytes(NUMBER_BYTES, "little")
    attacker.send(infer=PairInfer(item=number, online=named))
    attacker.send(online=bytes(attacker.plan.cost().online_up - NUMBER_BYTES))


Deed = Callable[[Attacker], object]
UNOPENED: dict[str, tuple[Deed, type[SecureQuantError]]] = {
    "nothing": (lambda a: a.out.put(None), MalformedMessage),
    "an empty frame": (lambda a: a.send(), MalformedMessage),
    "bytes": (lambda a: a.send(ahead=b"x"), MalformedMessage),
    "an inference": (lambda a: a.send(infer=PairInfer(item=1)), MalformedMessage),
    "no model": (lambda a: a.send(open=PairOpen(protocol=PROTOCOL)), ModelNotFound),
    "another model": (
        lambda a: a.send(open=PairOpen(model_hash="0" * 64, protocol=PROTOCOL)), ModelNotFound,
    ),
    "another protocol": (
        lambda a: a.send(open=PairOpen(model_hash=a.plan.graph.hash, protocol=PROTOCOL + 1)),
        UnsupportedVersion,
    ),
}  # fmt: skip
OPENED: dict[str, tuple[Deed, type[SecureQuantError]]] = {
    "open again": (lambda a: a.send(open=PairOpen()), MalformedMessage),
    "an empty frame": (lambda a: a.send(), MalformedMessage),
    "an empty piece": (lambda a: a.send(ahead=b""), MalformedMessage),
    "bytes of no inference": (lambda a: a.send(online=b"x"), MalformedMessage),
    "an item before the pairing": (
        lambda a: a.send(make=PairMake(item=1, batch=1)), MalformedMessage,
    ),
    "an inference": (lambda a: a.send(infer=PairInfer(item=1, online=b"x")), MalformedMessage),
    "points that are none": (lambda a: a.send(ahead=bytes(PAIRING_BYTES)), MalformedMessage),
    "more than a pairing": (lambda a: a.send(ahead=bytes(PAIRING_BYTES + 1)), MalformedMessage),
    "a frame too large": (lambda a: a.send(ahead=bytes(PIECE + 2**13)), MessageTooLarge),
}  # fmt: skip
PAIRED: dict[str, tuple[Deed, type[SecureQuantError]]] = {
    "bytes of no item": (lambda a: a.send(ahead=b"x"), MalformedMessage),
    "no samples": (lambda a: a.send(make=PairMake(item=1, batch=0)), MalformedMessage),
    "too many samples": (lambda a: a.send(make=PairMake(item=1, batch=9)), MalformedMessage),
    "another number": (lambda a: a.send(make=PairMake(item=2, batch=1)), MalformedMessage),
    "an item that never was": (lambda a: a.send(infer=PairInfer(item=7)), MalformedMessage),
    "an item without number": (lambda a: a.send(infer=PairInfer()), MalformedMessage),
    "to drop what never was": (lambda a: a.send(drop=PairDrop(item=1)), MalformedMessage),
    "three items at once": (
        lambda a: [a.send(make=PairMake(item=1, batch=1)) for _ in range(3)], MalformedMessage,
    ),
    "more than an item": (
        lambda a: (a.asked(), [a.send(ahead=bytes(PIECE)) for _ in range(9)]), MalformedMessage,
    ),
    "counts of COTs that are not the server's": (
        lambda a: (a.asked(), [a.send(ahead=b"\xff" * PIECE) for _ in range(2)]), MalformedMessage,
    ),
    "to use it twice": (
        lambda a: (item := a.made(), a.infer(item), a.send(infer=PairInfer(item=item.number))),
        MaterialReused,
    ),
    "to use what it dropped": (
        lambda a: (
            item := a.made(),
            a.send(drop=PairDrop(item=item.number)),
            a.send(infer=PairInfer(item=item.number)),
        ),
        MaterialReused,
    ),
    "to drop what it used": (
        lambda a: (item := a.made(), a.infer(item), a.send(drop=PairDrop(item=item.number))),
        MaterialReused,
    ),
    "another item's bytes": (
        lambda a: swapped(a, a.made(), a.made().number),
        MalformedMessage,
    ),
    "more than an inference at once": (
        lambda a: a.send(infer=PairInfer(item=a.made().number, online=bytes(PIECE))),
        MalformedMessage,
    ),
    "more than an inference": (
        lambda a: (
            a.send(infer=PairInfer(item=a.made().number)), a.send(online=bytes(PIECE)),
        ),
        MalformedMessage,
    ),
}  # fmt: skip


@pytest.mark.parametrize("deed", UNOPENED)
def test_before_it_opens(server: OneHostProcess, plan: OneHostPlan, deed: str) -> None:
    do, expected = UNOPENED[deed]
    with Attacker(server, plan) as attacker:
        do(attacker)
        assert type(attacker.ended()) is expected


@pytest.mark.parametrize("deed", OPENED)
def test_while_it_pairs(server: OneHostProcess, plan: OneHostPlan, deed: str) -> None:
    do, expected = OPENED[deed]
    with Attacker(server, plan) as attacker:
        do(attacker.opened())
        assert type(attacker.ended()) is expected


@pytest.mark.parametrize("deed", PAIRED)
def test_once_it_has_paired(server: OneHostProcess, plan: OneHostPlan, deed: str) -> None:
    do, expected = PAIRED[deed]
    with Attacker(server, plan) as attacker:
        do(attacker.paired())
        assert type(attacker.ended()) is expected


def test_a_full_stock_is_an_answer_and_ends_nothing(
    server: OneHostProcess, plan: OneHostPlan
) -> None:
    with Attacker(server, plan) as attacker:
        items = [attacker.paired().made(), attacker.made()]
        attacker.send(make=PairMake(item=3, batch=1))
        answer = attacker.heard.get(timeout=ample(20))
        assert answer.refused.item == 3
        assert b"OVERLOADED" in answer.refused.details
        for item in items:
            y = attacker.infer(item)
            q = inputs(plan.graph, 1)
            assert y.shape == (len(q), *plan.graph.values[plan.graph.output.name].shape)
        assert attacker.made().number == 3


def test_ciphertexts_of_noise_are_refused_or_give_nothing_but_noise(
    server: OneHostProcess, plan: OneHostPlan, graph: Graph
) -> None:
    """The right length, any content: whoever sends it spoils its own item."""
    rng = np.random.default_rng(1)

    class Noise(MaskKeys):
        def request(self, name: str, r: Any) -> bytes:
            return rng.bytes(len(super().request(name, r)))

    with Attacker(server, plan) as attacker:
        attacker.paired()
        attacker.program._share = lambda name, r: Noise(plan.masked).share(name, r)
        try:
            attacker.made()
        except SecureQuantError:
            assert isinstance(attacker.ended(), MalformedMessage)
    served(server, graph)


def test_a_client_that_says_nothing_more_is_ended(plan: OneHostPlan, graph: Graph,
                                                  tmp_path: Any) -> None:  # fmt: skip
    with OneHostProcess(tmp_path, graph, stock=2, step_s=ample(0.2)) as short, \
            Attacker(short, plan) as attacker:  # fmt: skip
        attacker.opened()
        assert "message" in str(attacker.ended())
        eventually_served(short, graph)  # whose own steps may take longer on a busy machine


def test_streams_cut_at_every_step_leave_nothing(
    server: OneHostProcess, plan: OneHostPlan, graph: Graph
) -> None:
    steps: list[Deed] = [
        lambda _: None,
        lambda a: a.opened(),
        lambda a: (a.opened(), a.send(ahead=bytes(100))),
        lambda a: a.paired(),
        lambda a: (a.paired(), a.asked()),
        lambda a: (a.paired(), a.asked(), a.send(ahead=bytes(100))),
        lambda a: (a.paired(), a.made()),
        lambda a: (a.paired(), a.send(infer=PairInfer(item=a.made().number))),
    ]
    for step in steps:
        with Attacker(server, plan) as attacker:
            step(attacker)
    # More pairings than one client may hold at once have come and gone.
    eventually_served(server, graph)


def test_other_roles_do_not_pair(server: OneHostProcess, plan: OneHostPlan) -> None:
    with Attacker(server, plan, role="party0") as attacker:
        attacker.send(open=PairOpen(model_hash=plan.graph.hash, protocol=PROTOCOL))
        assert type(attacker.ended()) is PermissionDenied
