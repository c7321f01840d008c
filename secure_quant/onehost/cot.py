"""Shared random bits of a pairing, and the pads that make products of them.

A shared bit ⟨b⟩ = b_0 ⊕ b_1 comes from a correlated OT in each direction: b_i is party i's random
choice bit, and K_0 = H(w), K_1 = H(w ⊕ Δ) are the other party's keys, of which party i holds
K_(b_i) = H(v). Every key is stretched by counter, block j of its pad being π(K ⊕ j) ⊕ K ⊕ j. A COT
serves many products, each with blocks of its own: a column counts the blocks that it gave away, and
both parties' columns count alike since they run the same protocol.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NoReturn

import numpy as np

from secure_quant.errors import MalformedMessage, PairingSpent
from secure_quant.keystream import SEED_BYTES, Keystream
from secure_quant.onehost.base_ot import POINT_BYTES, BaseReceiver, BaseSender
from secure_quant.onehost.exchange import Exchange, Joint, swap
from secure_quant.onehost.ferret import MARK, Lpn
from secure_quant.onehost.permutation import KEYS, PADS, Words
from secure_quant.onehost.softspoken import SECURITY, Chooser, Field, Sender
from secure_quant.onehost.sources import Ferret, Made, SoftSpoken, Source
from secure_quant.onehost.stock import Stock

__all__ = [
    "BOTH",
    "KAPPA",
    "MOST_BLOCKS",
    "MOST_COTS",
    "PAIRING_BYTES",
    "STEP_BYTES",
    "Column",
    "Pairing",
    "stretch",
]

KAPPA: Field = 6
"""Of every pairing that is served: beside 4 it sends two thirds for half as much CPU again."""
BOTH = 2
"""In place of the chooser: a COT in each direction."""
MOST_COTS = 2**36
"""Of one direction of a pairing. Fixed permutations and one Δ lose log2(COTs · blocks) bits of
security: at this cap 84 of the 127 that are not known of Δ are left, 83 of 126 with Ferret."""
MOST_BLOCKS = 2**7
"""Pad blocks of one COT."""
PAIRING_BYTES = 2 * SECURITY * POINT_BYTES + POINT_BYTES + Sender.MESSAGE_BYTES
"""What each party sends to pair."""
_CODE = b"secure-quant one host: matrix of Ferret "
ONE = np.uint64(1)
STEP_BYTES = 16
"""Two counts at the head of every extension, by which the ends tell that they are in step."""


def stretch(keys: Words, first: int, bits: int) -> Words:
    """Pads of at least ``bits`` bits, whole blocks from block ``first`` on: uint64[n, 2] ->
    uint64[n, 2 · ceil(bits / 128)]."""
    if first == 0 and bits <= 128:
        return PADS.hash(keys)
    blocks = np.arange(first, first + -(-bits // 128), dtype=np.uint64)
    inputs = np.empty((len(keys), len(blocks), 2), np.uint64)
    np.bitwise_xor(keys[:, :1], blocks, out=inputs[..., 0])
    inputs[..., 1] = keys[:, 1:]
    return PADS.hash(inputs).reshape(len(keys), -1)


def clipped(words: Words, bits: int) -> Words:
    """A copy of uint64[n, ceil(bits / 64)] with zeros above ``bits``."""
    made = words.copy()
    if bits % 64:
        made[:, -1] &= np.uint64((1 << bits % 64) - 1)
    return made


@dataclass(eq=False, kw_only=True)
class Column:
    """One party's end of ⟨b⟩ for n elements.

    own: uint64[n] of 0 and 1, this party's share. delta: uint64[2], its own. v: uint64[n, 2], of
    the COTs in which it chose, None where it did not; w: where the other chose.
    """

    own: Words = field(repr=False)
    delta: Words = field(repr=False)
    v: Words | None = field(default=None, repr=False)
    w: Words | None = field(default=None, repr=False)
    _blocks: int = field(default=0, init=False)
    _trees: set[str] = field(default_factory=set, init=False)

    @cached_property
    def chosen(self) -> Words | None:
        """K_own, uint64[n, 2], where this party chose."""
        return None if self.v is None else KEYS.hash(self.v)

    @cached_property
    def keys(self) -> tuple[Words, Words] | None:
        """(K_0, K_1), where the other chose."""
        return None if self.w is None else (KEYS.hash(self.w), KEYS.hash(self.w ^ self.delta))

    def take(self, bits: int) -> Pads:
        """Fresh blocks for one product of ``bits`` bits, each way. Raises PairingSpent."""
        first = self._blocks
        self._blocks += -(-bits // 128)
        if self._blocks > MOST_BLOCKS:
            raise PairingSpent("pad blocks of a COT", got=self._blocks, expected=MOST_BLOCKS)
        return Pads(self, first, bits)

    def halves(self, purpose: str) -> Words:
        """The share of b·Δ, Δ the XOR of both parties' own, uint64[n, 2], for a tree; once for each
        purpose, whose permutations are its own. Raises PairingSpent."""
        if self.v is None or self.w is None or purpose in self._trees:
            raise PairingSpent("a share of Δ", got="a second use, or a COT of one direction")
        self._trees.add(purpose)
        return self.v ^ self.w ^ self.own[:, None] * self.delta


@dataclass(frozen=True, eq=False)
class Pads:
    """The blocks of one product, as ``stretch`` gives them."""

    column: Column = field(repr=False)
    first: int
    bits: int

    def sender(self) -> tuple[Words, Words]:
        """Pads under K_0 and K_1."""
        if self.column.keys is None:
            raise ValueError("the other party is this column's sender")
        zero, one = self.column.keys
        return stretch(zero, self.first, self.bits), stretch(one, self.first, self.bits)

    def chooser(self) -> Words:
        """The pad under the chosen key."""
        if self.column.chosen is None:
            raise ValueError("the other party is this column's chooser")
        return stretch(self.column.chosen, self.first, self.bits)


class Pairing:
    """One party's end of a pairing: 0, the client, or 1, the server. One thread at a time; it lives
    in the process that made it and is never serialised."""

    def __init__(self, party: int, delta: Words, source: Source) -> None:
        """``make`` makes it."""
        self.party, self.delta = party, delta
        self._source = source
        self._process, self._broken = os.getpid(), False
        self._made, self._taken = [0, 0], [0, 0]  # by chooser
        self._bits = Stock()
        self._stock = Stock(), Stock()  # by chooser: v or w
        self._random = Keystream(secrets.token_bytes(SEED_BYTES))

    def __reduce__(self) -> NoReturn:
        raise TypeError("a pairing never leaves its process")

    @staticmethod
    def make(party: int, kappa: Field = KAPPA, lpn: Lpn | None = None) -> Joint[Pairing]:
        """Pair: PAIRING_BYTES each way, in two exchanges. lpn: COTs are of Ferret with it. Raises
        MalformedMessage."""
        delta = np.frombuffer(secrets.token_bytes(16), np.uint64).copy()
        # The lowest bit of both parties' Δ together is 1: half-trees tell by it where they are.
        delta[0] = delta[0] & ~np.uint64(1) | np.uint64(party == 0)
        if lpn is not None:
            delta[0] |= MARK
        own, other = (f"chooser {i}".encode() for i in (party, 1 - party))
        receiver = BaseReceiver(other, Sender.choices(delta, kappa))
        base = BaseSender(own)
        message = receiver.message + base.message
        peer = yield from swap(message, len(message))
        points, ephemeral = peer[:-POINT_BYTES], peer[-POINT_BYTES:]
        chooser = Chooser(base.keys(points), kappa)
        keys = receiver.keys(ephemeral)
        sums = yield from swap(chooser.message, Sender.MESSAGE_BYTES)
        source = SoftSpoken(party, kappa, chooser, Sender(delta, keys, sums, kappa))
        if lpn is None:
            return Pairing(party, delta, source)
        said = message + peer if party == 0 else peer + message
        codes = [hashlib.sha256(_CODE + bytes([i]) + said).digest() for i in (0, 1)]
        return Pairing(party, delta, Ferret(party, source, lpn, delta, codes))

    def fill_bytes(self, wanted: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """What party 0 and party 1 send in one ``fill`` after the other, each time all that was
        wanted being given away before the next."""
        made, left = [], [len(stock) for stock in self._stock]
        for counts in wanted:
            made.append(self._missing(counts, left))
            left = [a + b - c for a, b, c in zip(left, made[-1], counts, strict=True)]
        one, two = self._source.sent_bytes(made)
        return STEP_BYTES * len(made) + one, STEP_BYTES * len(made) + two

    def _missing(self, wanted: Sequence[int], there: Sequence[int]) -> list[int]:
        lacking = [max(n - m, 0) for n, m in zip(wanted, there, strict=True)]
        return self._source.rounded(lacking)

    def fill(self, first: int, second: int) -> Joint[None]:
        """Have ``first`` COTs in stock where party 0 chooses and ``second`` where party 1 does: one
        exchange, whose message is the own extension after the COTs given away so far, or two where
        Ferret begins. Raises PairingSpent, MalformedMessage.

        A pairing whose exchange was not finished, or whose ends gave away different COTs, is out
        of step and refuses everything after."""
        self._check()
        counts = self._missing((first, second), [len(stock) for stock in self._stock])
        most = max(made + n for made, n in zip(self._made, counts, strict=True))
        if most > MOST_COTS:
            raise PairingSpent("COTs of a pairing", got=most, expected=MOST_COTS, hint="pair anew")
        self._broken = True
        own, other = self.party, 1 - self.party
        bits, v, w = yield from self._in_step(self._source.extend(counts))
        self._bits.add(bits)
        for chooser, blocks in ((own, v), (other, w)):
            self._stock[chooser].add(blocks)
            self._made[chooser] += counts[chooser]
        self._broken = False

    def _in_step(self, run: Joint[Made]) -> Joint[Made]:
        """``run``, in front of whose first message either end says what it gave away so far."""
        step = b"".join(taken.to_bytes(8, "little") for taken in self._taken)
        exchange = next(run)
        peer = yield from swap(step + exchange.sent, STEP_BYTES + exchange.expected)
        if peer[:STEP_BYTES] != step:
            raise MalformedMessage(
                "the peer's COTs given away so far", expected=self._taken, hint="pair anew"
            )
        return (yield from _rest(run, peer[STEP_BYTES:]))

    def columns(self, choosers: Sequence[int], elements: int) -> list[Column]:
        """A column for each of ``choosers`` (0, 1 or BOTH), from the stock, which ``fill`` made
        large enough. Every COT is given away once. Raises PairingSpent where the stock is short."""
        self._check()
        own, other = self.party, 1 - self.party
        wanted = [sum(c in (side, BOTH) for c in choosers) * elements for side in (0, 1)]
        if any(len(s) < n for s, n in zip(self._stock, wanted, strict=True)):
            raise PairingSpent("COTs in stock", got=[len(s) for s in self._stock], expected=wanted)
        made = []
        for chooser in choosers:
            v = self._take(own, elements) if chooser in (own, BOTH) else None
            bits = self.random(elements) & ONE if v is None else self._bits.take(elements)
            w = self._take(other, elements) if chooser in (other, BOTH) else None
            made.append(Column(own=bits, delta=self.delta, v=v, w=w))
        return made

    def random(self, count: int) -> Words:
        """Fresh private words, uint64[count]: of this end alone, whatever the other does."""
        self._check_process()
        return self._random.words(count)

    def _take(self, chooser: int, count: int) -> Words:
        self._taken[chooser] += count
        return self._stock[chooser].take(count)

    def _check_process(self) -> None:
        if self._process != os.getpid():
            raise PairingSpent("a pairing in another process", hint="pair anew after a fork")

    def _check(self) -> None:
        self._check_process()
        if self._broken:
            raise PairingSpent("a pairing whose exchange was broken off", hint="pair anew")


def _rest(run: Joint[Made], message: bytes) -> Joint[Made]:
    """``run`` from its next message on."""
    while True:
        try:
            exchange: Exchange = run.send(message)
        except StopIteration as end:
            made: Made = end.value
            return made
        message = yield exchange
