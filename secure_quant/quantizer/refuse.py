"""The error for what cannot be lowered: the op, where it stands, what to use instead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.fx import Node

from secure_quant.errors import SecureQuantError, UnsupportedModule

__all__ = ["failures_named", "first_line", "module_path", "unsupported"]

_HINTS = {
    "embedding": "feed one-hot rows into nn.Linear, or embed at the client",
    "lstm": "use 1-d convolutions or attention; recurrent cells are not lowered",
    "gru": "use 1-d convolutions or attention; recurrent cells are not lowered",
    "batch_norm": "put it after a convolution or linear layer so that it folds, and call eval()",
    "instance_norm": "use BatchNorm2d, which folds into the convolution before it",
    "group_norm": "use BatchNorm2d, which folds into the convolution before it",
    "upsample": "use a strided transposed layout at training time, or resize at the client",
    "conv_transpose": "resize at the client, then use Conv2d",
    "conv3d": "use Conv2d on reshaped frames",
    "max": "use amax(dim=-1)",
    "where": "use an activation function such as relu or clamp",
}


def module_path(node: Node) -> str:
    """Dotted path of the module that made an fx node, "" for the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    path = ""
    for name, _ in stack.values():
        if isinstance(name, str) and not name.startswith("_empty"):
            path = name
    return path.removeprefix("L['self'].").removeprefix("L['self']")


def unsupported(node: Node, why: str | None = None, hint: str | None = None) -> UnsupportedModule:
    """The error that names the op, where it stands, and what could be used instead."""
    name = str(node.target).removeprefix("aten.").split(".")[0]
    if hint is None:
        hint = next((text for key, text in _HINTS.items() if key in name), None)
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
    except SecureQuantError:
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
