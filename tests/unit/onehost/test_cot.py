"""Pairings: shared bits against an ideal COT, bytes by formula, and a ledger of what is used."""

from __future__ import annotations

import copy
import hashlib
import os
import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from secure_quant.errors import MalformedMessage, PairingSpent
from secure_quant.onehost import cot
from secure_quant.onehost.cot import BOTH, PAIRING_BYTES, STEP_BYTES, Column, Pairing, stretch
from secure_quant.onehost.permutation import CHILDREN, FERRET, KEYS, LEAVES, PADS, TREES
from secure_quant.onehost.products import column_times, gated, number
from secure_quant.onehost.softspoken import extension_bytes
from tests.unit.onehost.drive import SMALL, both, columns, drive, pair, words
from tests.unit.onehost.ledger import Ledger

SOURCES = [(4, None), (6, None), (8, None), (6, SMALL)]
either = pytest.mark.parametrize("lpn", [None, SMALL], ids=["softspoken", "ferret"])


def check_ideal(one: Column, two: Column, delta: Any) -> None:
    """What an ideal COT in each direction gives."""
    for chooser, sender in ((one, two), (two, one)):
        assert (chooser.chosen is None) == (sender.keys is None)
        if chooser.chosen is not None:
            zero, key = sender.keys
            expected = np.where(chooser.own[:, None] == 1, key, zero)
            assert (chooser.chosen == expected).all()
            assert (zero != key).any(axis=1).all()
    if one.v is not None and one.w is not None:
        product = one.halves("digit") ^ two.halves("digit")
        assert (product == (one.own ^ two.own)[:, None] * delta).all()


@pytest.mark.parametrize(("kappa", "lpn"), SOURCES)
def test_columns_are_an_ideal_cot(kappa: Any, lpn: Any) -> None:
    pairs = pair(kappa, lpn)
    delta = pairs[0].delta ^ pairs[1].delta
    assert delta[0] & np.uint64(1) == 1
    choosers = [BOTH, 0, 1, BOTH, 1]
    for elements in (1, 77, 1000):
        one, two = columns(pairs, choosers, elements)
        for a, b in zip(one, two, strict=True):
            check_ideal(a, b, delta)
        kinds = [(c.v is not None, c.w is not None) for c in one]
        assert kinds == [(c in (0, BOTH), c in (1, BOTH)) for c in choosers]
        for bits in (np.concatenate([c.own for c in end]) for end in (one, two)):
            assert abs(bits.sum() - bits.size / 2) < 6.5 * np.sqrt(bits.size) / 2 + 3


@pytest.mark.parametrize("kappa", [4, 6, 8])
def test_bytes_are_those_of_the_formulas(kappa: Any) -> None:
    one, two, sent = drive(Pairing.make(0, kappa), Pairing.make(1, kappa))
    assert [sum(side) for side in zip(*sent, strict=True)] == [PAIRING_BYTES] * 2
    assert PAIRING_BYTES == 128 * 2 * 33 + 33 + 128 * 2 * 16
    pairs = [one, two]
    promised = one.fill_bytes([(1000, 130)])
    assert promised == two.fill_bytes([(1000, 130)])
    assert promised == (
        STEP_BYTES + extension_bytes(1024, kappa), STEP_BYTES + extension_bytes(256, kappa)
    )  # fmt: skip
    _, _, sent = both(pairs, lambda p: p.fill(1000, 130))
    assert sent == [promised]
    _, _, sent = both(pairs, lambda p: p.fill(1000, 130))  # all there
    assert sent == [(STEP_BYTES, STEP_BYTES)]


