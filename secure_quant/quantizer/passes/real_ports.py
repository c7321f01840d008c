"""Integer inputs that are computed with: read as real numbers from the start.

torch.export shows ``mask.float()`` and ``mask * x`` as casts and promotions of integers, between
which moves may stand. Whole numbers are exact in float32, so all of it can be real.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from secure_quant.quantizer.opset import ADDITIVE, CASTS, CONCAT, REARRANGING, aten
from secure_quant.quantizer.passes.edit import Editor
from secure_quant.quantizer.ports import COLUMN, INPUT_PORT

__all__ = ["BETWEEN", "compare_flags", "real_ports"]

_PROMOTING = ADDITIVE | CONCAT | CASTS | {aten.div.Tensor}

BETWEEN: dict[str, tuple[Any, float]] = {
    "lt": (aten.lt.Scalar, -0.5), "le": (aten.lt.Scalar, 0.5),
    "gt": (aten.gt.Scalar, 0.5), "ge": (aten.gt.Scalar, -0.5),
    "eq": (aten.lt.Scalar, 0.5), "ne": (aten.gt.Scalar, 0.5),
}  # fmt: skip
"""What a comparison of whole numbers asks of their difference: between two of them, so that
rounding does not decide what equals; of equality, of its size."""
_COMPARED = {
    getattr(getattr(aten, name), kind): asked
    for name, asked in BETWEEN.items()
    for kind in ("Tensor", "Scalar")
}
_ORDERS = {
    getattr(getattr(aten, name), kind)
    for name in ("lt", "le", "gt", "ge")
    for kind in ("Tensor", "Scalar")
}
"""As a mask made of lengths has them: no flag, whatever reads them."""
_ALIKE = {
    aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.neg.default, aten.abs.default,
    aten.sum.dim_IntList, aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default,
    aten.maximum.default, aten.minimum.default, aten.amax.default, aten.amin.default,
    aten.pow.Tensor_Scalar,
}  # fmt: skip
"""Of whole numbers the same as of reals."""
_DIVIDED = {aten.floor_divide.default, aten.div.Tensor_mode, aten.remainder.Scalar}
_SIZES = {
    aten.eq.Tensor, aten.eq.Scalar, aten.ne.Tensor, aten.ne.Scalar, aten.to.dtype,
}  # fmt: skip
_LOGIC = {
    aten.logical_not.default, aten.bitwise_not.default, aten.__and__.Tensor,
    aten.bitwise_and.Tensor, aten.logical_and.default, aten.__or__.Tensor,
    aten.bitwise_or.Tensor, aten.logical_or.default,
}  # fmt: skip


def real_ports(module: GraphModule) -> None:
    """Give casts, sums and products with a real result, and comparisons of size, the real value of
    what they read of an integer port. A boolean mask of attention is no number and stays."""
    known: dict[Node, Node | None] = {}
    for node in list(module.graph.nodes):
        if (_counts(node) or node.target in _ORDERS) and not _asks_a_mask(node):
            _compare(module, node, known)
        if not _is_real(node) or node.target not in _PROMOTING:
            continue
        for source in list(node.all_input_nodes):
            real = None if _is_real(source) else _real(module, source, known)
            if real is not None:
                node.replace_input_with(source, real)
    module.graph.eliminate_dead_code()
    module.recompile()


def compare_flags(module: GraphModule) -> None:
    """The comparisons that a mask may be asked, of what has turned out to be none."""
    ports = [n for n in module.graph.nodes if n.target is INPUT_PORT]
    real = {n.args[1]: n for n in ports if n.args[5]}  # of each name one
    known: dict[Node, Node | None] = {n: real[n.args[1]] for n in ports if n.args[1] in real}
    for node in list(module.graph.nodes):
        if _counts(node) and _asks_a_mask(node):
            _compare(module, node, known)
    module.graph.eliminate_dead_code()
    module.recompile()


def _asks_a_mask(node: Node) -> bool:
    """Whether a key counts: of 0 and 1, and of bools."""
    return _is_truth(node) or (node.args[1] in (0, 1))


def _counts(node: Node) -> bool:
    """Whether a comparison, or a cast to bool, is read as a number everywhere, behind moves and
    logic; what is read as a mask stays, for those passes."""
    if node.target not in _COMPARED and not _is_truth(node):
        return False
    pending = list(node.users)
    while pending:
        user = pending.pop()
        if user.target in REARRANGING | _LOGIC:
            pending += user.users
        elif not _is_real(user) or user.target not in _PROMOTING:
            return False
    return bool(node.users)


def _is_truth(node: Node) -> bool:
    made = node.meta.get("val")
    return node.target is aten.to.dtype and getattr(made, "dtype", None) is torch.bool


def _compare(module: GraphModule, node: Node, known: dict[Node, Node | None]) -> None:
    """A comparison of integers, one of a port at least, as one of their real difference."""
    sides: Any = (node.args[0], 0) if _is_truth(node) else node.args
    if any(isinstance(n, float) or (isinstance(n, Node) and _is_real(n)) for n in sides):
        return
    found = [_real(module, n, known) if isinstance(n, Node) else None for n in sides]
    if found == [None, None]:
        return
    a, b = (n if made is None else made for n, made in zip(sides, found, strict=True))
    compared, threshold = _COMPARED.get(node.target, (aten.gt.Scalar, 0.5))
    edit = Editor(module, node)
    apart = edit.call(aten.sub.Tensor, a, b)
    if node.target in _SIZES:
        apart = edit.call(aten.abs.default, apart)
    edit.replace(edit.call(compared, apart, threshold))


def _is_real(node: Node) -> bool:
    value = node.meta.get("val")
    dtype = getattr(value, "dtype", None)
    return dtype is not None and bool(dtype.is_floating_point)


def _real(module: GraphModule, node: Node, known: dict[Node, Node | None]) -> Node | None:
    """The value of ``node``, moves and sums of integer ports, in reals; None for anything else."""
    if node in known:
        return known[node]
    made: Node | None = None
    if node.target is INPUT_PORT:
        made = Editor(module, node).call(INPUT_PORT, *node.args[:5], True)
        made.meta |= {key: node.meta[key] for key in (COLUMN,) if key in node.meta}
    elif node.target in REARRANGING and isinstance(node.args[0], Node):
        source = _real(module, node.args[0], known)
        if source is not None:
            made = Editor(module, node).call(node.target, source, *node.args[1:])
    elif node.target in _DIVIDED and isinstance(node.args[1], int) and node.args[1] > 0:
        source = _real(module, node.args[0], known)  # type: ignore[arg-type]
        made = None if source is None else _divided(Editor(module, node), node, source)
    elif node.target in _ALIKE and not node.kwargs:
        found = {n: _real(module, n, known) for n in node.all_input_nodes if not _is_real(n)}
        if any(found.values()):
            args = torch.fx.map_arg(node.args, lambda n: found.get(n) or n)
            made = Editor(module, node).call(node.target, *args)
    known[node] = made
    return made


def _divided(edit: Editor, node: Node, x: Node) -> Node | None:
    """``x // d`` or ``x % d`` of whole numbers: the quotient's floor between two of them, so that
    rounding does not decide it. None for a quotient that is not rounded down."""
    if node.target is aten.div.Tensor_mode and node.kwargs.get("rounding_mode") != "floor":
        return None
    divisor = node.args[1]
    between = edit.call(aten.div.Tensor, edit.call(aten.add.Tensor, x, 0.5), divisor)
    floor = edit.call(aten.floor.default, between)
    if node.target is not aten.remainder.Scalar:
        return floor
    return edit.call(aten.sub.Tensor, x, edit.call(aten.mul.Tensor, floor, divisor))
