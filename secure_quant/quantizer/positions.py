"""An op for linear layers side by side, one for each position.

To the lowering it is a convolution of [groups · in, 1, 1] with that many groups, for which torch
takes microseconds a group: a mask of windows has a hundred thousand, and is one product here.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["POSITIONS"]

_LIBRARY = torch.library.Library("secure_quant", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "positions(Tensor x, Tensor weight, Tensor? bias, int groups) -> Tensor"
)


@torch.library.impl(_LIBRARY, "positions", "CompositeImplicitAutograd")
def _positions(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """float[batch, groups · in, 1, 1], [groups · out, in, 1, 1], [groups · out] ->
    float[batch, groups · out, 1, 1]."""
    if len(weight) == groups and weight.shape[1] == 1:
        made = x * weight.reshape(1, -1, 1, 1)
    else:
        inside = x.reshape(x.shape[0], groups, 1, -1)
        kernels = weight.reshape(groups, -1, weight.shape[1])
        made = (inside * kernels).sum(-1).reshape(x.shape[0], -1, 1, 1)
    return made if bias is None else made + bias.reshape(1, -1, 1, 1)


POSITIONS = torch.ops.secure_quant.positions.default
