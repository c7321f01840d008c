"""Integer inputs that are computed with: read as real numbers from the start.

torch.export shows ``mask.float()`` and ``mask * x`` as casts and promotions of integers, between
which moves may stand. Whole numbers are exact in float32, so all of it can be real.
"""

from __future__ import annotations

from torch.fx import GraphModule, Node

from secure_quant.quantizer.opset import ADDITIVE, CONCAT, SHAPING, aten
from secure_quant.quantizer.passes.edit import Editor
from secure_quant.quantizer.ports import COLUMN, INPUT_PORT

__all__ = ["real_ports"]

_MOVES = SHAPING | {
    aten.expand.default, aten.contiguous.default, aten.clone.default, aten.alias.default,
    aten.detach.default, aten.view.default,
}  # fmt: skip


_PROMOTING = ADDITIVE | CONCAT | {
    aten.to.dtype, aten.to.device, aten.to.other, aten.to.dtype_layout, aten._to_copy.default,
}  # fmt: skip


def real_ports(module: GraphModule) -> None:
    """Give casts, sums and products with a real result the real value of what they read of an
    integer port. A boolean mask of attention is no number and stays."""
    known: dict[Node, Node | None] = {}
    for node in list(module.graph.nodes):
        if not _is_real(node) or node.target not in _PROMOTING:
            continue
        for source in list(node.all_input_nodes):
            real = None if _is_real(source) else _real(module, source, known)
            if real is not None:
                node.replace_input_with(source, real)
    module.graph.eliminate_dead_code()
    module.recompile()


def _is_real(node: Node) -> bool:
    value = node.meta.get("val")
    dtype = getattr(value, "dtype", None)
    return dtype is not None and bool(dtype.is_floating_point)


def _real(module: GraphModule, node: Node, known: dict[Node, Node | None]) -> Node | None:
    """The value of ``node``, moves of an integer port, in reals; None for anything else."""
    if node in known:
        return known[node]
    made: Node | None = None
    if node.target is INPUT_PORT:
        made = Editor(module, node).call(INPUT_PORT, *node.args[:5], True)
        made.meta |= {key: node.meta[key] for key in (COLUMN,) if key in node.meta}
    elif node.target in _MOVES and isinstance(node.args[0], Node):
        source = _real(module, node.args[0], known)
        if source is not None:
            made = Editor(module, node).call(node.target, source, *node.args[1:])
    known[node] = made
    return made
