"""What a Requantize may be computed by."""

from __future__ import annotations

from secure_quant.ir import Graph, ops
from secure_quant.mpc.protocol.ramps import Ramp, choose_ramp
from secure_quant.mpc.protocol.reach import reach
from secure_quant.mpc.protocol.tables import Lookup, candidates, flat_candidates
from secure_quant.mpc.protocol.versions import LONGER

__all__ = ["ways"]


def ways(graph: Graph, node: ops.Requantize, version: int) -> list[Lookup | Ramp]:
    """All that a plan of ``version`` may take. Raises OpNotSupported where there is none."""
    new = version > LONGER
    x = reach(graph, node.inputs[0]) if new else graph.values[node.inputs[0]].centred
    ramp = choose_ramp(node, x)
    flat = flat_candidates(node, x) if new else []
    return [*candidates(node, x, cases=new), *flat, *([ramp] if ramp else [])]
