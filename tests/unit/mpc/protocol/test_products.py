"""Matrix products in a ring against Python's integers, convolutions against their definition."""

from __future__ import annotations

from itertools import product
from typing import Any

import numba
import numpy as np
import pytest
from numba import types

from secure_quant.ir.ops import Conv2d
from secure_quant.mpc.kernels import simd
from secure_quant.mpc.protocol.products import matmul, of_image, of_rows, padded
from secure_quant.mpc.protocol.ring import narrow_kind

U64 = np.uint64


def drawn(rng: np.random.Generator, bits: int, shape: tuple[int, ...]) -> Any:
    """Elements of Z_2^bits, half of them its largest."""
    made = rng.integers(0, 2**bits - 1, shape, U64, endpoint=True)
    made[rng.random(shape) < 0.5] = 2**bits - 1
    return made


@pytest.mark.parametrize("bits", [9, 26, 32, 33, 64])
def test_products_of_every_shape_of_tiles(bits: int) -> None:
    rng = np.random.default_rng(bits)
    shapes = [*product((1, 7, 8, 17), (5,), (1, 3, 4, 7, 8, 15, 16, 17, 40)), (3, 600, 20)]
    for rows, inner, columns in [*shapes, (515, 3, 9), (9, 257, 2)]:
        a, b = drawn(rng, bits, (2, 3, rows, inner)), drawn(rng, bits, (2, 3, inner, columns))
        want = a.astype(object) @ b.astype(object) % 2**bits
        assert (matmul(a, b, bits).astype(object) == want).all(), (rows, inner, columns)


@pytest.mark.parametrize("bits", [26, 64])
@pytest.mark.parametrize("rows", [1, 6, 21])
def test_rows_are_columns(bits: int, rows: int) -> None:
    rng = np.random.default_rng(rows)
    w, x = drawn(rng, bits, (1, 10, 13)), drawn(rng, bits, (rows, 13))
    made = of_rows(rows, 13).times(w.astype(narrow_kind(bits)), x, 1)[0, 0]
    want = w[0].astype(object) @ x.T.astype(object)
    assert ((made.astype(object) - want) % 2**bits == 0).all()


IMAGES = [
    # channels, out, kernel, stride, padding, dilation, groups, height and width
    (3, 8, (3, 3), (1, 1), (1, 1), (1, 1), 1, (6, 7)),
    (3, 5, (7, 7), (2, 2), (3, 3), (1, 1), 1, (17, 16)),
    (4, 6, (1, 1), (1, 1), (0, 0), (1, 1), 2, (5, 5)),
    (6, 6, (3, 2), (2, 1), (1, 0), (1, 2), 6, (9, 9)),
    (2, 9, (5, 5), (1, 1), (0, 0), (1, 1), 1, (5, 5)),
]


@pytest.mark.parametrize("bits", [25, 40])
@pytest.mark.parametrize("case", IMAGES, ids=str)
def test_convolutions(case: Any, bits: int) -> None:
    channels, out, kernel, stride, padding, dilation, groups, size = case
    node = Conv2d(
        name="c", inputs=("x",), in_channels=channels, out_channels=out, kernel=kernel,
        stride=stride, padding=padding, dilation=dilation, groups=groups, bias=False, bound=1,
        scale=1.0,
    )  # fmt: skip
    rng, zero = np.random.default_rng(bits), -37
    here = channels // groups
    x = drawn(rng, bits, (2, channels, *size))
    w = drawn(rng, bits, (groups, out // groups, here * kernel[0] * kernel[1]))
    onto = drawn(rng, 64, (2, out, *_sizes(case)))
    before = onto.astype(object)
    image = padded(x, zero, bits, padding)
    made = of_image(node, x.shape[1:]).times(w.astype(narrow_kind(bits)), image, 2, onto)
    want = before + _convolved(x.astype(object) - zero, w, case)
    assert ((made.reshape(want.shape).astype(object) - want) % 2**bits == 0).all()


def _sizes(case: Any) -> tuple[int, ...]:
    _, _, kernel, stride, padding, dilation, _, size = case
    return tuple(
        (n + 2 * p - (k - 1) * d - 1) // s + 1
        for n, p, k, d, s in zip(size, padding, kernel, dilation, stride, strict=True)
    )


def _convolved(x: Any, w: Any, case: Any) -> Any:
    channels, out, kernel, stride, padding, dilation, groups, size = case
    here, each = channels // groups, out // groups
    weight = w.astype(object).reshape(out, here, *kernel)
    made = np.zeros((len(x), out, *_sizes(case)), object)
    for o, i, j in product(range(out), *map(range, made.shape[2:])):
        for c, ki, kj in product(range(here), *map(range, kernel)):
            row = i * stride[0] + ki * dilation[0] - padding[0]
            column = j * stride[1] + kj * dilation[1] - padding[1]
            if 0 <= row < size[0] and 0 <= column < size[1]:
                made[:, o, i, j] += weight[o, c, ki, kj] * x[:, o // each * here + c, row, column]
    return made


@pytest.mark.parametrize("fused", [False, simd.fused()])
def test_tiles_on_processors_with_and_without_fused_products(
    fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simd, "fused", lambda: fused)
    tile, vector = simd.tiles(2, 1), types.Array(types.uint64, 1, "C")

    @numba.njit(types.void(types.uint32[::1], vector, vector, types.int64, vector))
    def run(kind: Any, left: Any, right: Any, depth: int, sums: Any) -> None:
        tile(kind, left, 0, right, depth, sums, 0, 8)

    rng = np.random.default_rng(1)
    left, right = drawn(rng, 32, (50, 2)), drawn(rng, 32, (50, 8))
    sums = drawn(rng, 64, (2, 8))
    want = sums.astype(object) + left.T.astype(object) @ right.astype(object)
    run(np.zeros(1, np.uint32), left.reshape(-1), right.reshape(-1), 50, sums.reshape(-1))
    assert ((sums.astype(object) - want) % 2**52 == 0).all()
