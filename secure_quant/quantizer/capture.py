"""torch.export of a module into a flat aten graph, cleaned of what inference does not need."""

from __future__ import annotations

import builtins
import inspect
import io
import operator
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.modules import rnn
from torch.utils._pytree import tree_leaves

from secure_quant.errors import UnsupportedModule
from secure_quant.quantizer.accept import accepted, check_forward, check_output, untouched
from secure_quant.quantizer.devices import OnCpu, on_cpu
from secure_quant.quantizer.explicit import make_explicit
from secure_quant.quantizer.functional import free_batch, functional_module
from secure_quant.quantizer.opset import CASTS, COPIES, find_roots
from secure_quant.quantizer.passes.batch_first import keep_batch_first
from secure_quant.quantizer.passes.batch_norm import lower_batch_norm
from secure_quant.quantizer.passes.composite import lower_composites
from secure_quant.quantizer.passes.fold import fold_constants
from secure_quant.quantizer.passes.input_masks import lower_batch_index, lower_input_masks
from secure_quant.quantizer.passes.lookups import lower_lookups
from secure_quant.quantizer.passes.positions import lower_positions
from secure_quant.quantizer.passes.products import lower_products
from secure_quant.quantizer.passes.real_ports import compare_flags, real_ports
from secure_quant.quantizer.passes.recurrent import PADDED, lower_recurrent
from secure_quant.quantizer.ports import OUTPUT_PORTS, check_used, ends_here
from secure_quant.quantizer.refuse import PLACES, has_no_meaning, unsupported

__all__ = ["capture"]

aten = torch.ops.aten

_DROPOUTS = {
    aten.dropout.default,
    aten.dropout_.default,
    aten.feature_dropout.default,
    aten.alpha_dropout.default,
    aten.feature_alpha_dropout.default,
}
_NOTHING = _DROPOUTS | COPIES | {
    aten.detach_.default, aten.lift_fresh_copy.default, aten.positive.default,
}  # fmt: skip
"""Ops that pass their first argument on, at inference."""

_ALIASES = {
    "multiply": "mul", "subtract": "sub", "divide": "div", "true_divide": "div", "absolute": "abs",
    "negative": "neg", "clip": "clamp", "concat": "cat", "concatenate": "cat", "fix": "trunc",
    "arccos": "acos", "arccosh": "acosh", "arcsin": "asin", "arcsinh": "asinh", "arctan": "atan",
    "arctan2": "atan2", "fmax": "maximum", "fmin": "minimum",
    "arctanh": "atanh", "float_power": "pow", "special_expit": "sigmoid",
    "special_gammaln": "lgamma", "special_digamma": "digamma", "special_psi": "digamma",
    "special_i0": "i0",
    **{f"special_{each}": each for each in ("erf", "erfc", "erfinv", "exp2", "expm1", "log1p",
                                            "logit", "logsumexp", "round", "sinc", "xlogy")},
    "greater": "gt", "greater_equal": "ge", "less": "lt", "less_equal": "le", "not_equal": "ne",
}  # fmt: skip
"""Other names of ops, which the exporter leaves."""
_NUMBERS = {"add", "sub", "mul", "div"}
PROBE = 61
"""Samples in the batch that is exported: a number that hardly any shape has for another reason."""

_VALUES = (
    "take asserts, branches and .item() on values out of forward: check inputs before the call; "
    "index with places, mask.nonzero().flatten() kept in a buffer, not with a bool mask"
)
_OTHER_STEPS = "write that step with torch's functions of tensors, one result for each sample"
_WAYS = {
    "data-dependent": _VALUES,
    ".numpy()": "stay in torch: what numpy does to a value cannot be seen",
    "_apply()": "move and cast modules before the call, not in forward",
    "constant's list": "write into the tensor itself, not into its .data",
}
"""Word of the exporter's -> the way out."""
_CASTS = CASTS | {aten.type_as.default}


