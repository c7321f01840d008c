"""Rows of secret tables: every number gets its row, and what is opened tells nothing of either."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from secure_quant.ir.ports import id_bits, id_digits
from secure_quant.mpc.protocol import bundle
from secure_quant.mpc.protocol.gates.embedding import EmbeddingGate, TableShares, as_rows
from tests.conformance.port_cases import secret_tables
from tests.unit.mpc.protocol.harness import chi_square, run_gate, words


def gate(numbers: int, rows: int, width: int, ring: int = 21) -> EmbeddingGate:
    sizes = numbers, rows, width, ring
    free, dealt = EmbeddingGate.material(*sizes)
    return EmbeddingGate(
        name="e", inputs=("ids",), shape=(numbers, width), bits=ring, rows=rows, width=width,
        free_words=free, dealt_words=dealt, payloads=EmbeddingGate.rounds(*sizes),
    )  # fmt: skip


def shared(table: Any, seed: int) -> list[Any]:
    """Both parties' halves of int8[rows, width], and the dealer's mask."""
    rng = np.random.default_rng(seed)
    first, second = (rng.integers(0, 256, table.shape, np.uint8) for _ in range(2))
    masked = table.view(np.uint8) ^ first ^ second
    halves = [TableShares(as_rows(masked), as_rows(own)) for own in (masked ^ first, second)]
    return [*halves, as_rows(first ^ second)]


def digits_of(numbers: Any, rows: int) -> Any:
    """int64[n, digits], signed as an int8 Input has them."""
    made = numbers[:, None] >> 8 * np.arange(id_digits(rows)) & 255
    return made.astype(np.uint8).view(np.int8).astype(np.int64)


def run(made: EmbeddingGate, table: Any, numbers: Any, masks: Any = None, seed: int = 0) -> Any:
    digits = digits_of(numbers, made.rows)
    if masks is None:
        masks = words(np.random.default_rng(seed + 9), *digits.shape)
    return run_gate(made, [digits], [masks], seed, shared(table, seed))


def drawn(rows: int, width: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(-128, 128, (rows, width)).astype(np.int8)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 64, 65, 200, 256])
@pytest.mark.parametrize("ring", [8, 21, 64])
def test_every_byte_has_a_row(rows: int, ring: int) -> None:
    table, numbers = drawn(rows, 3), np.arange(256)
    got, _, _ = run(gate(256, rows, 3, ring), table, numbers)
    assert (got == table[numbers % 2 ** id_bits(rows) % rows]).all()


@pytest.mark.parametrize("mask", range(0, 256, 17))
def test_every_number_under_a_mask(mask: int) -> None:
    table, numbers = drawn(11, 9), np.arange(256)
    masks = np.full((256, 1), mask, np.uint64) | words(
        np.random.default_rng(1), 256, 1
    ) << np.uint64(8)
    got, _, _ = run(gate(256, 11, 9), table, numbers, masks)
    assert (got == table[numbers % 16 % 11]).all()


@pytest.mark.parametrize(("rows", "width"), [(257, 8), (30_522, 17), (65_536, 1), (70_000, 2)])
def test_numbers_of_several_digits(rows: int, width: int) -> None:
    table, rng = drawn(rows, width), np.random.default_rng(3)
    size = 2 ** (8 * id_digits(rows))
    numbers = np.append(
        rng.integers(0, size, 12), [0, 1, 255, 256, rows - 1, rows % size, size - 1]
    )
    got, _, _ = run(gate(len(numbers), rows, width), table, numbers)
    assert (got == table[numbers % 2 ** id_bits(rows) % rows]).all()


def in_words(data: bytes, per: int) -> Any:
    return np.frombuffer(data, "<u8").reshape(-1, per)


@pytest.mark.parametrize("number", [0, 1, 77, 127, 255])
def test_what_is_seen_is_uniform_whatever_number_and_table(number: int) -> None:
    """Numbers and tables as far from random as can be: one number throughout, one row set."""
    count, rows, width = 2**13, 128, 8
    table = np.zeros((rows, width), np.int8)
    table[77] = -1
    made = gate(count, rows, width)
    _, (one, _), rounds = run(made, table, np.full(count, number), seed=number)
    hot, row = ([in_words(data, 2 if i == 0 else 1) for data in rounds[i]] for i in range(2))
    for first, second in (hot, row):
        for values in (first, second, first ^ second):
            assert chi_square(values.reshape(-1), 64) < 6
            octets = np.ascontiguousarray(values).view(np.uint8).astype(np.uint64)
            assert chi_square(octets.reshape(-1), 8) < 6
    assert chi_square(one.masked.reshape(-1), made.bits) < 6
    # Two openings of one number have masks of their own: together they are uniform too.
    both = (hot[0] ^ hot[1])[:, 0] & np.uint64(15) | (
        (row[0] ^ row[1])[:, 0] & np.uint64(15)
    ) << np.uint64(4)
    assert chi_square(both, 8) < 6


@pytest.mark.parametrize("party", [0, 1])
def test_no_place_of_a_one_hot_stands_out(party: int) -> None:
    """What a party receives, and that less what it sent and drew: the hot place as others."""
    count, rows = 2**13, 64
    made, digits = gate(count, rows, 8), digits_of(np.full(count, 33), rows)
    masks = words(np.random.default_rng(party), count, 1)
    _, _, rounds = run_gate(made, [digits], [masks], 5, shared(drawn(rows, 8), 5))
    streams = np.random.default_rng(5)  # as run_gate draws them
    free = [words(streams, made.free_words) for _ in range(2)]
    got = in_words(rounds[0][1 - party], 1)
    opened = got ^ in_words(rounds[0][party], 1)
    for seen in (got, opened, opened ^ made.split(free[party])[0]):
        places = np.unpackbits(np.ascontiguousarray(seen).view(np.uint8), axis=-1)
        assert abs(places.mean(0) - 0.5).max() < 5 / 2 / np.sqrt(count)
        assert chi_square(seen.reshape(-1), 64) < 6


def test_costs_what_the_specification_states() -> None:
    """As ``docs/spec/mpc.md`` has them, for BERT's words in MiniLM, 128 of them."""
    made = gate(128, 30_522, 384, 20)
    assert made.dealt_words * 8 == 128 * (2**15 // 8 + 384 * (8 * 20 - 28) // 8)
    assert made.payload_bytes(1) == (128 * 477 * 8, 128 * 384, 128 * 384 * 20 // 8)


def test_no_bundle_but_both_parties_together_holds_the_table() -> None:
    graph = secret_tables()
    bundles = bundle.split(graph)
    for name, table in graph.parameters.items():
        if table.size < 100 or not name.startswith("embedding"):
            continue
        assert all(table.tobytes()[:64] not in data for data in bundles.values())
        node = name.removesuffix(".weight")
        first, second = (
            bundle.load_party(bundles[f"party{i}"])._parameters[node] for i in range(2)
        )
        octets = np.ascontiguousarray(first.own ^ second.own).view(np.uint8)
        assert np.array_equal(octets[:, : table.shape[1]].view(np.int8), table)
        for half in (first.masked, first.own, second.own):
            if half.size > 2**12:
                kept = np.ascontiguousarray(half).view(np.uint8)[:, : table.shape[1]]
                assert chi_square(kept.reshape(-1).astype(np.uint64), 8) < 6
    assert len(bundles["client"]) < 2**16 > len(bundles["dealer"])
