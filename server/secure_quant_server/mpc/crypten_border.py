"""CrypTen's types at the borders of a lane; importing this loads CrypTen and torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.mpc.crypten.session import from_binary, from_shared, to_binary, to_shared

__all__ = ["crypten_border"]


def crypten_border(share: NDArray[Any]) -> NDArray[Any]:
    """Input shares, uint8, pass as CrypTen's BinarySharedTensor (XOR), output shares, uint64, as
    its ArithmeticSharedTensor (mod 2^64)."""
    if share.dtype == np.uint8:
        return from_binary(to_binary(share))
    return from_shared(to_shared(share))
