"""The error for what cannot be lowered: the op, where it stands, what to use instead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.fx import Node

from secure_quant.errors import SecureQuantError, UnsupportedModule

__all__ = ["INNER", "failures_named", "first_line", "module_path", "own_path", "unsupported"]

_RECURRENT = "use 1-d convolutions or attention; recurrent cells are not lowered"
_OWN_STATISTICS = "use BatchNorm2d, which folds into the convolution before it"
_RESIZE = "resize at the client, or to the nearest"
_WHOLE_BATCH = "name the axes of the sample to reduce over: dim=..., without the batch"
_ORDER = "return the scores, and sort or choose at the client"
_COMPARISON = "use an activation function such as relu or clamp; compare results at the client"
_CASTS = "leave integers out: what is chosen or counted belongs to the client"

_HINTS = {
    "hardshrink": "it jumps, which rounding before it makes large: use Softshrink",
    "embedding": 'embedding="client" makes its table public to clients; or feed one-hot rows into '
    "nn.Linear",
    **dict.fromkeys(
        ("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell",
         "rnn_relu_cell"), _RECURRENT,
    ),
    **dict.fromkeys(("group_norm", "native_group_norm", "instance_norm"), _OWN_STATISTICS),
    **dict.fromkeys(
        ("upsample_nearest1d", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d",
         "upsample_linear1d"), _RESIZE,
    ),
    **dict.fromkeys(
        ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        "resize at the client, then use Conv2d",
    ),
    "conv3d": "use Conv2d on reshaped frames",
    **dict.fromkeys(("max", "min", "sum", "mean", "std", "var", "prod"), _WHOLE_BATCH),
    "maximum": "write relu(a - b) + b",
    "minimum": "write a - relu(a - b)",
    **dict.fromkeys(("amin", "min.dim"), "write -(-x).amax(dim)"),
    "adaptive_max_pool2d": "use MaxPool2d with a fixed kernel, or amax over whole axes",
    "einsum": "two operands at a time, the batch first; sum before what only one of them has",
    "log_softmax": "return the scores, and take log_softmax at the client",
    **dict.fromkeys(("sort", "topk", "argmax", "argmin", "argsort", "kthvalue", "median"), _ORDER),
    **dict.fromkeys(("gt", "ge", "lt", "le", "eq", "ne", "sign", "round", "floor", "ceil"),
                    _COMPARISON),
    **dict.fromkeys(("to", "_to_copy", "type_as"), _CASTS),
    **dict.fromkeys(("item", "_local_scalar_dense"), "keep values as tensors, never as numbers"),
    **dict.fromkeys(("rand_like", "randn_like", "bernoulli", "rand", "randn"),
                    "draw random numbers once, and keep them in a buffer"),
    "wrap_with_autocast": "leave autocast out; the graph is of int8 anyhow",
    "repeat_interleave": "repeat by one whole number, or index with a constant vector of places",
    "as_strided": "use slices, reshape and transpose",
    "t": "keep the batch axis first and alone in every step",
}  # fmt: skip
"""What to use instead, by the op's own name, or that of its overload."""


INNER = "sq_inner"
"""Attribute of a module of ours that holds the user's, where it has several inputs or outputs."""


def own_path(path: str) -> str:
    """A module's path as the user knows it."""
    return path[len(INNER) :].removeprefix(".") if path.split(".")[0] == INNER else path


def module_path(node: Node) -> str:
    """Dotted path of the module that made an fx node, "" for the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    path = ""
    for name, _ in stack.values():
        if isinstance(name, str) and not name.startswith("_empty"):
            path = name
    return own_path(path.removeprefix("L['self'].").removeprefix("L['self']"))


def unsupported(node: Node, why: str | None = None, hint: str | None = None) -> UnsupportedModule:
    """The error that names the op, where it stands, and what could be used instead."""
    overload = str(node.target).removeprefix("aten.")
    name = overload.split(".")[0]
    if hint is None:
        hint = _HINTS.get(overload) or _HINTS.get(name)
    where = module_path(node) or "the model's own forward"
    return UnsupportedModule(
        f"{name} in {where}",
        got=why or "an op without an integer lowering",
        hint=hint or "docs/quantization.md lists the ops that can be used",
    )


@contextmanager
def failures_named(what: str) -> Iterator[None]:
    """Whatever torch or torchao raises in here becomes an UnsupportedModule that says what was
    under way: their ways with a module are many, and none may end in an unnamed crash."""
    try:
        yield
    except (SecureQuantError, Warning):  # a warning where the caller made it an error
        raise
    except Exception as error:
        raise UnsupportedModule(
            what, got=first_line(error), expected="a module of ops that can be lowered",
            hint="docs/quantization.md lists the ops that can be used",
        ) from error  # fmt: skip


def first_line(error: Exception) -> str:
    """Kind and first line of what an error says."""
    lines = str(error).strip().splitlines()
    kind = type(error).__name__
    return f"{kind}: {lines[0][:200]}" if lines else kind
