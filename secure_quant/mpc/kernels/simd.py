"""What the compiled loops say to LLVM directly: parities of eight planes at once, bit counts, and
the inner loop of matrix products.

A vector of eight words is one register of AVX-512, two of AVX2, four of SSE2 or NEON: LLVM cuts it
to what the machine has. Written as loops, the same was 5 to 25 times slower.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils, codegen, config
from numba.extending import intrinsic

__all__ = ["LANES", "blocks", "exchange", "fused", "parities", "popcount", "tiles"]

LANES = 8
"""Planes that a row of a plane table holds."""

WORD = ir.IntType(64)
U = types.uint64


def _vector(lanes: int, element: Any = WORD) -> Any:
    return ir.VectorType(element, lanes)


def _places(places: list[int]) -> Any:
    int32 = ir.IntType(32)
    return ir.Constant(_vector(len(places), int32), [ir.Constant(int32, i) for i in places])


def _filled(builder: Any, word: Any, lanes: int) -> Any:
    """``word`` in every lane."""
    empty = ir.Constant(_vector(lanes), ir.Undefined)
    first = builder.insert_element(empty, word, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, empty, _places([0] * lanes))


def _call(builder: Any, name: str, vector: Any, *args: Any) -> Any:
    """An LLVM operation on vectors of words."""
    kind = ir.FunctionType(vector, [vector] * len(args))
    function = cgutils.get_or_insert_function(
        builder.module, kind, f"llvm.{name}.v{vector.count}i64"
    )
    return builder.call(function, args)


def _data(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    return context.make_array(kind)(context, builder, array).data


def _load(builder: Any, data: Any, place: Any, lanes: int) -> Any:
    pointer = builder.bitcast(builder.gep(data, [place]), ir.PointerType(_vector(lanes)))
    return builder.load(pointer, align=8)


def _odd(builder: Any, sums: Any) -> Any:
    """Bit b of the word made is the parity of lane b."""
    counts = _call(builder, "ctpop", sums.type, sums)
    odd = builder.trunc(counts, _vector(LANES, ir.IntType(1)))
    if sys.byteorder == "big":
        odd = builder.shuffle_vector(odd, odd, _places(list(reversed(range(LANES)))))
    return builder.zext(builder.bitcast(odd, ir.IntType(LANES)), WORD)


@intrinsic  # type: ignore[untyped-decorator]
def popcount(typing: Any, x: Any) -> Any:
    """Ones in a word."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return U(U), generate


@intrinsic  # type: ignore[untyped-decorator]
def exchange(typing: Any, rows: Any, low: Any, high: Any, by: Any, keep: Any) -> Any:
    """The bits ``keep`` << ``by`` of row ``low`` and the bits ``keep`` of row ``high`` change
    places, in every lane. rows: uint64[..., LANES]."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = _data(context, builder, signature.args[0], args[0])
        lanes = ir.Constant(WORD, LANES)
        first, second = (
            builder.bitcast(
                builder.gep(data, [builder.mul(row, lanes)]), ir.PointerType(_vector(LANES))
            )
            for row in args[1:3]
        )
        shift, mask = (_filled(builder, word, LANES) for word in args[3:])
        one, two = (builder.load(each, align=8) for each in (first, second))
        moved = builder.and_(builder.xor(builder.lshr(one, shift), two), mask)
        builder.store(builder.xor(one, builder.shl(moved, shift)), first, align=8)
        builder.store(builder.xor(two, moved), second, align=8)
        return context.get_dummy_value()

    return types.void(rows, U, U, U, U), generate


@intrinsic  # type: ignore[untyped-decorator]
def parities(typing: Any, word: Any, planes: Any, row: Any) -> Any:
    """Bit b: parity of ``word`` AND planes[row, b]. planes: uint64[..., LANES], rows end to end."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        table = _data(context, builder, signature.args[1], args[1])
        place = builder.mul(args[2], ir.Constant(WORD, LANES))
        plane = _load(builder, table, place, LANES)
        return _odd(builder, builder.and_(_filled(builder, args[0], LANES), plane))

    return U(U, planes, U), generate


