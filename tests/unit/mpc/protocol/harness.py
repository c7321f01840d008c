"""Drives both parties in one process: a single gate with chosen masks, or a whole program."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np

from secure_quant.ir import Graph
from secure_quant.mpc.protocol.bundle import load_dealer, load_party, split
from secure_quant.mpc.protocol.gates.base import Dealing, Gate, Side, Wire
from secure_quant.mpc.protocol.material import Item
from secure_quant.mpc.protocol.ring import centred, reduce, to_ring

U64 = np.uint64


def words(rng: np.random.Generator, *shape: int) -> Any:
    return rng.integers(0, 2**64, shape, dtype=U64)


def drive(one: Generator[bytes, bytes, Any], two: Generator[bytes, bytes, Any]) -> Any:
    """(result of one, result of two, payloads of each round)."""
    rounds: list[tuple[bytes, bytes]] = []
    sent, done = [], []
    for run in (one, two):
        try:
            sent.append(next(run))
        except StopIteration as end:
            done.append(end.value)
    while not done:
        assert len(sent) == 2
        assert len(sent[0]) == len(sent[1])
        rounds.append((sent[0], sent[1]))
        peers, sent = sent[::-1], []
        for run, peer in zip((one, two), peers, strict=True):
            try:
                sent.append(run.send(peer))
            except StopIteration as end:
                done.append(end.value)
    assert len(done) == 2
    assert not sent
    return done[0], done[1], rounds


def run_gate(
    gate: Gate, inputs: list[Any], masks: list[Any], seed: int = 0, parameters: Any = (None,) * 3
) -> tuple[Any, Any, Any]:
    """One sample. inputs: int64[*shape] each; masks: uint64[*shape], r of each.

    Returns (values int64[*shape] mod 2^bits centred, or as they are of a gate that is ``xored``;
    both parties' value; payloads).
    """
    rng = np.random.default_rng(seed)
    free = [words(rng, gate.free_words) for _ in range(2)]
    dealt = [words(rng, gate.dealt_words)]
    dealt.append(dealt[0].copy())
    mask = gate.deal(Dealing(free[0], free[1], dealt[1], parameters[2]), masks)
    first = [words(rng, *r.shape) for r in masks]
    shares = [first, [r - s for r, s in zip(masks, first, strict=True)]]
    masked = [to_ring(x, 64) + r for x, r in zip(inputs, masks, strict=True)]
    runs = []
    for party in range(2):
        side = Side(party, 1, free[party][None], [dealt[party]], parameters[party])
        own = [s[None] for s in shares[party]]
        state, out = gate.offline(side, list(own))
        values = [Wire(x[None], r) for x, r in zip(masked, own, strict=True)]
        runs.append(gate.online(side, state, out, values))
    one, two, rounds = drive(runs[0], runs[1])
    assert [len(a) for a, _ in rounds] == list(gate.payload_bytes(1))
    if one.masked is None:
        return (one.share + two.share)[0].view(np.int64), (one, two), rounds
    assert (one.masked == two.masked).all()
    if gate.xored:
        assert one.mask is None
        return (one.masked[0] ^ mask).view(np.int64), (one, two), rounds
    if one.mask is not None:
        assert (reduce(one.mask + two.mask, gate.bits)[0] == mask).all()
    return centred(reduce(one.masked[0] - mask, gate.bits), gate.bits), (one, two), rounds


class Pair:
    """Two parties and a dealer of one graph."""

    def __init__(self, graph: Graph, objective: Any = "latency") -> None:
        self.bundles = split(graph, objective)
        self.parties = [load_party(self.bundles[f"party{i}"]) for i in range(2)]
        self.dealer = load_dealer(self.bundles["dealer"])
        self.plan = self.dealer.plan

    def infer(self, q: Any, seed: int = 0) -> tuple[Any, Any, list[tuple[bytes, bytes]]]:
        """(integers at the Output, the two shares, payloads)."""
        first = np.random.default_rng(seed).integers(0, 256, q.shape, np.uint8)
        shares = (first, q.view(np.uint8) ^ first)
        items = [self.dealer.deal() for _ in q]
        runs = [
            self.parties[0].run(shares[0], [Item(0, item.seed0) for item in items]),
            self.parties[1].run(shares[1], [Item(1, i.seed1, i.corrections) for i in items]),
        ]
        one, two, rounds = drive(runs[0], runs[1])
        return (one + two).view(np.int64), (one, two), rounds


def unpacked(data: bytes, count: int, bits: int) -> Any:
    """uint64[count] of elements end to end, lowest bit first."""
    flat = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[: count * bits]
    return flat.reshape(count, bits).astype(np.uint64) @ (1 << np.arange(bits, dtype=np.uint64))


def chi_square(values: Any, bits: int) -> float:
    """Of the lowest or highest up to 8 bits, whichever is further from uniform, as the normal
    variable of the same chance (Wilson and Hilferty): above 6 once in a billion."""
    size = min(bits, 8)
    found = []
    for part in (values % (1 << size), values >> np.uint64(bits - size)):
        counts = np.bincount(part.astype(np.int64), minlength=1 << size)
        expected = len(values) / (1 << size)
        freedom = (1 << size) - 1
        statistic = ((counts - expected) ** 2 / expected).sum()
        wide = 2 / (9 * freedom)
        found.append(float(((statistic / freedom) ** (1 / 3) - 1 + wide) / np.sqrt(wide)))
    return max(found)
