"""What a client holds to before it trusts what servers say of a model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import ImplausibleAnswer, MessageTooLarge
from secure_quant.ir import Graph, Interval
from secure_quant.ir.ops import Conv2d, Linear

__all__ = ["UNPINNED_BYTES", "bound_unpinned", "require_plausible"]

UNPINNED_BYTES = 256 * 2**20
"""Most memory that one sample of a model without ``expected_hash`` may ask of its client."""


def bound_unpinned(what: str, size: int, expected_hash: str | None) -> None:
    """A model whose hash was not given is whatever the server likes: its client holds no more
    than UNPINNED_BYTES for one sample. Raises MessageTooLarge."""
    if expected_hash is None and size > UNPINNED_BYTES:
        raise MessageTooLarge(
            what, got=f"{size} bytes for one sample", expected=f"<= {UNPINNED_BYTES}",
            hint="give expected_hash, and larger models of that hash are served",
        )  # fmt: skip


def require_plausible(graph: Graph, values: Mapping[str, NDArray[np.int64]]) -> None:
    """That what servers answered, the values int64[batch, ...] of linear layers and of the Output,
    lies in the ranges that the graph proves, each port of an Output in its own. To be called after
    the last request of an inference: when a client stops must not depend on what it decrypted.

    Raises ImplausibleAnswer, which names the node and no value.
    """
    for node in graph.nodes:
        if node.name in values and isinstance(node, Linear | Conv2d):
            _require_within(node.name, values[node.name], graph.values[node.name].range)
    if graph.output.name in values:
        flat = values[graph.output.name]
        flat = flat.reshape(len(flat), -1)
        for port in graph.output_ports:
            _require_within(port.node, flat[:, port.start : port.stop], port.value.range)


def _require_within(name: str, value: NDArray[np.int64], allowed: Interval) -> None:
    if value.size and (value.min() < allowed.lo or value.max() > allowed.hi):
        raise ImplausibleAnswer(
            f"value of {name!r}", got="one out of range",
            expected=f"{allowed.lo} to {allowed.hi}",
            hint="a server deviates: do not send this again",
        )  # fmt: skip