def test_bytes_with_ferret() -> None:
    """What begins it once a direction, and then a block a level of every tree but the first."""
    one, two, sent = drive(*(Pairing.make(i, 6, SMALL) for i in (0, 1)))
    assert [sum(side) for side in zip(*sent, strict=True)] == [PAIRING_BYTES] * 2
    pairs, batch, begin = [one, two], 80 * 4 * 16, 21 * 768 // 8
    made = 80 * 32 - 256 - 80 * 5
    assert (SMALL.made, SMALL.batch_bytes) == (made, batch)
    assert SMALL.reserve == 656  # of multiples of 128
    for wanted, exchanges in (
        ((0, 1), [(STEP_BYTES, STEP_BYTES + begin), (batch, 0)]),
        ((made, made + 1), [(STEP_BYTES + begin, STEP_BYTES), (batch, batch)]),
        ((made, 2 * made), [(STEP_BYTES, STEP_BYTES)]),
        ((made, 4 * made), [(STEP_BYTES + 2 * batch, STEP_BYTES)]),
    ):
        promised = one.fill_bytes([wanted])
        assert promised == two.fill_bytes([wanted])
        _, _, sent = both(pairs, lambda p, wanted=wanted: p.fill(*wanted))
        assert sent == exchanges
        assert promised == tuple(sum(side) for side in zip(*sent, strict=True))