def capture(model: nn.Module, example: Tensor) -> GraphModule:
    """The inference graph of ``model`` for inputs float32[batch, ...] like ``example``: without
    writes, with every constant evaluated and every BatchNorm in the weights of a layer.

    The batch axis is dynamic where the model allows it. Raises UnsupportedModule, with the
    exporter's reason, if the model cannot be captured as one graph; CalibrationError, NotFinite.
    """
    module = accepted(model)
    own = check_forward(module, example)
    trained = {name for name, p in model.named_parameters() if not p.requires_grad}
    wide = example[:1].expand(PROBE, *example.shape[1:]).contiguous()
    explicit = make_explicit(module)
    _named_anew(explicit)
    with untouched(model):  # a value of the exporter's must not stay there
        program = _export(explicit, wide)
    graph_module = functional_module(program)
    _own_tensors(graph_module)
    lower_positions(graph_module, PROBE)
    lower_lookups(graph_module, model, PROBE)
    real_ports(graph_module)
    drop_nothings(graph_module)
    freed = free_batch(graph_module, PROBE)
    lower_recurrent(graph_module, PROBE)
    keep_batch_first(graph_module)
    lower_composites(graph_module)
    lower_batch_index(graph_module, PROBE)
    fold_constants(graph_module, PROBE)
    if freed:
        _check_sizes(graph_module, module, example)
    lower_input_masks(graph_module)
    compare_flags(graph_module)
    _check_depends(graph_module)
    lower_products(graph_module)
    lower_batch_norm(graph_module)
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()
    check_output(own, module)
    check_used(graph_module, model)
    for name, parameter in graph_module.named_parameters():
        parameter.requires_grad_(name not in trained)
    return graph_module


def _own_tensors(graph: GraphModule) -> None:
    """Give the graph copies of all its tensors. Some may be the user's: those of a module that a
    forward reaches otherwise than through ``self``, as a lambda in an attribute does, are not in
    the copy that was exported."""
    made: dict[int, Tensor] = {}
    for part in graph.modules():
        held: Any
        for held in (part._parameters, part._buffers, vars(part)):
            for name, value in held.items():
                if isinstance(value, Tensor):
                    own = on_cpu(value)
                    own = own.float() if own.dtype is torch.float64 else own
                    held[name] = made.setdefault(id(value), own)


def _named_anew(module: nn.Module) -> None:
    """Rename the argument of the forward of ``module``, a copy, where Python has a function of that
    name: torch.export loses a write into an input that is called ``input``, as Sequential's is."""
    own = module.forward
    names = list(inspect.signature(own).parameters)
    if names and hasattr(builtins, names[0]):
        module.forward = lambda x: own(x)


def _check_depends(module: GraphModule) -> None:
    """Raise UnsupportedModule for an output that is a constant."""
    output = next(node for node in module.graph.nodes if ends_here(node))
    if output.target is OUTPUT_PORTS:
        parts: Any = output.args[0]
        for part, name in zip(parts, str(output.args[1]).split(), strict=True):
            if part.op == "get_attr":
                raise UnsupportedModule(
                    f"output {name!r}", got="a value that does not depend on the inputs",
                    expected="one computed from them", hint="leave it out of what forward returns",
                )  # fmt: skip
    if all(node.op == "get_attr" for node in output.all_input_nodes):
        raise UnsupportedModule(
            "the model's output", got="a value that does not depend on the input",
            expected="one tensor computed from it",
        )  # fmt: skip


def _check_sizes(graph: GraphModule, module: nn.Module, example: Tensor) -> None:
    """Raise UnsupportedModule where a graph captured for one size of the batch is wrong, or fails,
    for another."""
    one = example[:1]
    try:
        with torch.no_grad(), OnCpu():
            made, want = (tree_leaves(m(one.clone()))[0] for m in (graph, module))
        same = made.shape == want.shape and torch.allclose(made, want, rtol=1e-3, atol=1e-5)
    except Exception:  # noqa: BLE001  whatever it is, the graph holds for the one size only
        same = False
    if not same:
        _check_causes(graph)
        raise UnsupportedModule(
            type(module).__name__, got="a forward for one size of the batch only",
            expected="any size", hint="write -1 or x.shape[0] where the batch size stands",
        )  # fmt: skip


def _check_causes(graph: GraphModule) -> None:
    """Raise UnsupportedModule for a step that makes a forward differ by itself, or by the batch, or
    that would be refused anyhow."""
    roots = find_roots(list(graph.graph.nodes))
    for node in graph.graph.nodes:
        if node in roots and has_no_meaning(node):
            raise unsupported(node)
        if node.target is aten.batch_norm.default and node.args[5]:
            raise unsupported(
                node, "normalization by the statistics of the batch",
                "call it with training=False and the statistics of training",
            )  # fmt: skip
        if node.target is aten.index.Tensor and any(n in roots for n in node.args[1]):
            raise unsupported(node, "places that depend on the input", PLACES)
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            dropout = "dropout" in str(node.target)
            if not dropout or (node.args[1] and node.args[2]):
                raise unsupported(
                    node, "random numbers", "draw them once, and keep them in a buffer"
                )


