"""The integer ops. Each docstring is the op's whole meaning; ``docs/spec/integer-semantics.md``
states the same in MUST sentences and ``secure_quant.reference`` implements nothing else.

Shapes are per sample: every value carries a leading batch axis that no op sees.
An *activation* is an int8 (or int16) array ``q`` with a public scale and zero point and means
``(q - zero_point) * scale``; ``x̂ = q - zero_point``. An *accumulator* is an exact integer with
zero point 0. Secret parameters (weight, bias) are not in a node: they stand in
``Graph.parameters`` under ``<node name>.weight`` and ``<node name>.bias``.
"""

from __future__ import annotations

from dataclasses import dataclass

from secure_quant.ir.kinds import is_kind

__all__ = [
    "ACCUMULATING",
    "DYNAMIC",
    "Add",
    "Concat",
    "Conv2d",
    "DynamicQuantize",
    "DynamicScale",
    "Embedding",
    "Gather",
    "IdPort",
    "Input",
    "InputPort",
    "Linear",
    "LookupPort",
    "MatMul",
    "MaxPool",
    "Mul",
    "Node",
    "Output",
    "OutputPort",
    "ReduceMax",
    "ReduceSum",
    "Requantize",
    "Rescale",
    "Reshape",
    "Slice",
    "SumPool",
    "TopK",
    "Transpose",
    "is_kind",
]

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One op. ``name`` is also the name of the one value it makes."""

    name: str
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Input(Node):
    """``q = clip(round_half_even(x / scale) + zero_point, -128, 127)``, int8[batch, *shape]."""

    shape: tuple[int, ...]
    scale: float
    zero_point: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InputPort(Node):
    """One named array of several in one packed Input, int8[batch, N]: its elements start,
    start + 1, ... in row-major order, with a scale and zero point of their own.

    port: the array's name. dtype: of what the caller passes, float32, int64 or bool. The ports
    stand end to end in the Input, in order, and are all that reads it; its own scale is 1 and its
    zero point 0, and each port's are what ``q`` is made with.
    """

    port: str
    dtype: str
    start: int
    shape: tuple[int, ...]
    scale: float
    zero_point: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupPort(InputPort):
    """An InputPort of rows of a public table, which the caller names by number: for integers
    ``i[*shape[:-1]]`` from 0 to rows - 1, ``q = table[i]``, taken by the client.

    The table int8[rows, shape[-1]] stands in ``Graph.lookups`` under the node's name; digest is
    the SHA-256 of its bytes in hex. dtype is int64.
    """

    rows: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IdPort(InputPort):
    """An InputPort of row numbers, which choose rows of a secret table: integers ``i[*shape[:-1]]``
    from 0 to rows - 1, each as its digits to base 256, lowest first, along the last axis: as many
    as the largest needs, each the int8 of the same eight bits.

    dtype is int64, scale 1, zero point 0.
    """

    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding(Node):
    """``q = weight[(Σ_d 256^d · (i_d mod 256) mod 2^b) mod rows]`` for the digits i_d of an IdPort
    with as many rows, the last axis; b is the length of rows - 1 in bits, at least 1.

    weight int8[rows, width], secret; an activation int8[*ids, width].
    """

    rows: int
    width: int
    scale: float
    zero_point: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear(Node):
    """``acc[..., o] = Σ_i weight[o, i] · x̂[..., i] + bias[o]`` over the last axis.

    weight int8[out_features, in_features], bias int32[out_features] (absent if not ``bias``).
    ``|acc| <= bound``. The real value of channel o is ``acc · multiplier[o] · scale``, where
    ``multiplier`` is the one that the consuming Requantize or Output applies, or the factors of a
    consuming Add without their signs, without the factor that all its entries have in common.
    """

    in_features: int
    out_features: int
    bias: bool
    bound: int
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Conv2d(Node):
    """Cross-correlation as in ``torch.nn.functional.conv2d`` on x̂[C, H, W], padded with x̂ = 0.

    weight int8[out_channels, in_channels / groups, kh, kw], bias int32[out_channels].
    ``|acc| <= bound``; scale as in Linear.
    """

    in_channels: int
    out_channels: int
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    bias: bool
    bound: int
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MatMul(Node):
    """``acc = â @ b̂`` (``â @ b̂ᵀ`` if ``transpose_b``) over the last two axes of two values;
    the leading axes are equal. ``|acc| <= bound``."""

    transpose_b: bool
    bound: int
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Mul(Node):
    """``acc = â · b̂`` element by element; b's shape broadcasts to a's. ``|acc| <= bound``."""

    bound: int
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Add(Node):
    """``acc = f · â + g · b̂`` with public integer factors; b's shape broadcasts to a's.
    ``|acc| <= bound``. â or b̂ may also be an accumulator of a sum, a product, a Rescale or a layer;
    of one that reads a layer's, Requantize and such an Add alone read the sum.

    factors: (f, g), or f for each channel c along ``axis`` of a's sample (negative counts from the
    end) and then g for each: ``acc[..., c] = f[c] · â[..., c] + g[c] · b̂[..., c]``."""

    factors: tuple[int, ...]
    bound: int
    scale: float
    axis: int = -1

    @property
    def parts(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The factors of a and those of b."""
        half = len(self.factors) // 2
        return self.factors[:half], self.factors[half:]


