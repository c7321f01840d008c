"""Packings against the reference, with the ring product done by plain integers."""

from __future__ import annotations

import numpy as np
import pytest
from unit.he.models import centred, conv, linear, random_input

from secure_quant import reference
from secure_quant.he.geometry import Geometry
from secure_quant.he.packing import Packing, Tile
from secure_quant.ir import Graph

DEGREE = 512


def negacyclic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    full = np.convolve(x, y)
    product = full[:DEGREE].copy()
    product[: len(full) - DEGREE] -= full[DEGREE:]
    return product


def through_the_ring(graph: Graph, tile: Tile, q: np.ndarray) -> np.ndarray:
    """The layer without its bias, by packed polynomials alone. What is not sent may be anything."""
    node = graph.nodes[1]
    geometry = Geometry.of(graph, node)
    packing = Packing(geometry, tile, DEGREE, len(q))
    carried = packing.input(geometry.arrange(centred(graph, "x", q)))
    inputs = packing.unite(carried, np.zeros((len(carried), packing.spare), np.int64))
    needed = packing.unite(np.ones_like(carried), np.ones((len(carried), packing.spare), np.int64))
    inputs[needed == 0] = np.random.default_rng(1).integers(-(2**20), 2**20, (needed == 0).sum())
    arranged = geometry.arrange_weight(graph.weight(node))
    weights = [list(packing.weight(arranged, group)) for group in range(packing.grid[1])]
    products = [
        sum(
            negacyclic(inputs[cell * packing.n_in + i], weights[packing.group_of(cell)][i][o])
            for i in range(packing.n_in)
        )
        for cell in range(packing.cells)
        for o in range(packing.n_out)
    ]
    return geometry.restore(packing.output(packing.wanted(np.array(products))))


def random_tile(rng: np.random.Generator, geometry: Geometry, batch: int) -> Tile:
    while True:
        merge = int(rng.integers(1, geometry.groups + 1))
        tile = Tile(
            int(rng.integers(1, geometry.rows * batch + 1)),
            merge,
            int(rng.integers(1, geometry.cin * merge + 1)),
            int(rng.integers(1, geometry.cout * merge + 1)),
            int(rng.integers(geometry.kh, geometry.height + 1)),
            int(rng.integers(geometry.kw, geometry.width + 1)),
        )
        if tile.coefficients <= DEGREE:
            return tile


def random_layer(rng: np.random.Generator, seed: int) -> Graph:
    def pick(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    if seed % 3 == 0:
        lead = [(), (3,), (2, 2)][pick(0, 2)]
        return linear(pick(1, 40), pick(1, 20), lead=lead, seed=seed)
    groups = [1, 1, 2, 3, 4][pick(0, 4)]
    return conv(
        groups * pick(1, 3), groups * pick(1, 3), (pick(7, 10), pick(7, 11)),
        (pick(1, 4), pick(1, 3)), stride=(pick(1, 3), pick(1, 3)), padding=(pick(0, 2), pick(0, 2)),
        dilation=(pick(1, 2), pick(1, 3)), groups=groups, seed=seed,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(60))
def test_every_tile_computes_the_layer(seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = random_layer(rng, seed)
    q = random_input(graph, int(rng.integers(1, 4)), seed)
    geometry = Geometry.of(graph, graph.nodes[1])
    bias = graph.bias(graph.nodes[1])
    shape = (-1, 1, 1) if len(geometry.out_shape) == 3 and seed % 3 else (-1,)
    expected = reference.trace(graph, q)["layer"] - bias.reshape(shape)
    for _ in range(2):
        tile = random_tile(rng, geometry, len(q))
        assert np.array_equal(through_the_ring(graph, tile, q), expected), tile


@pytest.mark.parametrize("seed", range(20))
def test_dividing_and_uniting_are_inverse(seed: int) -> None:
    rng = np.random.default_rng(seed)
    geometry = Geometry.of(graph := random_layer(rng, seed), graph.nodes[1])
    packing = Packing(geometry, random_tile(rng, geometry, 2), DEGREE, 2)
    carried = rng.integers(1, 99, (3, 2, packing.carried))
    spare = rng.integers(1, 99, (3, 2, packing.spare))
    whole = packing.unite(carried, spare)
    assert np.count_nonzero(whole) == carried.size + spare.size
    for made, expected in zip(packing.divide(whole), (carried, spare), strict=True):
        assert np.array_equal(made, expected)


def test_a_dense_layer_sends_little_more_than_its_tile() -> None:
    geometry = Geometry.of(graph := linear(84, 10), graph.nodes[1])
    packing = Packing(geometry, Tile(1, 1, 84, 10, 1, 1), 2048, 1)
    assert (packing.carried, packing.carried + packing.spare) == (84, 84 * 10 + 9)


def test_unused_stride_phases_are_not_sent() -> None:
    graph = conv(8, 4, (9, 9), (1, 1), stride=(2, 2))
    geometry = Geometry.of(graph, graph.nodes[1])
    assert (geometry.cin, geometry.height, geometry.width) == (8, 5, 5)


def test_row_l1_follows_from_the_bound_and_covers_the_weights() -> None:
    for seed in range(20):
        graph = random_layer(np.random.default_rng(seed), seed)
        public = Geometry.of(graph.public(), graph.nodes[1])
        assert public == Geometry.of(graph, graph.nodes[1])
        rows = np.abs(graph.weight(graph.nodes[1]).astype(int)).reshape(
            len(graph.bias(graph.nodes[1])), -1
        )
        assert rows.sum(1).max() <= public.row_l1