@either
def test_no_choice_bit_and_no_pad_block_is_used_twice(
    lpn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, rng = pair(lpn=lpn), np.random.default_rng(0)
    ledger = Ledger(monkeypatch)

    def protocol(p: Pairing) -> Any:
        for elements in (50, 3, 400):  # over several extensions
            yield from p.fill(9 * elements, 9 * elements)
            made = p.columns([BOTH] * 4 + [0, 1], elements)
            for column in made[:4]:
                yield from gated(column, words(rng, elements, 4), 256)
                yield from gated(column, words(rng, elements, 1) & np.uint64(1), 1)
                yield from column_times(column, words(rng, elements), 33, p.party)
            yield from number(made, [BOTH] * 4 + [0, 1], 20, p.party)

    drive(*(ledger.follow(i, protocol(p)) for i, p in enumerate(pairs)))
    # A product of 256 bits, one of 1, and one of 33 each way: 3 pads of each block, and the ring's.
    asked = ledger.check()
    assert asked["pads"] > 453 * 4 * 3 * 4
    assert (asked["ferret"] > 0) == (lpn is not None)


def test_the_ledger_catches_a_block_used_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = columns(pair(), [BOTH], 5)
    ledger = Ledger(monkeypatch)
    one[0].take(64).chooser()
    one[0]._blocks = 0
    one[0].take(64).chooser()
    KEYS.hash(np.zeros((1, 2), np.uint64))
    ledger.seen = {("pads", 0): ledger.seen["pads", 0]}
    with pytest.raises(AssertionError):
        ledger.check()


def test_pads_are_blocks_under_a_counter() -> None:
    keys = words(np.random.default_rng(1), 3, 2)
    whole = stretch(keys, 0, 640)
    assert (stretch(keys, 2, 256) == whole[:, 4:8]).all()
    assert (stretch(keys, 1, 70) == whole[:, 2:4]).all()
    block = keys.copy()
    block[:, 0] ^= np.uint64(3)
    assert (whole[:, 6:8] == PADS(block) ^ block).all()


def test_permutations_differ() -> None:
    every = [*CHILDREN, FERRET, KEYS, PADS, *TREES.values(), *LEAVES.values()]
    block = np.array([[1, 2]], np.uint64)
    assert len({permutation(block).tobytes() for permutation in every}) == len(every)


def test_caps(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = pair()
    one, _ = columns(pairs, [BOTH], 2)
    for _ in range(cot.MOST_BLOCKS):
        one[0].take(128)
    with pytest.raises(PairingSpent, match="pad blocks"):
        one[0].take(1)
    monkeypatch.setattr(cot, "MOST_COTS", 256)
    both(pairs, lambda p: p.fill(200, 0))
    with pytest.raises(PairingSpent, match="pair anew"):
        next(pairs[0].fill(400, 0))
    monkeypatch.setattr(cot, "MOST_COTS", 2 * SMALL.made)
    pairs = pair(lpn=SMALL)
    both(pairs, lambda p: p.fill(0, SMALL.made + 1))
    for p in pairs:
        p.columns([1], 1)
    for p in pairs:  # what was given away counts, and the other direction does not
        with pytest.raises(PairingSpent, match="pair anew"):
            next(p.fill(0, 2 * SMALL.made))
    both(pairs, lambda p: p.fill(SMALL.made, 0))


@either
def test_a_stock_gives_every_cot_once(lpn: Any) -> None:
    pairs = pair(lpn=lpn)
    both(pairs, lambda p: p.fill(128, 128))
    there = 128 if lpn is None else SMALL.made
    pairs[0].columns([BOTH], there - 28)
    with pytest.raises(PairingSpent, match="in stock"):
        pairs[0].columns([BOTH], 29)
    one, _ = columns(pair(lpn=lpn), [BOTH, 0], 2)
    one[0].halves("main")
    one[0].halves("saturation")
    for column in one:
        with pytest.raises(PairingSpent):
            column.halves("main")


@either
def test_delta_is_of_the_system_but_for_what_is_known(
    lpn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = 0b01 if lpn is None else 0b11
    for octet in (b"\0", b"\xff"):
        drawn = SimpleNamespace(token_bytes=octet.__mul__)
        monkeypatch.setattr(cot, "secrets", drawn)
        for party, p in enumerate(pair(lpn=lpn)):
            whole = int.from_bytes(octet * 16, "little") & ~known
            marks = (party == 0) | (0 if lpn is None else 2)
            assert p.delta.astype("<u8").tobytes() == (whole | marks).to_bytes(16, "little")


def test_matrices_are_of_the_first_messages() -> None:
    """One for each direction of each pairing, alike at both ends, and neither end's to choose."""
    seen = []
    for _ in range(2):
        said: list[list[bytes]] = [[], []]
        runs = [_noted(Pairing.make(i, 6, SMALL), said[i]) for i in (0, 1)]
        one, two, _ = drive(*runs)
        label = b"secure-quant one host: matrix of Ferret "
        expected = [
            hashlib.sha256(label + bytes([chooser]) + said[0][0] + said[1][0]).digest()
            for chooser in (0, 1)
        ]
        assert one._source._codes == two._source._codes == expected
        both([one, two], lambda p: p.fill(1, 1))
        for end, other in ((one, two), (two, one)):
            seen.append(end._source._chooser._rows.words(4).tobytes())
            assert other._source._sender._rows.words(4).tobytes() == seen[-1]
    assert len(set(seen)) == 4


def _noted(run: Any, sent: list[bytes]) -> Any:
    """``run``, with what it sends."""
    message = None
    while True:
        try:
            exchange = next(run) if message is None else run.send(message)
        except StopIteration as end:
            return end.value
        sent.append(exchange.sent)
        message = yield exchange


@either
def test_ends_out_of_step_refuse(lpn: Any) -> None:
    pairs = pair(lpn=lpn)
    both(pairs, lambda p: p.fill(128, 128))
    pairs[0].columns([0], 10)  # an item that the peer never began
    runs = [p.fill(118, 128) for p in pairs]
    exchanges = [next(run) for run in runs]
    with pytest.raises(MalformedMessage, match="given away"):
        runs[0].send(exchanges[1].sent)
    for broken in pairs:
        with pytest.raises(PairingSpent, match="broken off"):
            broken.columns([0], 1)


@either
def test_a_broken_exchange_ends_the_pairing(lpn: Any) -> None:
    for spoil in (lambda m: m[:-1], lambda m: m + b"x", lambda m: m + m):
        one, two = pair(lpn=lpn)
        run, other = one.fill(128, 128), two.fill(128, 128)
        next(run)
        with pytest.raises(MalformedMessage):
            run.send(spoil(next(other).sent))
        for use in (lambda p=one: next(p.fill(1, 1)), lambda p=one: p.columns([0], 1)):
            with pytest.raises(PairingSpent, match="broken off"):
                use()


@either
def test_a_pairing_stays_in_its_process(lpn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = pair(lpn=lpn)
    for leave in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="never leaves"):
            leave(one)
    here = os.getpid()
    monkeypatch.setattr(cot.os, "getpid", lambda: here + 1)
    for use in (lambda: next(one.fill(1, 1)), lambda: one.columns([0], 1), lambda: one.random(1)):
        with pytest.raises(PairingSpent, match="fork"):
            use()


def test_pairing_refuses_what_is_no_pairing() -> None:
    run = Pairing.make(0)
    exchange = next(run)
    with pytest.raises(MalformedMessage):
        run.send(exchange.sent[:-1])
    run = Pairing.make(0)
    exchange = next(run)
    with pytest.raises(MalformedMessage):
        run.send(bytes(exchange.expected))
