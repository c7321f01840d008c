"""The stream under a seed, against the block cipher itself."""

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from secure_quant.keystream import Keystream, words_under

SEEDS = st.binary(min_size=32, max_size=32)


def blocks(seed: bytes, stretch: int, count: int) -> bytes:
    """The keystream from single blocks of AES: what counter mode is defined as."""
    block = Cipher(algorithms.AES(seed), modes.ECB()).encryptor()  # noqa: S305 - one block each
    return b"".join(
        block.update(stretch.to_bytes(8, "big") + i.to_bytes(8, "big")) for i in range(count)
    )


@given(SEEDS, st.integers(0, 2**64 - 1), st.lists(st.integers(0, 200), min_size=1, max_size=5))
def test_reads_follow_each_other_in_the_counter_mode_stream(seed, stretch, counts):
    expected = np.frombuffer(blocks(seed, stretch, sum(counts) // 2 + 1), "<u8")
    stream, other = Keystream(seed, stretch), Keystream(seed, stretch)
    start = 0
    for count in counts:
        into = np.empty(count, np.uint64)
        other.read(into)
        np.testing.assert_array_equal(stream.words(count), expected[start : start + count])
        np.testing.assert_array_equal(into, expected[start : start + count])
        start += count


@given(SEEDS, st.integers(0, 20_000))
def test_words_under_a_seed_are_the_beginning_of_its_stream(seed, count):
    np.testing.assert_array_equal(words_under(seed, count), Keystream(seed).words(count))


def test_the_stream_is_nists_counter_mode():
    """SP 800-38A, F.5.5 counts from another block; AES-256 of the zero block is in FIPS 197's
    companion vectors: key 0, block 0."""
    assert words_under(bytes(32), 2).tobytes().hex() == "dc95c078a2408989ad48a21492842087"