def blocks(size: int) -> Callable[..., Any]:
    """The function below for blocks of ``size`` words, 2 to 8."""

    @intrinsic  # type: ignore[untyped-decorator]
    def block(
        typing: Any, words: Any, first: Any, after: Any, shift: Any, planes: Any, row: Any
    ) -> Any:
        """Bit b: parity of x AND planes[row : row + size, b], where x is words[first : first +
        size] and the word ``after``, shifted down by ``shift`` < 64 bits."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            data = _data(context, builder, signature.args[0], args[0])
            table = _data(context, builder, signature.args[4], args[4])
            here = _load(builder, data, args[1], size)
            last = _filled(builder, args[2], size)
            ahead = builder.shuffle_vector(here, last, _places(list(range(1, size + 1))))
            by = _filled(builder, args[3], size)
            shifted = _call(builder, "fshr", here.type, ahead, here, by)
            place = builder.mul(args[5], ir.Constant(WORD, LANES))
            sums = ir.Constant(_vector(LANES), None)
            for j in range(size):
                word = builder.shuffle_vector(shifted, shifted, _places([j] * LANES))
                at = builder.add(place, ir.Constant(WORD, LANES * j))
                sums = builder.xor(sums, builder.and_(word, _load(builder, table, at, LANES)))
            return _odd(builder, sums)

        return U(words, U, U, U, planes, U), generate

    made: Callable[..., Any] = block
    return made


def fused() -> bool:
    """Whether one instruction multiplies eight pairs of numbers of 52 bits and adds the low 52 bits
    of the products to sums (AVX-512 IFMA), on the processor that numba compiles for."""
    told = config.CPU_FEATURES
    features = codegen.get_host_cpu_features() if told is None else told
    return "+avx512ifma" in features.split(",")


def _added(builder: Any, sums: Any, left: Any, right: Any, *, narrow: bool) -> Any:
    """sums + left · right in each lane. narrow: both below 2^32, and of the sums 52 bits wanted."""
    if narrow and fused():
        kind = ir.FunctionType(sums.type, [sums.type] * 3)
        name = "llvm.x86.avx512.vpmadd52l.uq.512"
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.call(function, (sums, left, right))
    if narrow:  # which LLVM is to see: a product of halves is one instruction, of words it is many
        low = ir.Constant(sums.type, [ir.Constant(WORD, 2**32 - 1)] * LANES)
        left, right = builder.and_(left, low), builder.and_(right, low)
    return builder.add(sums, builder.mul(left, right))


def tiles(rows: int, vectors: int) -> Callable[..., Any]:
    """The function below for so many rows and vectors of eight columns."""

    @intrinsic  # type: ignore[untyped-decorator]
    def tile(
        typing: Any, kind: Any, left: Any, at: Any, right: Any, depth: Any, sums: Any, place: Any,
        stride: Any,
    ) -> Any:  # fmt: skip
        """sums[place + r·stride + c] += Σ_p left[at + p·rows + r] · right[p·columns + c] mod 2^64,
        p < depth; mod 2^52 where ``kind``, an array that is not read, is of uint32: then factors
        are below 2^32."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            narrow = signature.args[0].dtype == types.uint32
            a, b, c = (_data(context, builder, signature.args[i], args[i]) for i in (1, 3, 5))
            at, depth, place, stride = args[2], args[4], args[6], args[7]

            def step(first: Any, by: Any, number: int) -> Any:
                return builder.add(first, builder.mul(by, ir.Constant(WORD, number)))

            def pointer(data: Any, first: Any, vector: int) -> Any:
                where = builder.gep(data, [step(first, ir.Constant(WORD, LANES), vector)])
                return builder.bitcast(where, ir.PointerType(_vector(LANES)))

            held = [
                [cgutils.alloca_once(builder, _vector(LANES)) for _ in range(vectors)]
                for _ in range(rows)
            ]
            for r, row in enumerate(held):
                for v, each in enumerate(row):
                    found = builder.load(pointer(c, step(place, stride, r), v), align=8)
                    builder.store(found, each)
            with cgutils.for_range(builder, depth) as loop:
                first = builder.mul(loop.index, ir.Constant(WORD, LANES * vectors))
                across = [builder.load(pointer(b, first, v), align=8) for v in range(vectors)]
                down = step(at, loop.index, rows)
                for r, row in enumerate(held):
                    word = builder.load(builder.gep(a, [builder.add(down, ir.Constant(WORD, r))]))
                    factor = _filled(builder, word, LANES)
                    for each, other in zip(row, across, strict=True):
                        more = _added(builder, builder.load(each), factor, other, narrow=narrow)
                        builder.store(more, each)
            for r, row in enumerate(held):
                for v, each in enumerate(row):
                    builder.store(
                        builder.load(each), pointer(c, step(place, stride, r), v), align=8
                    )
            return context.get_dummy_value()

        index = types.int64
        return types.void(kind, left, index, right, index, sums, index, index), generate

    made: Callable[..., Any] = tile
    return made