@contextmanager
def _without_torch_s_code() -> Iterator[None]:
    """torch.export prints half a graph on stderr when it fails: the error that follows says more.
    What a forward says there while it succeeds stays."""
    said = io.StringIO()
    with redirect_stderr(said):
        yield
    sys.stderr.write(said.getvalue())


def _export(module: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    try:
        # no_grad, so that no_grad inside a forward makes no graph of its own
        with torch.no_grad(), OnCpu(), _without_torch_s_code():
            return torch.export.export(module, (example,), dynamic_shapes=({0: batch},))
    except UnsupportedModule:
        raise
    except Exception:  # noqa: BLE001  the exporter raises many kinds; the second try tells
        return _export_fixed(module, example)


def _export_fixed(module: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    try:
        with torch.no_grad(), OnCpu(), _without_torch_s_code():
            return torch.export.export(module, (example,))
    except UnsupportedModule:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()
        files = {frame.filename for frame in traceback.extract_tb(error.__traceback__)}
        if rnn.__file__ in files:  # where it reads the sizes of the batch
            raise UnsupportedModule(
                f"a recurrent layer of {type(module).__name__}",
                got="a packed sequence",
                hint=PADDED,
            ) from error
        raise UnsupportedModule(
            f"{type(module).__name__} cannot be captured by torch.export",
            got=reason[0][:300] if reason else type(error).__name__,
            expected="one tensor in, one tensor out, no branch that depends on values",
            hint=next((hint for word, hint in _WAYS.items() if word in str(error)), _OTHER_STEPS),
        ) from error


def drop_nothings(module: GraphModule) -> None:
    """Remove dropout, casts between floats, clones and dead nodes. Every view becomes a reshape,
    which does not ask how its input lies in memory."""
    for node in list(module.graph.nodes):
        node.target = _plain(node.target)
        _in_float32(node)
        if node.target in _DROPOUTS and node.args[1] and node.args[2]:
            raise unsupported(
                node, "dropout that stays on in eval mode", "pass training=self.training"
            )
        if node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default
        if node.target in _CASTS and _rounds(node):
            raise unsupported(
                node, f"a cast to {node.meta['val'].dtype}",
                "leave it out: weights and values become integers, whatever they were",
            )  # fmt: skip
        if node.target is aten.cat.default:
            _drop_empty(node)
        if node.target in _NOTHING or (node.target in _CASTS and _is_float(node)):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
        elif node.target is operator.getitem and not node.users:
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()


def _plain(target: Any) -> Any:
    """The op under its first name."""
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return target
    name, _, overload = str(target).removeprefix("aten.").partition(".")
    if name in _NUMBERS and overload == "Scalar":
        return getattr(aten, name).Tensor  # as TorchScript writes them
    known = getattr(aten, _ALIASES[name], None) if name in _ALIASES else None
    return getattr(known, overload, target)


def _in_float32(node: Node) -> None:
    """No float64 that an op is asked for: casts to it vanish, and operands have one type."""
    schema = getattr(node.target, "_schema", None)
    places = [i for i, a in enumerate(schema.arguments) if a.name == "dtype"] if schema else []
    for place in places:
        if len(node.args) > place and node.args[place] is torch.float64:
            node.update_arg(place, torch.float32)
    if node.kwargs.get("dtype") is torch.float64:
        node.update_kwarg("dtype", torch.float32)
    made = node.meta.get("val")
    if isinstance(made, Tensor) and made.dtype is torch.float64:
        node.meta["val"] = made.float()


def _drop_empty(join: Node) -> None:
    """A join without operands that have no elements."""
    joined: Any = join.args[0]
    kept = [n for n in joined if 0 not in [d for d in n.meta["val"].shape if isinstance(d, int)]]
    if 0 < len(kept) < len(joined):
        join.update_arg(0, kept)


def _rounds(node: Node) -> bool:
    """True for a cast to fewer bits than float32 has, which is rounding."""
    made: Any = node.meta.get("val")
    return isinstance(made, Tensor) and made.dtype in (torch.float16, torch.bfloat16)


def _is_float(node: Node) -> bool:
    values: Any = [node.meta.get("val"), node.args[0].meta.get("val")]  # type: ignore[union-attr]
    return all(isinstance(v, Tensor) and v.dtype.is_floating_point for v in values)
