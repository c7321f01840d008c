"""Both engines inside this process, without a network: what ``verify`` compares."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import MalformedMessage
from secure_quant.ir import Graph

__all__ = ["Engine", "Run", "he_engine", "mpc_engine"]

Party = Generator[bytes, bytes, NDArray[np.uint64]]


@dataclass(frozen=True)
class Run:
    """values: integers by node name, at least the Output's, int64[batch, *shape].
    rounds: exchanges of the parties, or trips to the server. sent: payload bytes by one party, or
    by client and server together."""

    values: dict[str, NDArray[np.int64]]
    rounds: int
    sent: int


Engine = Callable[[NDArray[np.int8]], Run]
"""int8[batch, *input shape] -> what came out."""


def mpc_engine(graph: Graph) -> Engine:
    """Two parties and a dealer; only the integers at the Output are ever opened.

    Raises OpNotSupported.
    """
    from secure_quant.mpc.bundle import load_dealer, load_party, split
    from secure_quant.mpc.material import Item
    from secure_quant.protect.sharing import join, share

    bundles = split(graph)
    dealer = load_dealer(bundles["dealer"])
    parties = [load_party(bundles[name]) for name in ("party0", "party1")]

    def run(q: NDArray[np.int8]) -> Run:
        dealt = [dealer.deal() for _ in range(len(q))]
        items = (
            [Item(0, each.seed0, b"") for each in dealt],
            [Item(1, each.seed1, each.corrections) for each in dealt],
        )
        runs = [
            party.run(part, own) for party, part, own in zip(parties, share(q), items, strict=True)
        ]
        outputs, rounds, sent = _exchange(runs)
        return Run({graph.output.name: join(*outputs)}, rounds, sent)

    return run


def he_engine(graph: Graph) -> Engine:
    """Client and server of homomorphic encryption; every node's integers are the client's.

    Raises OpNotSupported.
    """
    from secure_quant.he.bundle import load_client, load_server, split
    from secure_quant.protect.ckks import CkksSession
    from secure_quant_client.walk import walk

    bundles = split(graph)
    server, (public, plan) = load_server(bundles["server"]), load_client(bundles["client"])

    def run(q: NDArray[np.int8]) -> Run:
        client = walk(public, CkksSession(public, plan), q.astype(np.int64))  # a fresh key
        trips = sent = 0
        try:
            requests = next(client)
            while True:
                answers = [server.evaluate(*request) for request in requests]
                sent += sum(len(request.ciphertexts) for request in requests)
                sent += sum(map(len, answers))
                trips += 1
                requests = client.send(answers)
        except StopIteration as end:
            return Run(end.value, trips, sent)

    return run


def _exchange(runs: Sequence[Party]) -> tuple[list[NDArray[np.uint64]], int, int]:
    """Drives both parties to their output shares; (shares, rounds, bytes that each sent)."""
    payloads: list[bytes] | None = None
    rounds = sent = 0
    while True:
        made: list[bytes] = []
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
        rounds, sent, payloads = rounds + 1, sent + len(made[0]), made
