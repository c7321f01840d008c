"""CrypTen's ``TupleProvider`` over our dealer.

Both parties expand their parts from their own seed, and both tell the dealer which tuple they mean.
Party 1 waits for the correction; party 0 needs nothing from anybody and goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from secure_quant.errors import OpNotSupported
from secure_quant.mpc.crypten.compat import (
    ArithmeticSharedTensor,
    BinarySharedTensor,
    TupleProvider,
)
from secure_quant.mpc.crypten.tuples import OPERATIONS, TupleSampler, TupleSpec, own_parts

__all__ = ["DealtTupleProvider", "random_bits", "ring_element"]

Correct = Callable[[TupleSpec, int], memoryview | None]
"""A party's way to the dealer: (tuple, index) -> correction, int64 little-endian, or None."""


class DealtTupleProvider(TupleProvider):  # type: ignore[misc]  # CrypTen has no types
    """``key``: this party's seed of the session."""

    NAME = "secure_quant"

    def __init__(self, key: bytes, correct: Correct) -> None:
        super().__init__()
        self._key, self._correct, self._next = key, correct, 0

    def generate_additive_triple(
        self, size0: Any, size1: Any, op: str, device: Any = None, *args: Any, **kwargs: Any
    ) -> tuple[Any, Any, Any]:
        if op not in OPERATIONS or args:
            raise OpNotSupported("bilinear operation", got=op, expected=", ".join(OPERATIONS))
        spec = TupleSpec("additive", tuple(size0), tuple(size1), op, **_options(kwargs))
        left, right, result = self._parts(spec)
        return _arithmetic(left), _arithmetic(right), _arithmetic(result)

    def square(self, size: Any, device: Any = None) -> tuple[Any, Any]:
        root, result = self._parts(TupleSpec("square", tuple(size)))
        return _arithmetic(root), _arithmetic(result)

    def generate_binary_triple(
        self, size0: Any, size1: Any, device: Any = None
    ) -> tuple[Any, Any, Any]:
        left, right, result = self._parts(TupleSpec("binary", tuple(size0), tuple(size1)))
        return tuple(BinarySharedTensor.from_shares(part) for part in (left, right, result))

    def wrap_rng(self, size: Any, device: Any = None) -> tuple[Any, Any]:
        mask, wraps = self._parts(TupleSpec("wraps", tuple(size)))
        return _arithmetic(mask), _arithmetic(wraps)

    def B2A_rng(self, size: Any, device: Any = None) -> tuple[Any, Any]:  # noqa: N802
        binary, arithmetic = self._parts(TupleSpec("b2a", tuple(size)))
        return _arithmetic(arithmetic), BinarySharedTensor.from_shares(binary)

    def _parts(self, spec: TupleSpec) -> list[torch.Tensor]:
        index, self._next = self._next, self._next + 1
        parts = own_parts(spec, index, self._key)
        corrected = self._correct(spec, index)
        if corrected is not None:
            parts[-1] = np.frombuffer(corrected, "<i8").reshape(parts[-1].shape)
        return [torch.from_numpy(part) for part in parts]


def ring_element(
    size: Any, ring_size: int = 2**64, generator: TupleSampler | None = None, **kwargs: Any
) -> torch.Tensor:
    """Stands in for CrypTen's generator of ring elements; reads an AES-CTR stream instead."""
    if ring_size != 2**64:
        raise OpNotSupported("ring", got=ring_size, expected="2^64")
    return torch.from_numpy(_stream(generator).integers(tuple(size)))


def random_bits(
    size: Any, bitlength: int | None = None, generator: TupleSampler | None = None, **kwargs: Any
) -> torch.Tensor:
    """Stands in for CrypTen's generator of k-bit numbers; 64 bits by default."""
    return torch.from_numpy(_stream(generator).bits(tuple(size), bitlength or 64))


def _stream(generator: TupleSampler | None) -> TupleSampler:
    if generator is not None:
        return generator
    from secure_quant.mpc.crypten.compat import crypten

    local: TupleSampler = crypten.generators["local"][torch.device("cpu")]
    return local


def _arithmetic(part: torch.Tensor) -> Any:
    return ArithmeticSharedTensor.from_shares(part, precision=0)


def _options(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Stride, padding and the like as tuples. Raises OpNotSupported for an option not known."""
    known = ("stride", "padding", "output_padding", "dilation")
    odd = set(kwargs) - {*known, "groups"}
    if odd:
        raise OpNotSupported("option of a bilinear operation", got=sorted(odd)[0])
    options: dict[str, Any] = {
        name: (value,) if isinstance(value, int) else tuple(value)
        for name, value in kwargs.items()
        if name in known
    }
    return options | ({"groups": kwargs["groups"]} if "groups" in kwargs else {})
