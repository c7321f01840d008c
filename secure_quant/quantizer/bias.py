"""Bias correction: coarse weights shift a layer's mean output; its bias takes the shift back.

With D = rounded - float weights, channel c of a layer is off by E[(D x)_c] in the mean, which does
not average out over the layers behind. The inputs x are the float model's on calibration data
(Nagel et al., Data-Free Quantization through Weight Equalization and Bias Correction, 2019, §4.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

__all__ = ["mean_shifts"]

_ROUNDING = 0.02
"""Root mean square of D, relative to the weights, from which on a shift is worth correcting; int8
grids stay below a percent."""
_BATCHES = 4


def mean_shifts(
    prepared: GraphModule, rounded: Mapping[Node, Tensor], batches: Sequence[Tensor]
) -> dict[Node, Tensor]:
    """Mean shift float[out] of each coarse layer that has a bias.

    prepared  the annotated module, its weights still float; its observers see nothing of this.
    rounded   layer -> the weights [out, ...] that it will get.
    """
    probe = _Probe(prepared, rounded)
    if not probe.differences:
        return {}
    chosen = batches[:_BATCHES]
    with torch.no_grad():
        for batch in chosen:
            probe.run(batch)
    samples = sum(map(len, chosen))
    return {node: total / samples for node, total in probe.totals.items()}


class _Probe(Interpreter):
    """Runs the float model and applies D to what each coarse layer reads."""

    def __init__(self, module: GraphModule, rounded: Mapping[Node, Tensor]) -> None:
        super().__init__(module)
        self.differences: dict[Node, Tensor] = {}
        self.totals: dict[Node, Tensor] = {}
        for node, weight in rounded.items():
            exact = self._float_weight(node)
            difference = weight - exact
            coarse = difference.norm() > _ROUNDING * exact.norm()
            if coarse and len(node.args) > 2 and isinstance(node.args[2], Node):
                self.differences[node] = difference

    def _float_weight(self, node: Node) -> Tensor:
        observer: Any = node.args[1]
        weight: Tensor = self.fetch_attr(observer.args[0].target).detach()
        return weight

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Observers pass values on unseen."""
        return args[0]

    def run_node(self, n: Node) -> Any:
        difference = self.differences.get(n)
        if difference is not None:
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            shift: Any = n.target(args[0], difference, None, *args[3:], **kwargs)  # type: ignore[operator]
            linear = n.target is torch.ops.aten.linear.default
            mean = shift.movedim(-1 if linear else 1, 0).flatten(1).mean(1)
            self.totals[n] = self.totals.get(n, torch.zeros_like(mean)) + mean * len(shift)
        return super().run_node(n)
