"""The bytes of requests and responses: pinned, and those of docs/spec/ckks.md read bit by bit."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from unit.he.models import lenet

from secure_quant.errors import MalformedMessage
from secure_quant.he.parameters import Tier
from secure_quant.he.plan import plan
from secure_quant.he.wire import Call

FROZEN = {
    ("T1", 0): (
        "93ec763a714d12f381ead2d1a0c212a2f6bfd380de530041307b76531a0ffbaf",
        "483af8a8876ac5bd286f68e0e772e8b93ad483ea48b72ddc5b40366834677012",
    ),
    ("T1", 4): (
        "5dcca26db3c28603afedef1ff51dd577a7a75a1f5daab3d9dbc0c60af9ce03cb",
        "80f9660dfea91f26b132afca297868bbb6c2b70c5dc656e08ce934a98dbf757e",
    ),
    ("T1-strict", 0): (
        "95871ec6b1ef6a6cfd194527eba1e626cad2f6580b2c54ee828d9fe44a628543",
        "7ced7e8e61c3444050264044c93d20758b70c36fe1ba26f056f9422a2547adea",
    ),
    ("T1-strict", 4): (
        "168e4d37d55e58f8b16475f6a64b57edd904242ea21919764d8b29345bc93d31",
        "a7e7f289967601078aae89119b80b5c5856e8b83ca59d6c775d7e6d86f98f108",
    ),
}
"""(tier, step of the LeNet) -> SHA-256 of the messages below, as release 0.1 wrote them."""

SEED = bytes(range(32))
CASES = list(FROZEN)


class _Parts:
    """Some residues for every part of both messages."""

    def __init__(self, tier: Tier, step: int) -> None:
        self.call = plan(lenet(), "latency", tier).steps[step].call(3)
        rng, primes = np.random.default_rng(7), self.call.ring.primes

        def residues(*shape: int) -> np.ndarray:
            return np.stack([rng.integers(0, prime, shape, dtype=np.uint64) for prime in primes], 1)

        up, packing, degree = self.call.ciphertexts_up, self.call.packing, self.call.ring.degree
        self.key = rng.integers(0, primes[0], degree, dtype=np.uint64)
        self.spare, self.carried = residues(up, packing.spare), residues(up, packing.carried)
        shape = (self.call.ciphertexts_down, degree)
        self.c1 = rng.integers(0, primes[0], shape, dtype=np.uint64)
        self.c0 = rng.integers(0, primes[0], packing.outputs, dtype=np.uint64)

    @property
    def request(self) -> bytes:
        head = self.call.request_head(SEED, self.key, self.spare)
        return head + self.call.request_tail(self.carried)

    @property
    def response(self) -> bytes:
        return self.call.response_c1(self.c1) + self.call.response_c0(self.c0)


def _record(values: np.ndarray, prime: int, drop: int) -> bytes:
    """One record, from the words of the specification and Python's integers."""
    whole, rest = divmod(prime.bit_length() - drop, 8)
    kept = [int(value) >> drop for value in values]
    made = b"".join((value >> rest).to_bytes(whole, "little") for value in kept)
    for start in range(0, len(kept), 8) if rest else ():
        eight = kept[start : start + 8]
        low = sum((value % 2**rest) << (i * rest) for i, value in enumerate(eight))
        made += low.to_bytes(rest, "little")
    return made


@pytest.mark.parametrize(("tier", "step"), CASES)
def test_bytes_are_those_of_the_first_release(tier: Tier, step: int) -> None:
    parts = _Parts(tier, step)
    found = [hashlib.sha256(message).hexdigest() for message in (parts.request, parts.response)]
    assert tuple(found) == FROZEN[tier, step]


@pytest.mark.parametrize(("tier", "step"), CASES)
def test_bytes_are_those_of_the_specification(tier: Tier, step: int) -> None:
    parts = _Parts(tier, step)
    call, primes, s = parts.call, parts.call.ring.primes, parts.call.scaling
    records = [_record(parts.key, primes[0], s.drop_key)]
    for polynomials in (parts.spare, parts.carried):
        for polynomial in polynomials:
            records += map(_record, polynomial, primes, [s.drop_up] * len(primes))
    assert parts.request == SEED + b"".join(records)
    answers = [_record(c1, primes[0], s.drop_c1) for c1 in parts.c1]
    assert parts.response == b"".join([*answers, _record(parts.c0, primes[0], s.drop_c0)])
    assert (len(parts.request), len(parts.response)) == (call.cost.bytes_up, call.cost.bytes_down)


@pytest.mark.parametrize(("tier", "step"), CASES)
@pytest.mark.parametrize("count", [1, 2, 100])
def test_read_is_written_but_for_what_was_dropped(tier: Tier, step: int, count: int) -> None:
    parts = _Parts(tier, step)
    call, s = parts.call, parts.call.scaling
    reader = call.read_request(parts.request)
    assert reader.seed == SEED
    assert _off(reader.key(), parts.key) <= 2**s.drop_key // 2
    pieces = [reader.take(count) for _ in range(-(-call.ciphertexts_up // count))]
    for i, sent in enumerate((parts.carried, parts.spare)):
        got = np.concatenate([piece[i] for piece in pieces])
        assert _off(got, sent) <= 2**s.drop_up // 2
    c1, c0 = call.read_response(parts.response)
    assert _off(c1, parts.c1) <= 2**s.drop_c1 // 2
    assert _off(c0, parts.c0) <= 2**s.drop_c0 // 2


def _off(got: np.ndarray, sent: np.ndarray) -> int:
    assert got.shape == sent.shape
    return int(np.abs(got.astype(np.int64) - sent.astype(np.int64)).max(initial=0))


@pytest.mark.parametrize("change", [-1, 1])
def test_another_length_is_refused_at_once(change: int) -> None:
    parts = _Parts("T1", 0)
    both = (
        (parts.request, parts.call.read_request),
        (parts.response, parts.call.read_response),
    )
    for message, read in both:
        with pytest.raises(MalformedMessage, match=rf"{len(message) + change} bytes"):
            read(message[:change] if change < 0 else message + bytes(change))


@pytest.mark.parametrize("part", range(3))
def test_a_value_beyond_its_prime_is_refused_wherever_it_stands(part: int) -> None:
    parts = _Parts("T1-strict", 0)  # which drops nothing upward
    ends = np.cumsum(parts.call.request_sizes)
    data = bytearray(parts.request)
    data[ends[part] : ends[part] + 64] = b"\xff" * 64
    with pytest.raises(MalformedMessage, match="coefficient"):
        _read(parts.call, bytes(data))


def _read(call: Call, data: bytes) -> None:
    reader = call.read_request(data)
    reader.key()
    reader.take(call.ciphertexts_up)