@dataclass(frozen=True, slots=True, kw_only=True)
class SumPool(Node):
    """Sum of x̂[C, H, W] over windows, padded with x̂ = 0. ``|acc| <= bound``.

    The division of an average pool is part of ``scale``.
    """

    kernel: Pair
    stride: Pair
    padding: Pair
    bound: int
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReduceSum(Node):
    """Sum of x̂ over the last axis, which stays with length 1. ``|acc| <= bound``. x̂ may also be
    the accumulator of an Add."""

    bound: int
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Requantize(Node):
    """``u = clip((acc · multiplier[c] + offset) >> shift, 0, R - 1); q = table[u]``.

    R = len(table). The only nonlinearity. ``>>`` is floor. c runs along ``axis`` of the sample
    (negative counts from the end); one multiplier stands for all channels. The entries are int8,
    or int16 where one lies outside int8. Rounding, zero point, clamp and activation function are
    inside table.
    The input is an accumulator, or an activation, whose acc is x̂.
    """

    multiplier: tuple[int, ...]
    axis: int
    offset: int
    shift: int
    table: tuple[int, ...]
    scale: float
    zero_point: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicScale(Node):
    """``s = max(1, max |x̂|)`` over the whole sample: one accumulator, shape [1].

    The run-time scale of that sample: where the largest value stands.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicQuantize(Node):
    """``q = floor((2 · L · x̂ + s) / (2 · s)) + zero_point`` for inputs (x, s), int8.

    s is the DynamicScale of x itself, so the largest |x̂| of a sample becomes L: 127 where
    zero_point is 0; 255 where it is -128, which needs x̂ >= 0. One unit of q is worth
    ``s / L`` units of x.
    """

    zero_point: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescale(Node):
    """``z = clip(((acc · multiplier[c] · s + h) >> shift) + bias[c], low, high)``, an accumulator.

    h = 2**(shift - 1), or 0 where shift is 0. ``>>`` is floor. c runs along ``axis`` of the sample.
    Inputs (acc, s) with s a DynamicScale, or (acc,) alone: then s = 1. An activation's acc is x̂.
    bias is public: one integer per channel, or none. ReLU and its like are in low and high.
    """

    multiplier: tuple[int, ...]
    axis: int
    shift: int
    bias: tuple[int, ...]
    low: int
    high: int
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxPool(Node):
    """Maximum of q[C, H, W] over windows; padding never wins. Scale and zero point stay."""

    kernel: Pair
    stride: Pair
    padding: Pair


@dataclass(frozen=True, slots=True, kw_only=True)
class ReduceMax(Node):
    """Maximum of q over the last axis, which stays with length 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopK(Node):
    """Indices c of the ``count`` largest ``x̂[c] · multiplier[c]`` along ``axis`` of the sample, the
    largest first, of equal ones the lowest first; in place of that axis. One multiplier stands for
    all. x̂ may be an accumulator; the indices are one, of scale 1."""

    multiplier: tuple[int, ...]
    axis: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reshape(Node):
    """The same integers in row-major order under another per-sample shape."""

    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transpose(Node):
    """Axes of the sample in the order ``permutation``, as ``numpy.transpose``."""

    permutation: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice(Node):
    """Elements start, start + step, ... below stop along ``axis`` of the sample."""

    axis: int
    start: int
    stop: int
    step: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Gather(Node):
    """Elements index[0], index[1], ... along ``axis`` of the sample, in that order, any of them any
    number of times, as ``numpy.take``."""

    axis: int
    index: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Concat(Node):
    """Values joined along ``axis`` of the sample; all have one scale and one zero point."""

    axis: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputPort(Node):
    """One named array of several in the Output: the integers of its input, which the client
    makes real as those of an Output. port: the array's name."""

    port: str
    multiplier: tuple[int, ...] = (1,)
    axis: int = -1
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Output(Node):
    """``y = (q - zero_point) · scale`` of an activation, ``y = acc · multiplier[c] · scale`` of an
    accumulator, as float32, at the client. c runs along ``axis`` of the sample.

    Of OutputPorts: their integers end to end, each in row-major order, [N]. Its own multiplier and
    scale are then 1, and each port's make its part real."""

    multiplier: tuple[int, ...] = (1,)
    axis: int = -1
    scale: float


ACCUMULATING = (Linear, Conv2d, MatMul, Mul, Add, SumPool, ReduceSum)
"""Ops that add or multiply activations; their value is an accumulator."""

DYNAMIC = (DynamicScale, DynamicQuantize, Rescale)
"""Ops of run-time scales: the reference and the client run them, secret sharing refuses them."""

OPS: dict[str, type[Node]] = {
    op.__name__: op
    for op in (
        Input, InputPort, LookupPort, IdPort, Embedding, Linear, Conv2d, MatMul, Mul, Add, SumPool,
        ReduceSum, Requantize, MaxPool, DynamicScale, DynamicQuantize, Rescale, ReduceMax, Reshape,
        TopK, Transpose, Slice, Gather, Concat, OutputPort, Output,
    )
}  # fmt: skip
"""Name in a file -> op; a name that is not here is refused."""
