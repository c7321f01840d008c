"""The integers of a weight that is a float tensor on grids of known scales.

A float32 product of an int8 and its scale is far nearer to a whole multiple than any other number
is by chance. So rewritings may move, pad and cut a weight before its integers are found again.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from secure_quant.ir.terms import Weight
from secure_quant.quantizer.refuse import unsupported

__all__ = ["kept_weight"]

_NEAR = 1e-3
"""Of a step."""
_HINT = (
    "int8 weights with zero point 0 (or uint8 with 128), not requantized by anything; or quantize "
    "the float model here"
)


def kept_weight(node: Node, weight: Tensor, scales: Tensor) -> Weight:
    """float[out, ...] as integers in -128..127 with the least of ``scales`` that makes each channel
    whole. Raises UnsupportedModule."""
    flat = weight.detach().double().reshape(len(weight), -1)
    top = flat.abs().amax(1)
    found = torch.zeros(len(flat), dtype=torch.float64)
    for channel, largest in enumerate(top.tolist()):
        if not largest:
            continue
        steps = largest / scales
        near = (steps <= 128 + _NEAR) & ((steps - steps.round()).abs() < _NEAR)
        for scale in scales[near].tolist():
            q = flat[channel] / scale
            if bool(((q - q.round()).abs() < _NEAR).all()) and float(q.max()) < 127.5:
                found[channel] = scale
                break
        else:
            raise unsupported(node, "a weight that is not int8 times a scale of its model", _HINT)
    known = found[found > 0]
    found[found == 0] = known.min() if len(known) else float(scales[0]) if len(scales) else 1.0
    q = (flat / found[:, None]).round().to(torch.int8).reshape(weight.shape).numpy()
    one = found[:1] if bool((found == found[0]).all()) else found
    return _weight(q, one.numpy())


def _weight(q: np.ndarray, scales: np.ndarray) -> Weight:
    if len(scales) == 1:
        return Weight(q, (1,), float(scales[0]))
    try:
        return Weight.of(q, scales)
    except ValueError:  # free scales
        return Weight(q, (1,), 1.0, tuple(scales.tolist()))
