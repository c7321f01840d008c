"""The engines inside this process, without a network: what ``verify`` compares."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import MalformedMessage
from secure_quant.ir import Graph

if TYPE_CHECKING:
    from secure_quant.mpc.protocol.deal import DealtItem
    from secure_quant.mpc.protocol.gates.base import Gate
    from secure_quant.mpc.protocol.material import Item
    from secure_quant.mpc.protocol.rounds import Rounds, Want

__all__ = [
    "Engine",
    "Run",
    "he_engine",
    "mpc_engine",
    "mpc_offline_cpu",
    "onnx_engine",
    "reference_engine",
]

Seconds = dict[str, float]


@dataclass(frozen=True)
class Run:
    """values: integers by node name, at least the Output's, int64[batch, *shape].
    rounds: exchanges of the parties, or trips to the server. sent: payload bytes by one party, or
    by client and server together. seconds: computing time by node name, where it can be told:
    party 0 online; the server. client_seconds: encryption and decryption by node name."""

    values: dict[str, NDArray[np.int64]]
    rounds: int
    sent: int
    seconds: Seconds = field(default_factory=dict)
    client_seconds: Seconds = field(default_factory=dict)


Engine = Callable[[NDArray[np.int8]], Run]
"""int8[batch, *input shape] -> what came out."""


def reference_engine(graph: Graph) -> Engine:
    """The plaintext reference, node by node: ``reference.trace`` with a watch."""
    from secure_quant import reference

    def run(q: NDArray[np.int8]) -> Run:
        values: dict[str, NDArray[np.int64]] = {graph.input.name: q.astype(np.int64)}
        seconds: Seconds = {}
        for node in graph.nodes[1:]:
            start = perf_counter()
            inputs = [values[name] for name in node.inputs]
            values[node.name] = reference.evaluate(graph, node, inputs)
            seconds[node.name] = perf_counter() - start
        return Run(values, 0, 0, seconds)

    return run


def mpc_engine(graph: Graph) -> Engine:
    """Two parties and a dealer; only the integers at the Output are ever opened.

    Raises OpNotSupported.
    """
    from secure_quant.mpc.protocol.bundle import load_dealer, load_party, split
    from secure_quant_client.mpc.sharing import join, share

    bundles = split(graph)
    dealer = load_dealer(bundles["dealer"])
    parties = [load_party(bundles[name]) for name in ("party0", "party1")]
    seconds: defaultdict[str, float] = defaultdict(float)
    plan = parties[0].plan
    parties[0].plan = replace(plan, gates=tuple(_watched(gate, seconds) for gate in plan.gates))

    def run(q: NDArray[np.int8]) -> Run:
        seconds.clear()
        dealt = [dealer.deal() for _ in range(len(q))]
        items = _items(dealt)
        runs = [
            party.run(part, own) for party, part, own in zip(parties, share(q), items, strict=True)
        ]
        outputs, rounds, sent = _exchange(runs)
        return Run({graph.output.name: join(*outputs)}, rounds, sent, dict(seconds))

    return run


def _items(dealt: Sequence[DealtItem]) -> tuple[list[Item], list[Item]]:
    """What the dealer sends to party 0 and to party 1."""
    from secure_quant.mpc.protocol.material import Item

    return (
        [Item(0, each.seed0, b"") for each in dealt],
        [Item(1, each.seed1, each.corrections) for each in dealt],
    )


def _watched(gate: Gate, seconds: Seconds) -> Gate:
    """The same gate; what ``online`` computes between two messages adds to ``seconds``."""

    def online(*arguments: Any) -> Generator[bytes, bytes, Any]:
        steps = gate.online(*arguments)
        message: bytes | None = None
        while True:
            start = perf_counter()
            try:
                sent = next(steps) if message is None else steps.send(message)
            except StopIteration as end:
                return end.value
            finally:
                seconds[gate.name] += perf_counter() - start
            message = yield sent

    watched = copy.copy(gate)
    object.__setattr__(watched, "online", online)  # gates are frozen
    return watched


def mpc_offline_cpu(bundles: Mapping[str, bytes], batch: int, runs: int = 5) -> dict[str, float]:
    """CPU seconds of one sample's offline work, the median of ``runs`` calls of ``batch`` samples:
    ``dealing``, and ``expansion_party0`` and ``_party1``. ``bundles``: by role, as split makes."""
    from secure_quant.mpc.protocol.bundle import load_dealer, load_party

    dealer = load_dealer(bundles["dealer"])
    parties = [load_party(bundles[name]) for name in ("party0", "party1")]
    spent: defaultdict[str, list[float]] = defaultdict(list)

    def watched(name: str, work: Callable[[], Any]) -> Any:
        start = process_time()
        made = work()
        spent[name].append((process_time() - start) / batch)
        return made

    for _ in range(1 + runs):  # the first warms up
        dealt = watched("dealing", lambda: [dealer.deal() for _ in range(batch)])
        for party, own in zip(parties, _items(dealt), strict=True):
            watched(f"expansion_party{party.party}", partial(party.prepare, own))
    return {name: median(each[1:]) for name, each in spent.items()}


def he_engine(graph: Graph) -> Engine:
    """Client and server of homomorphic encryption; every node's integers are the client's.

    Raises OpNotSupported.
    """
    from secure_quant.he.bundle import load_client, load_server, split
    from secure_quant_client.he.ckks import CkksKeys
    from secure_quant_client.he.model import walk

    bundles = split(graph)
    server, (public, plan) = load_server(bundles["server"]), load_client(bundles["client"])
    names = [step.node for step in plan.steps]

    def run(q: NDArray[np.int8]) -> Run:
        seconds: defaultdict[str, float] = defaultdict(float)
        client_seconds: defaultdict[str, float] = defaultdict(float)

        class Watched(CkksKeys):
            """The session, with a watch."""

            def encrypt(self, step: int, x: NDArray[np.int64]) -> bytes:
                start = perf_counter()
                try:
                    return super().encrypt(step, x)
                finally:
                    client_seconds[names[step]] += perf_counter() - start

            def decrypt(self, step: int, batch: int, response: bytes) -> NDArray[np.int64]:
                start = perf_counter()
                try:
                    return super().decrypt(step, batch, response)
                finally:
                    client_seconds[names[step]] += perf_counter() - start

        client = walk(public, Watched(public, plan), q.astype(np.int64))  # a fresh key
        trips = sent = 0
        try:
            requests = next(client)
            while True:
                answers = []
                for request in requests:
                    start = perf_counter()
                    answers.append(server.evaluate(*request))
                    seconds[names[request.step]] += perf_counter() - start
                sent += sum(len(request.ciphertexts) for request in requests)
                sent += sum(map(len, answers))
                trips += 1
                requests = client.send(answers)
        except StopIteration as end:
            return Run(end.value, trips, sent, dict(seconds), dict(client_seconds))

    return run


def onnx_engine(graph: Graph) -> Engine:
    """onnxruntime on the export: a witness that shares no code with this library."""
    import onnxruntime

    from secure_quant.interop.onnx_export import feeds, packed, to_onnx

    data = to_onnx(graph, inner=True).SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(q: NDArray[np.int8]) -> Run:
        made = dict(zip(names, session.run(None, feeds(graph, q)), strict=True))
        inner = [name for name in names if name.startswith("ir/")]
        values = {name.removeprefix("ir/"): made[name] for name in inner}
        return Run(values | {graph.output.name: packed(graph, made)}, 0, 0)

    return run


def _exchange(
    runs: Sequence[Rounds[NDArray[np.uint64]]],
) -> tuple[list[NDArray[np.uint64]], int, int]:
    """Drives both parties to their output shares; (shares, rounds, bytes that each sent)."""
    payloads: list[bytes] | None = None
    rounds = sent = 0
    while True:
        made: list[bytes | Want] = []
        outputs: list[NDArray[np.uint64]] = []
        for i, run in enumerate(runs):
            try:
                made.append(next(run) if payloads is None else run.send(payloads[1 - i]))
            except StopIteration as end:
                outputs.append(end.value)
        if len(outputs) == len(runs):
            return outputs, rounds, sent
        if outputs:
            raise MalformedMessage("one party ended before the other")
        payloads = [each for each in made if isinstance(each, bytes)]
        if len(payloads) != len(runs):
            raise MalformedMessage("round", got="a wait", expected="bytes: all is prepared here")
        rounds, sent = rounds + 1, sent + len(payloads[0])
