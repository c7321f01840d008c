"""ONNX operators of one value, two values, moves and reductions as calls of torch."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from secure_quant.quantizer.files.onnx_node import Host, NodeView, Value, tensor_of

__all__ = ["VALUES"]

_DTYPES = {1: torch.float32, 10: torch.float32, 11: torch.float32, 16: torch.float32}
"""TensorProto's floats; halves are computed in float32, as everything here."""


def _number(value: Value, default: float | None = None) -> float | None:
    """A constant of one element as a number."""
    if value is None:
        return default
    return float(value.reshape(-1)[0]) if isinstance(value, Host) else None


def _two(value: Value, other: Value) -> Any:
    """An operand: a number where that says the same, else a tensor."""
    if isinstance(value, Host) and value.size == 1:
        rank = other.ndim if isinstance(other, Tensor | Host) else 0
        if value.ndim <= rank:
            return float(value.reshape(-1)[0])
    return tensor_of(value)


def _binary(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def called(node: NodeView, a: Value, b: Value) -> Any:
        return function(_two(a, b), _two(b, a) if isinstance(a, Tensor) else tensor_of(b))

    return called


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    return lambda _, x: function(tensor_of(x))


def _power(node: NodeView, x: Value, exponent: Value) -> Tensor:
    number = _number(exponent)
    return tensor_of(x) ** (tensor_of(exponent) if number is None else number)


def _several(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Any]:
    return lambda _, *xs: functools.reduce(function, [tensor_of(x) for x in xs])


def _clip(node: NodeView, x: Tensor, low: Value = None, high: Value = None) -> Tensor:
    ends = [
        node.get(name, _number(None if value is None else node.known(value, name)))
        for name, value in (("min", low), ("max", high))
    ]
    return torch.clamp(x, *ends) if ends != [None, None] else x


def _hard_sigmoid(node: NodeView, x: Tensor) -> Tensor:
    slope, middle = node.get("alpha", 0.2), node.get("beta", 0.5)
    if math.isclose(slope, 1 / 6, rel_tol=1e-6) and middle == 0.5:
        return functional.hardsigmoid(x)
    return torch.clamp(x * slope + middle, 0.0, 1.0)


def _prelu(node: NodeView, x: Tensor, slope: Value) -> Tensor:
    factor = tensor_of(slope)
    if factor.numel() == 1 or (
        factor.numel() == x.shape[1] and factor.shape[:1] == (x.shape[1],) and x.ndim > 1
    ):
        return functional.prelu(x, factor.reshape(-1))
    return torch.relu(x) - torch.relu(-x) * factor


def _softmax(node: NodeView, x: Tensor) -> Tensor:
    log = node.kind == "LogSoftmax"
    function: Callable[..., Tensor] = functional.log_softmax if log else functional.softmax
    axis = int(node.get("axis", -1 if node.opset >= 13 else 1))
    if node.opset >= 13 or axis in (-1, x.ndim - 1):
        return function(x, dim=axis)
    # One distribution over all the axes from here on, before operator set 13.
    return function(x.flatten(axis), dim=-1).reshape(x.shape)


def _gelu(node: NodeView, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=node.get("approximate", "none"))


def _cast(node: NodeView, x: Value) -> Value:
    to = int(node.get("to"))
    if isinstance(x, Host):
        import onnx

        return x.astype(onnx.helper.tensor_dtype_to_np_dtype(to))
    if to not in _DTYPES:
        name = {6: "int32", 7: "int64", 9: "bool"}.get(to, f"type {to}")
        raise node.refused(f"a cast of computed values to {name}", "floats")
    return x


def _reshape(node: NodeView, x: Tensor, shape: Value) -> Tensor:
    wanted = [int(s) for s in node.known(shape, "shape")]
    if not node.get("allowzero", 0):
        wanted = [x.shape[i] if s == 0 else s for i, s in enumerate(wanted)]
    fixed, today = node.batch.fixed, node.batch.today
    if fixed and fixed != today and wanted and wanted[0] > 0 and wanted[0] % fixed == 0:
        wanted[0] = wanted[0] // fixed * today  # rows of samples: the batch may be folded in
    return x.reshape(wanted)


def _flatten(node: NodeView, x: Tensor) -> Tensor:
    axis = int(node.get("axis", 1)) % (x.ndim + 1)
    if axis == 1:
        return x.flatten(1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _transpose(node: NodeView, x: Tensor) -> Tensor:
    return x.permute(node.get("perm", list(reversed(range(x.ndim)))))


def _squeeze(node: NodeView, x: Tensor, *more: Value) -> Tensor:
    axes = node.given("axes", more, 0)
    axes = [i for i, s in enumerate(x.shape) if s == 1] if axes is None else axes
    return x.squeeze(tuple(axes))


def _unsqueeze(node: NodeView, x: Tensor, *more: Value) -> Tensor:
    axes = node.given("axes", more, 0)
    for axis in sorted(a % (x.ndim + len(axes)) for a in axes):
        x = x.unsqueeze(axis)
    return x


def _concat(node: NodeView, *xs: Value) -> Tensor:
    parts = [tensor_of(x) for x in xs]
    batch = max(part.shape[0] for part in parts)
    axis = int(node.get("axis")) % parts[0].ndim
    if axis:  # a constant, as a class token is, beside what depends on the input
        parts = [p.expand(batch, *p.shape[1:]) if p.shape[0] == 1 else p for p in parts]
    return torch.cat(parts, axis)


def _split(node: NodeView, x: Tensor, *more: Value) -> tuple[Tensor, ...]:
    axis, sizes = int(node.get("axis", 0)), node.given("split", more, 0)
    if sizes is None:
        sizes = math.ceil(x.shape[axis] / node.outputs)
    return torch.split(x, sizes, axis)


def _slice(node: NodeView, x: Tensor, *more: Value) -> Tensor:
    starts, ends = node.given("starts", more, 0), node.given("ends", more, 1)
    axes = node.given("axes", more, 2) or list(range(len(starts)))
    steps = node.given("steps", more, 3) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = x.shape[axis]
        if step < 0:
            kept = range(size)[slice(start, None if end < -size else end, step)]
            x = x.index_select(axis, torch.tensor(list(kept)))
        else:
            index: list[Any] = [slice(None)] * x.ndim
            index[axis] = slice(start, min(end, size), step)
            x = x[tuple(index)]
    return x


def _gather(node: NodeView, x: Value, indices: Value) -> Tensor:
    axis = int(node.get("axis", 0))
    if isinstance(indices, Tensor):
        if axis or not isinstance(x, Tensor) or x.ndim != 2:
            raise node.refused("indices computed from the input", "constant indices")
        return functional.embedding(indices.long(), x)
    where = node.known(indices, "indices")
    source = tensor_of(x)
    where = np.where(where < 0, where + source.shape[axis], where)
    if where.ndim == 0:
        return source.select(axis, int(where))
    made = source.index_select(axis, torch.from_numpy(where.reshape(-1).astype(np.int64)))
    axis %= source.ndim
    shape = [*source.shape[:axis], *where.shape, *source.shape[axis + 1 :]]
    return made if where.ndim == 1 else made.reshape(shape)


def _expand(node: NodeView, x: Value, shape: Value) -> Tensor:
    source = tensor_of(x)
    wanted = [int(s) for s in node.known(shape, "shape")]
    return source.expand(np.broadcast_shapes(tuple(source.shape), tuple(wanted)))


def _tile(node: NodeView, x: Tensor, repeats: Value) -> Tensor:
    return x.repeat([int(r) for r in node.known(repeats, "repeats")])


def _pad(node: NodeView, x: Tensor, *more: Value) -> Tensor:
    pads, mode = node.given("pads", more, 0), node.get("mode", "constant")
    value = node.get("value") if "value" in node._attributes else _number(
        more[1] if len(more) > 1 else None, 0.0
    )  # fmt: skip
    axes = node.given("axes", more, 2)
    axes = list(range(x.ndim)) if axes is None else [a % x.ndim for a in axes]
    pairs = {a: (pads[i], pads[i + len(axes)]) for i, a in enumerate(axes)}
    last = min((a for a, pair in pairs.items() if any(pair)), default=x.ndim)
    if mode != "constant":
        last = min(last, 2)  # torch pads every spatial axis then, or none
    flat = [p for a in reversed(range(last, x.ndim)) for p in pairs.get(a, (0, 0))]
    if not any(flat):
        return x
    names = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    if mode == "constant":
        return functional.pad(x, flat, value=float(value or 0.0))
    return functional.pad(x, flat, mode=names[mode])


def _depth_to_space(node: NodeView, x: Tensor) -> Tensor:
    block, (n, c, h, w) = int(node.get("blocksize")), x.shape
    if node.get("mode", "DCR") == "CRD":
        return functional.pixel_shuffle(x, block)
    made = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return made.reshape(n, c // block**2, h * block, w * block)


def _space_to_depth(node: NodeView, x: Tensor) -> Tensor:
    block, (n, c, h, w) = int(node.get("blocksize")), x.shape
    made = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return made.reshape(n, c * block**2, h // block, w // block)


def _resize(node: NodeView, x: Tensor, *more: Value) -> Tensor:
    old = node.kind == "Upsample" or node.opset < 11
    mode, sizes = node.get("mode", "nearest"), _resized(node, x, more, old)
    form = node.get("coordinate_transformation_mode", "asymmetric" if old else "half_pixel")
    rounding = node.get("nearest_mode", "floor" if old else "round_prefer_floor")
    whole = all(s % n == 0 for s, n in zip(sizes, x.shape[2:], strict=True))
    # By whole factors every way to round gives each source element the same share.
    plain = (form == "asymmetric" and rounding == "floor") or (whole and form == "half_pixel")
    if mode == "nearest" and plain:
        return functional.interpolate(x, sizes, mode="nearest")
    if mode in _INTERPOLATED and form in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        name = _INTERPOLATED[mode][x.ndim - 3]
        return functional.interpolate(x, sizes, mode=name, align_corners=form == "align_corners")
    raise node.refused(f"mode {mode}, {form}, {rounding}", "a mode of torch's interpolate")


_INTERPOLATED = {"linear": ("linear", "bilinear", "trilinear"), "cubic": ("", "bicubic", "")}


def _resized(node: NodeView, x: Tensor, more: tuple[Value, ...], old: bool) -> list[int]:
    """The spatial sizes that a Resize or Upsample makes."""
    sizes = None if old else node.given("sizes", more, 2)
    if sizes:
        return [int(s) for s in sizes[2:]]
    scales = node.given("scales", more, 0 if old else 1)
    if not scales:
        raise node.refused("neither scales nor sizes")
    return [math.floor(n * s) for n, s in zip(x.shape[2:], scales[2:], strict=True)]


def _reduced(function: Callable[..., Tensor]) -> Callable[..., Any]:
    def called(node: NodeView, x: Tensor, *more: Value) -> Tensor:
        axes = node.given("axes", more, 0)
        if not axes:
            if node.get("noop_with_empty_axes", 0):
                return x
            axes = list(range(x.ndim))
        return function(x, tuple(axes), bool(node.get("keepdims", 1)))

    return called


def _einsum(node: NodeView, *xs: Value) -> Tensor:
    return torch.einsum(node.get("equation"), *[tensor_of(x) for x in xs])


def _where(node: NodeView, condition: Value, a: Value, b: Value) -> Tensor:
    return torch.where(tensor_of(condition), _two(a, b), _two(b, a))


def _first(node: NodeView, x: Value, *rest: Value) -> Value:
    return x


VALUES: dict[str, Callable[..., Any]] = {
    "Abs": _unary(torch.abs),
    "Add": _binary(torch.add),
    "Cast": _cast,
    "Ceil": _unary(torch.ceil),
    "Celu": lambda node, x: functional.celu(x, node.get("alpha", 1.0)),
    "Clip": _clip,
    "Concat": _concat,
    "Cos": _unary(torch.cos),
    "DepthToSpace": _depth_to_space,
    "Div": _binary(torch.div),
    "Dropout": _first,
    "Einsum": _einsum,
    "Elu": lambda node, x: functional.elu(x, node.get("alpha", 1.0)),
    "Equal": _binary(torch.eq),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": _unary(torch.floor),
    "Gather": _gather,
    "Gelu": _gelu,
    "Greater": _binary(torch.gt),
    "GreaterOrEqual": _binary(torch.ge),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary(functional.hardswish),
    "Identity": _first,
    "LeakyRelu": lambda node, x: functional.leaky_relu(x, node.get("alpha", 0.01)),
    "Less": _binary(torch.lt),
    "LessOrEqual": _binary(torch.le),
    "Log": _unary(torch.log),
    "LogSoftmax": _softmax,
    "Max": _several(torch.maximum),
    "Min": _several(torch.minimum),
    "Mish": _unary(functional.mish),
    "Mul": _binary(torch.mul),
    "Neg": _unary(torch.neg),
    "PRelu": _prelu,
    "Pad": _pad,
    "Pow": _power,
    "Reciprocal": _unary(torch.reciprocal),
    "ReduceL2": _reduced(lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep)),
    "ReduceLogSumExp": _reduced(torch.logsumexp),
    "ReduceMax": _reduced(torch.amax),
    "ReduceMean": _reduced(torch.mean),
    "ReduceMin": _reduced(torch.amin),
    "ReduceSum": _reduced(torch.sum),
    "ReduceSumSquare": _reduced(lambda x, axes, keep: (x * x).sum(axes, keep)),
    "Relu": _unary(torch.relu),
    "Reshape": _reshape,
    "Resize": _resize,
    "Round": _unary(torch.round),
    "Selu": _unary(functional.selu),
    "Sigmoid": _unary(torch.sigmoid),
    "Sign": _unary(torch.sign),
    "Sin": _unary(torch.sin),
    "Slice": _slice,
    "Softmax": _softmax,
    "Softplus": _unary(functional.softplus),
    "Softsign": _unary(functional.softsign),
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Sqrt": _unary(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _binary(torch.sub),
    "Sum": _several(torch.add),
    "Swish": _unary(functional.silu),
    "Tanh": _unary(torch.tanh),
    "ThresholdedRelu": lambda node, x: functional.threshold(x, node.get("alpha", 1.0), 0.0),
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Upsample": _resize,
    "Where": _where,
}
