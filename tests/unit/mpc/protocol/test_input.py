"""The input: every byte of two clients' shares is an int8, and nothing else can be asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from secure_quant import reference
from secure_quant.errors import DtypeMismatch
from secure_quant.ir import Graph
from secure_quant.mpc.protocol.gates.base import Dealing, Side, Wire
from secure_quant.mpc.protocol.gates.edge import InputGate
from secure_quant.mpc.protocol.material import Item
from secure_quant.mpc.protocol.ring import centred, reduce
from tests.unit.mpc.protocol import graphs
from tests.unit.mpc.protocol.harness import Pair, chi_square, drive, unpacked, words

BYTES = np.arange(256, dtype=np.uint8)
EVERY_PAIR = np.repeat(BYTES, 256), np.tile(BYTES, 256)


def gate(count: int, ring: int) -> InputGate:
    free, dealt = InputGate.material(count, ring)
    payloads = (((count, min(8, ring)),), ((count, ring),))
    return InputGate(
        name="x", inputs=(), shape=(count,), bits=ring, free_words=free, dealt_words=dealt,
        payloads=payloads,
    )  # fmt: skip


def run(ring: int, octets: Any, masks: Any = None, seed: int = 0) -> tuple[Any, Any, Any]:
    """(x mod 2^ring centred, the opened masked values, payloads). masks: of the opened byte."""
    made, rng = gate(octets[0].size, ring), np.random.default_rng(seed)
    free = [words(rng, made.free_words) for _ in range(2)]
    if masks is not None:
        free[0][: masks.size] = free[1][: masks.size] ^ masks
    dealt = [words(rng, made.dealt_words)]
    dealt.append(dealt[0].copy())
    mask = made.deal(Dealing(free[0], free[1], dealt[1]), [])
    runs = []
    for party in range(2):
        side = Side(party, 1, free[party][None], [dealt[party]])
        state, own = made.offline(side, [])
        runs.append(made.online(side, state, own, [Wire(octets=octets[party][None])]))
    one, two, rounds = drive(*runs)
    assert [len(sent) for sent, _ in rounds] == list(made.payload_bytes(1))
    assert (one.masked == two.masked).all()
    assert (reduce(one.mask + two.mask, ring)[0] == mask).all()
    return centred(reduce(one.masked[0] - mask, ring), ring), one.masked[0], rounds


@pytest.mark.parametrize("ring", [1, 3, 7, 8, 9, 16, 21, 26, 33, 56, 57, 63, 64])
def test_every_pair_of_bytes_is_an_int8(ring: int) -> None:
    got, _, _ = run(ring, EVERY_PAIR)
    want = (EVERY_PAIR[0] ^ EVERY_PAIR[1]).view(np.int8).astype(np.int64)
    assert (got == centred(reduce(want.view(np.uint64), ring), ring)).all()


@pytest.mark.parametrize("ring", [5, 8, 21, 64])
def test_every_byte_under_every_mask(ring: int) -> None:
    values, masks = EVERY_PAIR
    got, _, rounds = run(ring, (values, np.zeros_like(values)), masks.astype(np.uint64))
    want = centred(reduce(values.view(np.int8).astype(np.int64).view(np.uint64), ring), ring)
    assert (got == want).all()
    width = min(8, ring)
    opened = np.bitwise_xor(*(unpacked(data, values.size, width) for data in rounds[0]))
    assert (opened == reduce((values ^ 0x80 ^ masks).astype(np.uint64), width)).all()


@pytest.mark.parametrize("ring", [8, 21, 64])
@pytest.mark.parametrize("shares", [(0, 0), (0x55, 0), (0, 0xFF), (0x80, 0x7F)])
def test_what_is_seen_is_uniform_whatever_a_client_sends(ring: int, shares: Any) -> None:
    """A client's shares need not be random; it spoils its own secret alone, and no mask."""
    count = 2**15
    octets = tuple(np.full(count, share, np.uint8) for share in shares)
    _, masked, rounds = run(ring, octets, seed=ring)
    first, second = (
        [unpacked(data, count, bits) for data in sent]
        for sent, bits in zip(rounds, (8, ring), strict=True)
    )
    for values, bits in ((first[0] ^ first[1], 8), *((each, 8) for each in first)):
        assert chi_square(values, bits) < 6
    for values in (masked, *second):
        assert chi_square(values, ring) < 6
    # The two openings have masks of their own: together they are uniform too.
    low = reduce(masked, 4) << np.uint64(4)
    assert chi_square(low | reduce(first[0] ^ first[1], 4), 8) < 6


