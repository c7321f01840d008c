"""Products of shared bits and one-hots of shared digits, against arithmetic on opened bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from secure_quant.errors import MalformedMessage
from secure_quant.mpc.protocol.cost import packed_bytes
from secure_quant.mpc.protocol.ring import reduce
from secure_quant.onehost.cot import BOTH, Pairing
from secure_quant.onehost.hots import hot, hot_bits, hot_bytes, prefixes
from secure_quant.onehost.products import (
    column_times,
    cut_bits,
    gated,
    joined_bits,
    number,
    open_sum,
    packed,
    scaled,
    unpacked,
    weighed,
)
from tests.unit.onehost.drive import columns, drive, pair, words

U64 = np.uint64


@pytest.fixture(scope="module")
def pairs() -> list[Pairing]:
    return pair()


def wide(rng: np.random.Generator, count: int, bits: int) -> Any:
    made = words(rng, count, -(-bits // 64))
    if bits % 64:
        made[:, -1] &= U64(2 ** (bits % 64) - 1)
    return made


def opened(one: Any, two: Any) -> Any:
    return one.own ^ two.own


def integers(values: Any) -> list[int]:
    return [sum(int(w) << (64 * i) for i, w in enumerate(row)) for row in values]


@pytest.mark.parametrize("bits", [1, 7, 63, 64, 65, 127, 128, 129, 406])
def test_bit_times_bits(bits: int, pairs: list[Pairing]) -> None:
    n, rng = 37, np.random.default_rng(bits)
    ends = columns(pairs, [BOTH], n)
    b = opened(ends[0][0], ends[1][0])
    for _ in range(2):  # one COT, two products
        v = [wide(rng, n, bits) for _ in range(2)]
        one, two, sent = drive(*(gated(ends[i][0], v[i], bits) for i in (0, 1)))
        assert ((one ^ two) == (v[0] ^ v[1]) * b[:, None]).all()
        assert sent == [(packed_bytes(n, bits),) * 2]
        assert set(b.tolist()) == {0, 1}


@pytest.mark.parametrize("bits", [1, 8, 33, 64])
@pytest.mark.parametrize("chooser", [0, 1])
@pytest.mark.parametrize("kind", ["one direction", "both"])
def test_chosen_bit_times_number(bits: int, chooser: int, kind: str, pairs: Any) -> None:
    n, rng = 41, np.random.default_rng(bits)
    ends = columns(pairs, [BOTH if kind == "both" else chooser], n)
    x = reduce(words(rng, n), bits)
    runs = [scaled(ends[i][0], i == chooser, None if i == chooser else x, bits) for i in (0, 1)]
    one, two, sent = drive(*runs)
    assert (reduce(one + two, bits) == reduce(x * ends[chooser][0].own, bits)).all()
    size = packed_bytes(n, bits)
    assert sent == [(0, size) if chooser == 0 else (size, 0)]


@pytest.mark.parametrize("bits", [1, 8, 33, 64])
def test_shared_bit_times_shared_number(bits: int, pairs: list[Pairing]) -> None:
    n, rng = 43, np.random.default_rng(bits)
    ends = columns(pairs, [BOTH], n)
    v = [reduce(words(rng, n), bits) for _ in range(2)]
    one, two, sent = drive(*(column_times(ends[i][0], v[i], bits, i) for i in (0, 1)))
    b = opened(ends[0][0], ends[1][0])
    assert (reduce(one + two, bits) == reduce((v[0] + v[1]) * b, bits)).all()
    assert sent == [(packed_bytes(n, bits),) * 2]


@pytest.mark.parametrize(("count", "bits"), [(1, 1), (1, 5), (8, 22), (21, 21), (64, 64)])
@pytest.mark.parametrize("choosers", [[BOTH], [0, 1], [1, BOTH, 0]])
def test_bits_to_a_number(count: int, bits: int, choosers: list[int], pairs: Any) -> None:
    n = 29
    cycle = (choosers * count)[:count]
    ends = columns(pairs, cycle, n)
    one, two, sent = drive(*(number(ends[i], cycle, bits, i) for i in (0, 1)))
    for i in range(count):
        both = reduce(one[i] + two[i], bits - i)
        assert (both == reduce(opened(ends[0][i], ends[1][i]), bits - i)).all()
    rho = sum(opened(a, b) << U64(i) for i, (a, b) in enumerate(zip(*ends, strict=True)))
    assert (reduce(weighed(one, bits) + weighed(two, bits), bits) == reduce(rho, bits)).all()
    sides = [(i % 2 if c == BOTH else c, bits - 1 - i) for i, c in enumerate(cycle)]
    want = [sum(packed_bytes(n, t) for side, t in sides if t > 0 and side != i) for i in (0, 1)]
    assert [sum(s[i] for s in sent) for i in (0, 1)] == want
    if count == bits:
        assert sum(t for _, t in sides) == bits * (bits - 1) // 2


@pytest.mark.parametrize("width", range(1, 13))
def test_one_hots_and_prefixes(width: int, pairs: list[Pairing]) -> None:
    n = 67
    ends = columns(pairs, [BOTH] * width, n)
    runs = [hot(ends[i], i, pairs[i].delta, "main") for i in (0, 1)]
    one, two, sent = drive(*runs)
    rho = sum(opened(a, b) << U64(i) for i, (a, b) in enumerate(zip(*ends, strict=True)))
    assert integers(one ^ two) == [1 << int(r) for r in rho]
    less = integers(prefixes(one, width) ^ prefixes(two, width))
    assert less == [(1 << int(r)) - 1 for r in rho]  # bit c: [c < ρ]
    assert [sum(s) for s in zip(*sent, strict=True) if sent] == [hot_bytes(width, n)] * 2 * bool(
        sent
    )
    if width > 1:  # neither share alone is the one-hot
        assert integers(one) != [1 << int(r) for r in rho]


def test_bits_of_one_hots_by_formula() -> None:
    assert [hot_bits(w) for w in range(1, 9)] == [2**w - w - 1 for w in range(1, 9)]
    assert [hot_bits(w) for w in (9, 10, 12, 14)] == [376, 504, 760, 1016]


def test_trees_of_two_purposes_differ(pairs: list[Pairing]) -> None:
    """Two one-hots may begin at the same bit: their trees never evaluate the same permutation."""
    ends = columns(pairs, [BOTH] * 9, 5)
    made = []
    for purpose in ("main", "saturation"):
        runs = [hot(ends[i], i, pairs[i].delta, purpose) for i in (0, 1)]
        one, two, _ = drive(*runs)
        made.append((one, one ^ two))
    assert (made[0][1] == made[1][1]).all()
    assert (made[0][0] != made[1][0]).mean() > 0.99


@pytest.mark.parametrize("bits", [1, 13, 64])
def test_an_opened_sum(bits: int) -> None:
    rng = np.random.default_rng(bits)
    v = [words(rng, 19) for _ in range(2)]
    one, two, sent = drive(*(open_sum(x, bits) for x in v))
    assert (one == two).all()
    assert (one == reduce(v[0] + v[1], bits)).all()
    assert sent == [(packed_bytes(19, bits),) * 2]


@pytest.mark.parametrize("bits", [1, 31, 63, 64, 65, 128, 200])
@pytest.mark.parametrize("count", [1, 64, 101])
def test_packing_is_end_to_end(bits: int, count: int) -> None:
    values = wide(np.random.default_rng(bits), count, bits)
    message = packed(values, bits)
    whole = sum(v << (bits * i) for i, v in enumerate(integers(values)))
    assert message == whole.to_bytes(packed_bytes(count, bits), "little")
    assert (unpacked(message, count, bits) == values).all()
    with pytest.raises(MalformedMessage):
        unpacked(message + b"x", count, bits)


def test_bits_within_an_element() -> None:
    rng = np.random.default_rng(3)
    sizes = [8, 1, 64, 63, 130, 2, 17]
    parts = [(wide(rng, 11, size), size) for size in sizes]
    parts[1] = (parts[1][0][:, 0], 1)
    whole = joined_bits(parts, 11)
    assert whole.shape == (11, -(-sum(sizes) // 64))
    place = 0
    for values, size in parts:
        got = cut_bits(whole, place, size)
        assert (got == values.reshape(got.shape)).all()
        assert integers(got) == [(v >> place) % 2**size for v in integers(whole)]
        place += size


def test_messages_are_padded(pairs: list[Pairing]) -> None:
    """All-zero operands, and still every bit sent is a coin: within 6.5 deviations."""
    n, bits = 3000, 64
    ends = columns(pairs, [BOTH], n)
    zero = np.zeros((n, 1), U64)
    for run in (
        gated(ends[0][0], zero, bits),
        column_times(ends[1][0], zero[:, 0], bits, 1),
    ):
        sent = np.frombuffer(next(run).sent, np.uint8)
        ones = np.unpackbits(sent).reshape(n, bits)
        assert abs(int(ones.sum()) - n * bits / 2) < 6.5 * np.sqrt(n * bits) / 2
        assert (np.abs(ones.sum(axis=0) - n / 2) < 6.5 * np.sqrt(n) / 2).all()
