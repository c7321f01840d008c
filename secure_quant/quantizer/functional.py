"""Writes into tensors (``h[:, :4] = 0``, ``relu_``) as new values, by what aliases what.

A write into a tensor of its own is renamed here. A write through a view, or into what has views,
goes through torch.export's own functionalization, which turns it into slice_scatter and its like.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import tree_leaves, tree_structure

from secure_quant.errors import UnsupportedModule
from secure_quant.quantizer.opset import ADDITIVE, ELEMENTWISE, PRODUCTS, SUMS
from secure_quant.quantizer.passes.convolutions import CONVOLUTIONS
from secure_quant.quantizer.passes.edit import FREE, has_free_batch
from secure_quant.quantizer.refuse import module_path, own_path, unsupported
from secure_quant.quantizer.regions import inline_regions

__all__ = ["free_batch", "functional_module", "make_functional"]

aten = torch.ops.aten

_FRESH = PRODUCTS | SUMS | ADDITIVE | ELEMENTWISE | CONVOLUTIONS | {
    aten.batch_norm.default, aten.layer_norm.default, aten.softmax.int, aten.cat.default,
    aten.stack.default, aten.max_pool2d.default, aten.amax.default,
    aten.scaled_dot_product_attention.default, aten.clone.default, aten.group_norm.default,
    aten.max_pool3d.default, aten.avg_pool3d.default, aten.upsample_bilinear2d.vec,
}  # fmt: skip
"""Ops whose result shares memory with nothing."""

_DROPOUT = {
    aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default,
    aten.feature_alpha_dropout.default,
}  # fmt: skip
_SILENT = {aten.detach_.default, aten.dropout_.default, aten.alpha_dropout_.default}
"""Written like in-place ops; nothing happens in them at inference."""


def functional_module(program: ExportedProgram) -> GraphModule:
    """The program as a graph without writes. Raises UnsupportedModule for state that outlives a
    call, and for writes that cannot be followed."""
    inline_regions(program.graph_module)
    _drop_dropout(program.graph)
    writes = [n for n in program.graph.nodes if _writes(n)]
    if not all(_is_simple(node) for node in writes):
        for node in writes:
            _refuse_windows(node)
        try:
            program = program.run_decompositions({})
        except Exception as error:
            raise unsupported(
                writes[0], "a write through a view that cannot be followed",
                "compute a new tensor instead of writing into one",
            ) from error  # fmt: skip
    module = program.module(check_guards=False)
    make_functional(module)
    _drop_checks(module.graph)
    _drop_write_backs(module.graph)
    _return_a_tensor(module)
    module.recompile()
    return module


def _refuse_windows(write: Node) -> None:
    """Raise UnsupportedModule for a write through ``unfold``, whose functional form holds for one
    size of the batch."""
    changed: Any = write.args[0]
    while isinstance(changed, Node) and changed.target not in _FRESH and changed.args:
        if changed.target is aten.unfold.default:
            raise unsupported(
                changed, "a write through its windows",
                "write into slices of the tensor itself: h[:, ::2] = 0",
            )  # fmt: skip
        changed = changed.args[0]


def _return_a_tensor(module: GraphModule) -> None:
    """The one tensor of the output without the tuple or dict around it."""
    output = next(node for node in module.graph.nodes if node.op == "output")
    found = [leaf for leaf in tree_leaves(output.args) if leaf is not None]
    leaf = tree_structure(torch.zeros(()))
    codegen: Any = module.graph._codegen
    if len(found) == 1 and hasattr(codegen, "pytree_info"):
        output.args = ((found[0],),)
        codegen.pytree_info = codegen.pytree_info._replace(out_spec=leaf)
        module._out_spec = leaf


def _drop_dropout(graph: Graph) -> None:
    """At inference a dropout is its input itself, aliases and all; decomposed it is a copy."""
    for node in list(graph.nodes):
        wanted = node.target in _DROPOUT and not node.args[2]
        if wanted and not any(user.op == "output" for user in node.users):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def free_batch(module: GraphModule, batch: int) -> bool:
    """Where the exporter has fixed the batch axis at ``batch`` samples, put the size of the input
    back in its place. True if it had."""
    graph = module.graph
    if has_free_batch(module):
        return False
    source = next(node for node in graph.nodes if node.op == "placeholder")
    with graph.inserting_after(source):
        size = graph.call_function(aten.sym_size.int, (source, 0))
    size.meta["val"] = batch
    source.meta[FREE] = True
    for node in list(graph.nodes):
        place = _SHAPE_ARGUMENT.get(node.target)
        shape: Any = node.args[place] if place is not None else None
        if shape and shape[0] == batch:
            node.update_arg(place, [size, *shape[1:]])
    graph.eliminate_dead_code()
    module._forward_pre_hooks.clear()  # the exporter's check that the size is the fixed one
    module.recompile()
    return True


_SHAPE_ARGUMENT: dict[Any, int] = {
    aten.reshape.default: 1,
    aten.expand.default: 1,
    aten.broadcast_to.default: 1,
    aten.new_zeros.default: 1,
    aten.new_ones.default: 1,
    aten.new_full.default: 1,
    aten.new_empty.default: 1,
    aten.zeros.default: 0,
    aten.ones.default: 0,
    aten.full.default: 0,
    aten.empty.memory_format: 0,
}
"""Which argument of an op is a shape."""


def make_functional(module: GraphModule) -> None:
    """Replace ``relu_`` and its like by the functional op; later readers see the new value."""
    graph = module.graph
    for node in list(graph.nodes):
        overload = _overload(node)
        if overload is None or (node.target is aten.copy_.default and not node.users):
            continue
        changed: Any = node.args[0]
        node.target = overload
        late = node
        while late.next.op != "root":
            late = late.next
            if changed in late.all_input_nodes:
                late.replace_input_with(changed, node)
    module.recompile()


def _writes(node: Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target in _SILENT:
        return False
    return target._schema.is_mutable


def _overload(node: Node) -> Any:
    """The op that computes what an in-place op writes, None for other nodes."""
    if not _writes(node):
        return None
    target: Any = node.target
    name = target._schema.name.split("::")[1]
    if not name.endswith("_") or name.endswith("__"):
        return None
    packet = getattr(aten, name[:-1], None)
    found = getattr(packet, target._overloadname, None) if packet else None
    # pow.Scalar is another function than pow_.Scalar: its number comes first.
    same = found is not None and _arguments(found) == _arguments(target)
    return found if same else None


def _arguments(target: Any) -> list[tuple[str, str]]:
    return [(each.name, str(each.type)) for each in target._schema.arguments]


def _is_simple(node: Node) -> bool:
    """True where renaming will do: the tensor written is its producer's own, and no view of it was
    taken before."""
    changed: Any = node.args[0]
    if _overload(node) is None or not isinstance(changed, Node) or _shape(node) != _shape(changed):
        return False
    names = [changed]
    while _writes(names[-1]) or names[-1].target is aten.dropout.default:
        before: Any = names[-1].args[0]
        if names[-1].target is aten.dropout.default and len(before.users) > 1:
            return False
        names.append(before)
    if names[-1].target not in _FRESH:
        return False
    return all(
        user.target in _FRESH or _writes(user) or user in names
        for name in names
        for user in name.users
        if user < node
    )


def _shape(node: Node) -> list[Any]:
    return list(node.meta["val"].shape)


def _drop_checks(graph: Graph) -> None:
    """Erase asserts on shapes and dtypes, which hold while the shapes do."""
    for node in reversed(list(graph.nodes)):
        name = str(node.target).removeprefix("aten.")
        if name.startswith(("_assert", "sym_constrain")) and not node.users:
            graph.erase_node(node)


def _drop_write_backs(graph: Graph) -> None:
    """Erase the writes into the input and the buffers at the end of a graph."""
    held: list[tuple[Node, Node]] = []
    for node in list(graph.nodes):
        if node.target is aten.copy_.default and not node.users:
            kept: Any = node.args[0]
            made: Any = node.args[1]
            held.append((kept, made))
            graph.erase_node(node)
    graph.eliminate_dead_code()
    for kept, made in held:
        if kept.op == "get_attr" and kept.users:
            where = module_path(made) or "the model's own forward"
            raise UnsupportedModule(
                f"buffer {own_path(str(kept.target))} in {where}",
                got="state that changes with each call",
                expected="the same answer to the same input",
                hint="scale the table by it once, and set max_norm to None"
                if "embedding_renorm" in str(made.target) else "freeze it in eval mode",
            )  # fmt: skip