def test_costs_what_the_specification_states() -> None:
    """Bits per element as ``docs/spec/mpc.md`` has them."""
    for ring in range(1, 65):
        made = gate(64, ring)
        stated = 8 * ring - 28 if ring >= 7 else ring * (ring + 1) // 2
        assert (made.free_words, made.dealt_words) == (2 * 64, stated)
        assert made.payload_bytes(1) == (8 * min(8, ring), 8 * ring)


MLP = Pair(graphs.mlp())
OCTETS = hnp.arrays(np.uint8, (1, 64))


def answered(pair: Pair, octets: Any) -> Any:
    """What the parties answer to these bytes."""
    items = [pair.dealer.deal() for _ in octets[0]]
    one, two, _ = drive(
        pair.parties[0].run(octets[0], [Item(0, item.seed0) for item in items]),
        pair.parties[1].run(octets[1], [Item(1, i.seed1, i.corrections) for i in items]),
    )
    return (one + two).view(np.int64)


@settings(max_examples=30, deadline=None)
@given(st.tuples(OCTETS, OCTETS))
def test_any_bytes_get_the_answer_of_the_function_on_int8(octets: Any) -> None:
    q = (octets[0] ^ octets[1]).view(np.int8)
    assert (answered(MLP, octets) == reference.run_int(graphs.mlp(), q)).all()


FEATURES, CLASSES = 64, 10
FIRST, DIGIT = 13, 8
"""Bits of bias below the lowest weight, and of a weight, in a packed answer."""
A_QUERY = 6
QUERIES = -(-FEATURES // A_QUERY)


def linear() -> tuple[Graph, Any, Any]:
    """A linear model, its weights [10, 64] and its bias."""
    builder = graphs.Builder((FEATURES,), seed=9)
    graph = builder.graph(builder.linear("f", "x", FEATURES, CLASSES))
    return graph, *(graph.parameters[f"f.{kind}"].astype(np.int64) for kind in ("weight", "bias"))


def packing() -> Any:
    """int64[11, 64]: inputs with which a client that may leave int8 reads 6 weights of every class
    at once, as digits of one answer mod 2^64."""
    made = np.zeros((QUERIES, FEATURES), np.int64)
    for feature in range(FEATURES):
        query, place = divmod(feature, A_QUERY)
        made[query, feature] = 1 << (FIRST + DIGIT * place)
    return made


def unpack(answers: Any) -> Any:
    """Signed digits: int64[10, 64]."""
    rest = (answers + (1 << (FIRST - 1))) >> FIRST
    found = []
    for _ in range(A_QUERY):
        digit = ((rest + (1 << (DIGIT - 1))) & ((1 << DIGIT) - 1)) - (1 << (DIGIT - 1))
        rest = (rest - digit) >> DIGIT
        found.append(digit)
    return np.stack(found, 1).reshape(-1, CLASSES)[:FEATURES].T


def test_eleven_queries_do_not_read_640_weights() -> None:
    """Shares mod 2^64 of wide inputs gave away a linear model in 11 queries in place of 65."""
    graph, weight, bias = linear()
    wide = packing()
    assert len(wide) == 11
    assert (unpack(wide @ weight.T + bias) == weight).all()  # the attack is a real one

    pair = Pair(graph)
    with pytest.raises(DtypeMismatch):
        pair.parties[0].run(wide[:1].view(np.uint64), [Item(0, pair.dealer.deal().seed0)])  # type: ignore[arg-type]
    # Of such an input a client can send any byte; whichever it is, it is an int8 there.
    for byte in range(8):
        octets = wide.view(np.uint8).reshape(QUERIES, FEATURES, 8)[:, :, byte]
        got = answered(pair, (octets, np.zeros_like(octets)))
        assert (got == reference.run_int(graph, octets.view(np.int8))).all()
        assert np.mean(unpack(got) == weight) < 0.1
