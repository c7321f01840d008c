"""The planner's search: tile shapes and rings for one layer, cheapest first.

Costs are whole numbers (nanoseconds on one modest core, and bytes), so that two machines always
choose the same plan.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import OpNotSupported
from secure_quant.he.geometry import Geometry
from secure_quant.he.noise import Layer, Scaling, choose
from secure_quant.he.packing import Packing, Tile
from secure_quant.he.parameters import TIERS, Parameters, Tier
from secure_quant.he.wire import Call

__all__ = [
    "MAX_BATCH",
    "MAX_WEIGHT_BYTES",
    "Objective",
    "layer_of",
    "search",
]

Objective = Literal["latency", "traffic"]
Int = NDArray[np.int64]

MAX_BATCH = 256
"""Samples in one call; the noise bound holds for all outputs of such a call together."""
MAX_WEIGHT_BYTES = 4 * 2**30
"""Transformed weights of one layer; a packing above it is not considered."""

# Nanoseconds per coefficient and prime, both ends together.
_UP, _DOWN, _PRODUCT = 20, 50, 3
_PER_BYTE = {"latency": 20, "traffic": 1000}  # 20 ns: 400 Mbit/s
_FINALISTS = 6
_LIGHT = 2**28  # bytes of transformed weights that any layer may take to be fast


def layer_of(geometry: Geometry, tile: Tile) -> Layer:
    """What the noise bound needs of a layer under a tile, for any batch up to MAX_BATCH."""
    rows = min(tile.cout, tile.merge * geometry.cout)
    return Layer(geometry.outputs * MAX_BATCH, geometry.bound, geometry.row_l1, rows)


def search(
    name: str,
    geometry: Geometry,
    batch: int,
    tier: Tier,
    objective: Objective,
    rings: tuple[Parameters, ...] | None = None,
) -> tuple[Parameters, Tile, Scaling]:
    """The cheapest sound packing of a layer for ``batch`` samples. rings: the tier's, unless given.

    Raises OpNotSupported if none of the rings holds the layer exactly.
    """
    best = _best(geometry, batch, tier, objective, rings or TIERS[tier])
    if best is None:
        raise OpNotSupported(
            f"{name!r} under {tier}",
            got=f"accumulators up to {geometry.bound}, images {geometry.height}x{geometry.width}",
            expected="a layer that fits a ring of degree <= 8192 within the noise bound",
        )
    return best


@lru_cache(maxsize=4096)
def _best(
    geometry: Geometry,
    batch: int,
    tier: Tier,
    objective: Objective,
    rings: tuple[Parameters, ...],
) -> tuple[Parameters, Tile, Scaling] | None:
    best: tuple[int, Parameters, Tile, Scaling] | None = None
    for ring in rings:
        for tile in _finalists(geometry, batch, ring, objective):
            packing = Packing(geometry, tile, ring.degree, batch)
            sent = (
                packing.cells * packing.n_in * (packing.spare + packing.carried), ring.degree,
                packing.cells * packing.n_out * ring.degree, packing.outputs,
            )  # fmt: skip
            scaling = choose(layer_of(geometry, tile), ring, tier, sent)
            if scaling is None:
                continue
            cost = _cost(packing, ring, scaling, objective)
            if best is None or cost < best[0]:
                best = (cost, ring, tile, scaling)
    return None if best is None else best[1:]


def _cost(packing: Packing, ring: Parameters, scaling: Scaling, objective: Objective) -> int:
    n_in, n_out, cells = packing.n_in, packing.n_out, packing.cells
    work = cells * (n_in * _UP + n_out * _DOWN + n_in * n_out * _PRODUCT)
    cost = Call(packing, ring, scaling).cost
    sent = cost.bytes_up + cost.bytes_down
    return work * ring.degree * len(ring.primes) + sent * _PER_BYTE[objective]


def _finalists(g: Geometry, batch: int, ring: Parameters, objective: Objective) -> list[Tile]:
    """The most promising tiles by an estimate with fixed widths."""
    found: list[tuple[int, Tile]] = []
    high, wide = (
        a.reshape(-1)
        for a in np.meshgrid(
            _splits(g.out_height) + g.kh - 1, _splits(g.out_width) + g.kw - 1, indexing="ij"
        )
    )
    fits = high * wide <= ring.degree
    for merge in _splits(g.groups).tolist():
        found += _merged(g, batch, ring, objective, merge, high[fits], wide[fits])
    return [tile for _, tile in sorted(found, key=lambda entry: entry[0])[:_FINALISTS]]


def _merged(
    g: Geometry,
    batch: int,
    ring: Parameters,
    objective: Objective,
    merge: int,
    high: Int,
    wide: Int,
) -> Iterator[tuple[int, Tile]]:
    """Estimated cost and tile of the best with ``merge`` groups joined, over the given sizes."""
    rows, cin, place = (
        a.reshape(-1)
        for a in np.meshgrid(
            _splits(batch * g.rows), _splits(g.cin * merge), np.arange(len(high)), indexing="ij"
        )
    )
    used = rows * cin * high[place] * wide[place]
    keep = used <= ring.degree
    rows, cin, place, used = rows[keep], cin[keep], place[keep], used[keep]
    channels = g.cout * merge
    n_out = -(-channels // np.clip(ring.degree // used, 1, channels))
    n_in = -(-g.cin * merge // cin)
    groups = -(-g.groups // merge)
    cells = -(-batch * g.rows // rows) * groups
    cells = cells * -(-g.out_height // (high[place] - g.kh + 1))
    cells = cells * -(-g.out_width // (wide[place] - g.kw + 1))
    work = cells * (n_in * _UP + n_out * _DOWN + n_in * n_out * _PRODUCT)
    used = used * -(-channels // n_out)
    sent = cells * (6 * n_in * used // ring.degree + 4 * n_out)
    cost = work * len(ring.primes) + sent * _PER_BYTE[objective]
    weights = groups * n_in * n_out * ring.degree * 8 * len(ring.primes)
    least = 8 * len(ring.primes) * g.groups * g.cin * g.cout * g.kh * g.kw
    light = np.flatnonzero(weights <= min(max(2 * least, _LIGHT), MAX_WEIGHT_BYTES))
    for i in light[np.argsort(cost[light], kind="stable")[:_FINALISTS]].tolist():
        cout = -(-channels // int(n_out[i]))
        at = int(place[i])
        tile = Tile(int(rows[i]), merge, int(cin[i]), cout, int(high[at]), int(wide[at]))
        yield int(cost[i]), tile


def _splits(size: int) -> Int:
    """Sizes of the largest chunk when ``size`` is cut evenly, each once, largest first."""
    return np.unique(-(-size // np.arange(1, size + 1)))[::-1]
