"""Correlated tuples for CrypTen programs: what the two parties and the dealer derive.

Every tuple has an index and is asked for once. Each party's parts come from its own AES-256-CTR
stream, one stretch per index; only what must correlate is corrected, and party 1 alone gets the
correction: (correction = the true value - party 0's part). Integers are of the ring mod 2^64.
Sources: Beaver, Efficient multiparty protocols using circuit randomization, CRYPTO 1991;
the tuples' shapes are those that CrypTen 0.4.1 asks its providers for.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import MalformedMessage, MessageTooLarge
from secure_quant.keystream import Keystream
from secure_quant.wire.gen.dealer_pb2 import DealTuple

__all__ = ["KINDS", "OPERATIONS", "TupleSampler", "TupleSpec", "correction", "own_parts"]

KINDS = ("additive", "square", "binary", "wraps", "b2a")
OPERATIONS = (
    "mul", "matmul", "conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d",
)  # fmt: skip
MAX_ELEMENTS = 2**26

Int = NDArray[np.int64]


class TupleSampler(Keystream):
    """The ring elements and bits of tuples; a stretch of the keystream for each tuple."""

    def integers(self, shape: tuple[int, ...]) -> Int:
        """Uniform int64[shape]."""
        return self.words(prod(shape)).copy().view(np.int64).reshape(shape)

    def bits(self, shape: tuple[int, ...], length: int) -> Int:
        """Uniform int64[shape] from 0 to 2^length - 1; all 64 bits for length 64."""
        values = self.integers(shape)
        return values if length >= 64 else values & ((1 << length) - 1)


@dataclass(frozen=True)
class TupleSpec:
    """kind: one of KINDS. left, right: shapes; right only for products. operation and the rest:
    of an additive triple, as torch's function of that name takes them."""

    kind: str
    left: tuple[int, ...]
    right: tuple[int, ...] = ()
    operation: str = ""
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 0

    def to_proto(self, index: int) -> DealTuple:
        """The request that names this tuple."""
        return DealTuple(
            index=index, kind=self.kind, operation=self.operation, left_shape=self.left,
            right_shape=self.right, stride=self.stride, padding=self.padding,
            output_padding=self.output_padding, dilation=self.dilation, groups=self.groups,
        )  # fmt: skip

    @classmethod
    def from_proto(cls, message: DealTuple) -> TupleSpec:
        """Raises MalformedMessage, MessageTooLarge; sizes are checked before memory is taken."""
        spec = cls(
            message.kind, tuple(message.left_shape), tuple(message.right_shape),
            message.operation, tuple(message.stride), tuple(message.padding),
            tuple(message.output_padding), tuple(message.dilation), message.groups,
        )  # fmt: skip
        if spec.kind not in KINDS or (spec.kind == "additive") != (spec.operation in OPERATIONS):
            raise MalformedMessage("tuple", got=f"{spec.kind[:20]} {spec.operation[:20]}")
        for shape in (spec.left, spec.right, spec.result):
            if len(shape) > 8 or prod(shape) > MAX_ELEMENTS:
                raise MessageTooLarge("tuple", got=shape[:8], expected=f"<= {MAX_ELEMENTS}")
        return spec

    @property
    def result(self) -> tuple[int, ...]:
        """Shape of what is corrected. Raises MalformedMessage if the shapes do not fit."""
        if self.kind == "binary":
            try:
                return np.broadcast_shapes(self.left, self.right)
            except ValueError as error:
                raise MalformedMessage("tuple", got=(self.left, self.right)) from error
        if self.kind != "additive":
            return self.left
        import torch

        try:
            made = self._product(
                *(torch.empty(shape, dtype=torch.int64, device="meta") for shape in self._shapes)
            )
        except (RuntimeError, IndexError, ValueError) as error:
            raise MalformedMessage("tuple", got=(self.left, self.right)) from error
        return tuple(made.shape)

    def product(self, left: Int, right: Int) -> Int:
        """The operation on int64 arrays, mod 2^64."""
        import torch

        made: Int = self._product(torch.from_numpy(left), torch.from_numpy(right)).numpy()
        return made

    @property
    def _shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self.left, self.right

    def _product(self, left: Any, right: Any) -> Any:
        import torch

        names = ("stride", "padding", "output_padding", "dilation", "groups")
        options = {name: value for name in names if (value := getattr(self, name))}
        return getattr(torch, self.operation)(left, right, **options)


def own_parts(spec: TupleSpec, index: int, key: bytes) -> list[Int]:
    """This party's parts of a tuple from its own stream: the free ones first, then its part of the
    corrected one, which party 1 replaces by the correction."""
    stream = TupleSampler(key, index)
    if spec.kind == "additive" or spec.kind == "binary":
        shapes = [spec.left, spec.right, spec.result]
    elif spec.kind == "b2a":
        return [stream.bits(spec.left, 1), stream.integers(spec.left)]
    else:
        shapes = [spec.left, spec.left]
    return [stream.integers(shape) for shape in shapes]


def correction(spec: TupleSpec, index: int, key0: bytes, key1: bytes) -> Int:
    """Party 1's part of what must correlate, int64[result]; for the dealer, who has both keys."""
    first, second = own_parts(spec, index, key0), own_parts(spec, index, key1)
    if spec.kind == "binary":
        left, right = first[0] ^ second[0], first[1] ^ second[1]
        return (left & right) ^ first[2]
    if spec.kind == "additive":
        return spec.product(first[0] + second[0], first[1] + second[1]) - first[2]
    if spec.kind == "square":
        whole = first[0] + second[0]
        return whole * whole - first[1]
    if spec.kind == "wraps":
        return _wraps(first[0], second[0]) - first[1]
    return (first[0] ^ second[0]) - first[1]


def _wraps(first: Int, second: Int) -> Int:
    """How often the signed sum leaves the ring: +1 past the top, -1 past the bottom."""
    total = first + second
    over = (first >= 0) & (second >= 0) & (total < 0)
    under = (first < 0) & (second < 0) & (total >= 0)
    return over.astype(np.int64) - under.astype(np.int64)
