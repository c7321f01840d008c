"""The error for what cannot be lowered: the op, where it stands, what to use instead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch._ops import OpOverload
from torch.fx import Node

from secure_quant.errors import SecureQuantError, UnsupportedModule

__all__ = [
    "INNER",
    "PLACES",
    "failures_named",
    "first_line",
    "has_no_meaning",
    "module_path",
    "own_path",
    "place_of",
    "unsupported",
    "way_out",
]

ONE_S_OWN = "the model's own forward"

_WHOLE_BATCH = "name the axes of the sample to reduce over: dim=..., without the batch"
_ORDER = "return the scores, and sort or choose at the client"
_COMPARISON = "compare a value with a number, or two values; the batch axis first"
_CASTS = "leave integers out: what is chosen or counted belongs to the client"
_PRODUCT = "take the logarithm before, and exp of the sum, or multiply a few values one by one"
_SOLVE = "invert constants before; else return what is to be solved, and solve it at the client"
_COMPLEX = "take real parts: multiply by constant matrices of cosines and sines"
_RESAMPLED = "resize by constant amounts, or sample at the client"
_SHAPES = "keep every shape fixed: multiply by a mask, and drop what is masked at the client"
_WITHOUT_VMAP = "call the layer on the whole batch, without vmap"
PLACES = (
    "use constant places, each once; take a constant sum of places as x @ matrix; let the client "
    "choose by an input of rows of 0 and 1: (x * rows).sum(1)"
)

_HINTS = {
    "embedding": 'embedding="client" makes its table public to clients, "private" keeps it secret, '
    "under secret sharing; or feed one-hot rows into nn.Linear",
    "one_hot": 'embedding="client" or "private" lets an integer input choose the rows; or give '
    "one-hot rows as the input",
    **dict.fromkeys(("max", "min", "sum", "mean", "std", "var"), _WHOLE_BATCH),
    **dict.fromkeys(("prod", "cumprod"), _PRODUCT),
    **dict.fromkeys(("grid_sampler", "grid_sampler_2d", "grid_sampler_3d"), _RESAMPLED),
    "_add_batch_dim": _WITHOUT_VMAP,
    "einsum": "no letter twice in one operand; the batch first in data and result",
    **dict.fromkeys(("sort", "topk", "argmax", "argmin", "argsort", "kthvalue", "median", "mode",
                     "nanmedian", "msort", "cummax", "cummin"), _ORDER),
    **dict.fromkeys(("gt", "ge", "lt", "le", "eq", "ne", "isnan", "isinf", "isfinite"),
                    _COMPARISON),
    **dict.fromkeys(("linalg_inv", "inverse", "linalg_inv_ex", "linalg_solve", "linalg_cholesky",
                     "linalg_svd", "linalg_eigh", "linalg_det", "linalg_qr"), _SOLVE),
    **dict.fromkeys(("fft_rfft", "fft_fft", "fft_rfft2", "fft_fft2", "fft_fftn", "fft_rfftn",
                     "fft_ifft", "fft_irfft", "stft", "view_as_complex", "complex", "polar"),
                    _COMPLEX),
    **dict.fromkeys(("nonzero", "masked_select", "unique", "_unique2", "nms", "bincount",
                     "masked_scatter", "nonzero_numpy"), _SHAPES),
    **dict.fromkeys(("__and__", "__or__", "__xor__", "__lshift__", "__rshift__", "bitwise_and",
                     "bitwise_or", "bitwise_xor", "bitwise_left_shift", "bitwise_right_shift"),
                    "of whole numbers take +, -, *, // and %, or give the result as an input"),
    **dict.fromkeys(("any", "all"), "count over an axis: x.sum(1) > 0, or == how many there are"),
    **dict.fromkeys(("to", "_to_copy", "type_as"), _CASTS),
    **dict.fromkeys(("item", "_local_scalar_dense"), "keep values as tensors, never as numbers"),
    **dict.fromkeys(("rand_like", "randn_like", "bernoulli", "rand", "randn"),
                    "draw random numbers once, and keep them in a buffer"),
    "wrap_with_autocast": "leave autocast out; the graph is of int8 anyhow",
    "repeat_interleave": "repeat by one whole number, or index with a constant vector of places",
    **dict.fromkeys(("as_strided", "as_strided_scatter", "as_strided_copy"),
                    "use slices, reshape and transpose"),
    **dict.fromkeys(("quantize_per_tensor", "quantize_per_channel"),
                    "give the float module, before it was quantized"),
    "t": "keep the batch axis first and alone in every step",
}  # fmt: skip
"""What to use instead, by the op's own name, or that of its overload."""

_REASONS = {
    _ORDER: "an order, or a place, that depends on values",
    _SOLVE: "a division by what depends on a whole matrix",
    _COMPLEX: "complex numbers",
    _SHAPES: "a shape that depends on values",
    _PRODUCT: "a product of many values, whose size no scale can hold",
}
"""Hint -> why the op has no integer meaning."""


_OF_TORCH = {
    "vmapped": _WITHOUT_VMAP,
}
"""Word of an error of torch's -> the way out."""

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


def _own_name(node: Node) -> str:
    """Of an op, with its overload, or of a function."""
    made = node.target if isinstance(node.target, str | OpOverload) else node.target.__name__
    return str(made).removeprefix("aten.")


def place_of(node: Node) -> str:
    """An op and the module that it stands in, in words."""
    return f"{_own_name(node).split('.')[0]} in {module_path(node) or ONE_S_OWN}"


def unsupported(node: Node, why: str | None = None, hint: str | None = None) -> UnsupportedModule:
    """The error that names the op, where it stands, and what could be used instead."""
    overload = _own_name(node)
    name = overload.split(".")[0]
    if hint is None:
        hint = _HINTS.get(overload) or _HINTS.get(name)
    return UnsupportedModule(
        place_of(node),
        got=why or _REASONS.get(hint or "", "an op without an integer lowering"),
        hint=hint or "docs/quantization.md lists the ops that can be used",
    )


def has_no_meaning(node: Node) -> bool:
    """Whether an op is one that no pass writes out, whatever its inputs."""
    name = _own_name(node).split(".")[0] if node.op == "call_function" else ""
    return _HINTS.get(name) in (*_REASONS, _RESAMPLED)


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
            hint=way_out(error, "docs/quantization.md lists the ops that can be used"),
        ) from error  # fmt: skip


def way_out(error: Exception, other: str) -> str:
    """The hint for an error of torch's, ``other`` for what is not known."""
    return next((way for word, way in _OF_TORCH.items() if word in str(error)), other)


def first_line(error: Exception) -> str:
    """Kind and first line of what an error says."""
    lines = str(error).strip().splitlines()
    kind = type(error).__name__
    return f"{kind}: {lines[0][:200]}" if lines else kind
