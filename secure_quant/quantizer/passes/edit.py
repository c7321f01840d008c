"""Small tools for editing an fx graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch.fx import GraphModule, Node

from secure_quant.quantizer.notes import (
    BITS,
    CENTRING,
    CUT,
    EXACT,
    FREE,
    LARGEST,
    NORMALIZED,
    POSITIVE,
    SHOWN,
    SQUARES,
    STEPS,
)  # fmt: skip
from secure_quant.quantizer.refuse import first_line, unsupported, way_out

__all__ = [
    "BITS",
    "CENTRING",
    "CUT",
    "EXACT",
    "FREE",
    "LARGEST",
    "NORMALIZED",
    "POSITIVE",
    "SHOWN",
    "SQUARES",
    "STEPS",
    "Editor",
    "bias_of",
    "constant_of",
    "has_free_batch",
    "is_lone_linear",
    "sample_rank",
    "shown",
]  # fmt: skip


aten = torch.ops.aten
_PADS = {
    aten.pad.default, aten.constant_pad_nd.default, aten.conv1d.padding, aten.conv2d.padding,
    aten.conv3d.padding,
}  # fmt: skip


class Editor:
    """Inserts calls before one node, with that node's module path and with shapes filled in."""

    def __init__(self, module: GraphModule, node: Node) -> None:
        self._module, self._node = module, node

    def call(self, target: Any, *args: Any, **meta: Any) -> Node:
        """``target(*args)`` as a new node, with ``meta`` as its bits, largest, positive, exact."""
        with self._module.graph.inserting_before(self._node):
            made = self._module.graph.call_function(target, args)
        for key in ("nn_module_stack", "stack_trace"):
            if key in self._node.meta:
                made.meta[key] = self._node.meta[key]
        try:
            made.meta["val"] = shown(target, args)
        except RuntimeError as error:  # sizes that do not meet
            raise unsupported(
                self._node,
                first_line(error),
                way_out(error, "keep the batch axis first and alone in every step"),
            ) from error
        made.meta |= {f"secure_quant_{key}": value for key, value in meta.items()}
        return made

    def copy(self, made: Mapping[Node, Node]) -> Node:
        """The node once more, of what ``made`` has in place of its inputs."""
        with self._module.graph.inserting_before(self._node):
            node = self._module.graph.node_copy(self._node, lambda n: made.get(n, n))
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
        target: Any = node.target
        node.meta["val"] = target(*args, **kwargs)
        return node

    def parameter(self, value: Tensor, name: str, *, trained: bool = True) -> Node:
        """A get_attr node of a new parameter; training leaves it alone if it is not ``trained``."""
        made = self._free(name)
        self._module.register_parameter(made, nn.Parameter(value.detach().clone(), trained))
        return self._attribute(made, value)

    def fixed(self, value: Tensor, name: str) -> Node:
        """A get_attr node of a new parameter that training leaves alone."""
        return self.parameter(value, name, trained=False)

    def constant(self, value: Tensor) -> Node:
        """A get_attr node of ``value``: a parameter if it is float, else a buffer."""
        if value.dtype.is_floating_point:
            return self.parameter(value.float(), "folded")
        name = self._free("folded")
        self._module.register_buffer(name, value.detach().clone())
        return self._attribute(name, value)

    def _free(self, name: str) -> str:
        """``sq_name``, with a number behind it if it is taken."""
        made, number = "sq_" + name, 0
        while hasattr(self._module, made):
            number += 1
            made = f"sq_{name}_{number}"
        return made

    def _attribute(self, name: str, value: Tensor) -> Node:
        with self._module.graph.inserting_before(self._node):
            node = self._module.graph.get_attr(name)
        mode = next(n for n in self._module.graph.nodes if n.op == "placeholder").meta["val"]
        node.meta["val"] = mode.fake_mode.from_tensor(value.detach().clone())
        return node

    def replace(self, made: Node) -> None:
        """All readers of the node now read ``made``, which takes its notes; the node goes."""
        for key in (BITS, EXACT, LARGEST, POSITIVE):
            if key in self._node.meta:
                made.meta.setdefault(key, self._node.meta[key])
        self._node.replace_all_uses_with(made)
        self._module.graph.erase_node(self._node)


def shown(target: Any, args: Any, kwargs: Any = None) -> Any:
    """What ``target`` makes of the values that nodes stand for, as shapes and dtypes."""
    args, kwargs = torch.fx.map_arg((args, kwargs or {}), lambda n: n.meta["val"])
    if target not in _PADS:
        return target(*args, **kwargs)
    with enable_python_dispatcher():  # their other way fixes the number of samples
        return target(*args, **kwargs)


def constant_of(module: GraphModule, node: Any) -> Tensor | None:
    """The parameter or buffer behind a get_attr node, None for anything else."""
    if not isinstance(node, Node) or node.op != "get_attr":
        return None
    value: Any = module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value.detach() if isinstance(value, Tensor) else None


def bias_of(module: GraphModule, layer: Node) -> Tensor | None:
    """The constant third argument of a layer, None where it has none."""
    return constant_of(module, layer.args[2]) if len(layer.args) > 2 else None


def has_free_batch(module: GraphModule) -> bool:
    """True if the graph was captured for any number of samples."""
    source = next(node for node in module.graph.nodes if node.op == "placeholder")
    size = source.meta["val"].shape[0]
    return isinstance(size, torch.SymInt) and bool(size.node.expr.free_symbols)


def sample_rank(node: Node) -> int:
    """Number of axes of a node's value, batch included."""
    return int(node.meta["val"].ndim)


def is_lone_linear(module: GraphModule, node: Any) -> bool:
    """True for a linear layer with parameters that one op reads, once."""
    if not isinstance(node, Node) or node.target is not torch.ops.aten.linear.default:
        return False
    (user, *others) = node.users
    once = not others and user.all_input_nodes.count(node) == 1 and list(user.args).count(node) == 1
    return once and constant_of(module, node.args[1]) is not None
