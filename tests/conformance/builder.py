"""Builds small integer graphs by hand, with secret parameters drawn from a seeded generator."""

from __future__ import annotations

import numpy as np

from secure_quant.ir import Graph, Interval, ops
from secure_quant.ir.bounds import conv_output, linear_bound, public_bound, sum_bound
from secure_quant.ir.lookups import digest_of
from secure_quant.ir.ports import id_digits


class Net:
    """A graph in the making. Each method adds one node that reads ``self.head`` (or the names
    given), moves the head to it and returns its name."""

    def __init__(
        self, seed: int, shape: tuple[int, ...], zero_point: int = 0, scale: float = 1 / 32
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[ops.Node] = []
        self.parameters: dict[str, np.ndarray] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.centred: dict[str, Interval] = {}  # range of x̂, or of the accumulator
        self.zero: dict[str, int] = {}
        self.scale: dict[str, float] = {}
        node = ops.Input(name="x", shape=shape, scale=scale, zero_point=zero_point)
        self._add(node, shape, Interval(-128, 127) - zero_point, zero_point, scale)
        self._taken = 0
        self.lookups: dict[str, np.ndarray] = {}

    @property
    def shape(self) -> tuple[int, ...]:
        return self.shapes[self.head]

    def _add(self, node, shape, centred, zero=0, scale=2.0**-10) -> str:
        self.nodes.append(node)
        self.head = node.name
        self.shapes[node.name], self.centred[node.name] = shape, centred
        self.zero[node.name], self.scale[node.name] = zero, scale
        return node.name

    def _common(self, kind: str, *inputs: str) -> dict[str, object]:
        return {"name": f"{kind}{len(self.nodes)}", "inputs": inputs or (self.head,)}

    def _accumulator(self, op, common, shape, bound, **fields) -> str:
        bound = public_bound(bound)
        node = op(**common, bound=bound, scale=2.0**-10, **fields)
        return self._add(node, shape, Interval(-bound, bound))

    def _weights(self, name, shape, bias, largest) -> tuple[np.ndarray, np.ndarray]:
        """``largest`` 0: all weights 0; -128: all of them -128."""
        low, high = (-largest, largest + 1) if largest >= 0 else (largest, largest + 1)
        weight = self.rng.integers(low, high, shape).astype(np.int8)
        made = self.rng.integers(-1000, 1001, shape[0]).astype(np.int32)
        self.parameters[f"{name}.weight"] = weight
        if not bias:
            return weight, np.zeros(shape[0], np.int32)
        self.parameters[f"{name}.bias"] = made
        return weight, made

    def linear(self, out: int, *, bias: bool = True, largest: int = 127) -> str:
        common, x = self._common("fc"), self.head
        weight, b = self._weights(common["name"], (out, self.shape[-1]), bias, largest)
        return self._accumulator(
            ops.Linear, common, (*self.shape[:-1], out), linear_bound(weight, b, self.centred[x]),
            in_features=self.shape[-1], out_features=out, bias=bias,
        )  # fmt: skip

    def conv(self, out, kernel, *, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1,
             bias=True, largest=127) -> str:  # fmt: skip
        common, x = self._common("conv"), self.head
        channels = self.shape[0]
        weight, b = self._weights(common["name"], (out, channels // groups, *kernel), bias, largest)
        fields = {
            "in_channels": channels, "out_channels": out, "kernel": kernel, "stride": stride,
            "padding": padding, "dilation": dilation, "groups": groups, "bias": bias,
        }  # fmt: skip
        bound = public_bound(linear_bound(weight, b, self.centred[x]))
        node = ops.Conv2d(**common, **fields, bound=bound, scale=2.0**-10)
        return self._add(node, (out, *conv_output(self.shape, node)), Interval(-bound, bound))

    def matmul(self, a: str, b: str, *, transpose_b: bool = False) -> str:
        (*lead, rows, inner), last = self.shapes[a], self.shapes[b]
        out = last[-2] if transpose_b else last[-1]
        bound = (self.centred[a] * self.centred[b]).magnitude * inner
        common = self._common("matmul", a, b)
        return self._accumulator(
            ops.MatMul, common, (*lead, rows, out), bound, transpose_b=transpose_b
        )

    def mul(self, a: str, b: str) -> str:
        bound = (self.centred[a] * self.centred[b]).magnitude
        return self._accumulator(ops.Mul, self._common("mul", a, b), self.shapes[a], bound)

    def add(self, a: str, b: str, factors: tuple[int, ...] = (1, 1), axis: int = -1) -> str:
        bound = sum_bound(factors, self.centred[a], self.centred[b])
        common = self._common("add", a, b)
        return self._accumulator(ops.Add, common, self.shapes[a], bound, factors=factors, axis=axis)

    def sum_pool(self, kernel, stride, padding=(0, 0)) -> str:
        bound = self.centred[self.head].magnitude * kernel[0] * kernel[1]
        fields = {"kernel": kernel, "stride": stride, "padding": padding}
        common = self._common("sumpool")
        probe = ops.SumPool(**common, **fields, bound=1, scale=1.0)
        shape = (self.shape[0], *conv_output(self.shape, probe))
        return self._accumulator(ops.SumPool, common, shape, bound, **fields)

    def reduce_sum(self) -> str:
        bound = self.centred[self.head].magnitude * self.shape[-1]
        return self._accumulator(ops.ReduceSum, self._common("sum"), (*self.shape[:-1], 1), bound)

    def requantize(
        self, table: tuple[int, ...] | None = None, *, entries: int = 256, zero_point: int = 0,
        per_channel: bool = True, axis: int | None = None, sharper: int = 3,
        multipliers: tuple[int, int] = (40, 256),
    ) -> str:  # fmt: skip
        """``table`` None: a rounding clamp to int8. ``sharper``: how many times finer than the
        proven range the table is, in bits; above 0 both ends saturate."""
        rank = len(self.shape)
        axis = (0 if rank == 3 else -1) if axis is None else axis
        channels = self.shape[axis] if per_channel else 1
        multiplier = tuple(self.rng.integers(*multipliers, channels).tolist())
        if table is None:
            table = tuple(np.clip(np.arange(entries) - entries // 2, -128, 127).tolist())
        reach = self.centred[self.head].magnitude * max(multiplier)
        shift = max((reach // len(table)).bit_length() - sharper, 0)
        offset = (len(table) << shift) // 2 + int(self.rng.integers(0, 2 ** min(shift, 20) + 1))
        node = ops.Requantize(
            **self._common("q"), multiplier=multiplier, axis=axis, offset=offset, shift=shift,
            table=table, scale=1 / 16, zero_point=zero_point,
        )  # fmt: skip
        made = Interval(min(table), max(table)) - zero_point
        return self._add(node, self.shape, made, zero_point, 1 / 16)

    def run_time(self, *, relu: bool = False) -> str:
        """The head as int8 with a scale of each sample's own; returns the DynamicScale."""
        x = self.head
        factor = self._add(
            ops.DynamicScale(**self._common("s")), (1,),
            Interval(1, max(self.centred[x].magnitude, 1)),
        )  # fmt: skip
        zero = -128 if relu else 0
        node = ops.DynamicQuantize(**self._common("dq", x, factor), zero_point=zero)
        self._add(node, self.shapes[x], Interval(0 if relu else -127, 127 - zero), zero)
        return factor

    def rescale(self, shift: int, factor: str | None = None, *, low: int, high: int,
                bias: bool = True) -> str:  # fmt: skip
        """The head as fixed point, times a run-time scale where one is named."""
        rank = len(self.shape)
        axis = 0 if rank == 3 else -1
        channels = self.shape[axis]
        node = ops.Rescale(
            **self._common("z", self.head, *([factor] if factor else [])), axis=axis, shift=shift,
            multiplier=tuple(self.rng.integers(1, 65, channels).tolist()), low=low, high=high,
            bias=tuple(self.rng.integers(-5000, 5000, channels).tolist()) if bias else (),
            scale=2.0**-12,
        )  # fmt: skip
        return self._add(node, self.shape, Interval(low, high))

    def round_off(self, shift: int, *, per_channel: bool = True) -> str:
        """The head in steps of 2**shift, and nothing clipped."""
        channels = self.shape[-1] if per_channel else 1
        multiplier = tuple(self.rng.integers(1, 65, channels).tolist())
        x = self.centred[self.head] * Interval(min(multiplier), max(multiplier))
        low, high = ((end + (1 << (shift - 1))) >> shift for end in (x.lo, x.hi))
        node = ops.Rescale(
            **self._common("r", self.head), axis=-1, shift=shift, multiplier=multiplier, low=low,
            high=high, bias=(), scale=2.0**-8,
        )  # fmt: skip
        return self._add(node, self.shape, Interval(low, high))

    def max_pool(self, kernel, stride, padding=(0, 0)) -> str:
        node = ops.MaxPool(**self._common("maxpool"), kernel=kernel, stride=stride, padding=padding)
        return self._move(node, (self.shape[0], *conv_output(self.shape, node)))

    def reduce_max(self) -> str:
        return self._move(ops.ReduceMax(**self._common("max")), (*self.shape[:-1], 1))

    def top_k(self, count: int = 1, axis: int = -1, *, per_channel: bool = True) -> str:
        size = self.shape[axis]
        multiplier = (1,)
        if per_channel:
            multiplier = tuple(self.rng.integers(1, 256, size).tolist())
        shape = list(self.shape)
        shape[axis] = count
        node = ops.TopK(**self._common("order"), multiplier=multiplier, axis=axis, count=count)
        return self._add(node, tuple(shape), Interval(0, size - 1), 0, 1.0)

    def reshape(self, *shape: int) -> str:
        return self._move(ops.Reshape(**self._common("reshape"), shape=shape), shape)

    def flatten(self) -> str:
        return self.reshape(int(np.prod(self.shape)))

    def transpose(self, *permutation: int) -> str:
        shape = tuple(self.shape[i] for i in permutation)
        return self._move(
            ops.Transpose(**self._common("transpose"), permutation=permutation), shape
        )

    def slice(self, axis: int, start: int, stop: int, step: int = 1) -> str:
        shape = list(self.shape)
        shape[axis] = len(range(start, stop, step))
        node = ops.Slice(**self._common("slice"), axis=axis, start=start, stop=stop, step=step)
        return self._move(node, tuple(shape))

    def gather(self, axis: int, *index: int) -> str:
        shape = list(self.shape)
        shape[axis] = len(index)
        node = ops.Gather(**self._common("gather"), axis=axis, index=index)
        return self._move(node, tuple(shape))

    def concat(self, axis: int, *names: str) -> str:
        node = ops.Concat(**self._common("concat", *names), axis=axis)
        shape = list(self.shapes[names[0]])
        shape[axis] = sum(self.shapes[name][axis] for name in names)
        made = self.centred[names[0]]
        for name in names:
            made = made.hull(self.centred[name])
        return self._add(node, tuple(shape), made, self.zero[names[0]], self.scale[names[0]])

    def _move(self, node: ops.Node, shape: tuple[int, ...]) -> str:
        source = node.inputs[0]
        return self._add(node, shape, self.centred[source], self.zero[source], self.scale[source])

    def port(self, port: str, *shape: int, zero_point: int = 0, dtype: str = "float32") -> str:
        """The next elements of the Input under a name, in a Net of scale 1."""
        node = ops.InputPort(
            **self._common("port", "x"), port=port, dtype=dtype, start=self._taken, shape=shape,
            scale=1 / 32, zero_point=zero_point,
        )  # fmt: skip
        self._taken += int(np.prod(shape))
        return self._add(node, shape, Interval(-128, 127) - zero_point, zero_point, 1 / 32)

    def lookup(self, port: str, *shape: int, rows: int, zero_point: int = 0) -> str:
        """The next elements of the Input as rows of a public table."""
        table = self.rng.integers(-128, 128, (rows, shape[-1])).astype(np.int8)
        node = ops.LookupPort(
            **self._common("lookup", "x"), port=port, dtype="int64", start=self._taken, shape=shape,
            scale=1 / 32, zero_point=zero_point, rows=rows, digest=digest_of(table),
        )  # fmt: skip
        self._taken += int(np.prod(shape))
        self.lookups[node.name] = table
        return self._add(node, shape, Interval(-128, 127) - zero_point, zero_point, 1 / 32)

    def ids(self, port: str, *shape: int, rows: int) -> str:
        """The next elements of the Input as digits of row numbers."""
        node = ops.IdPort(
            **self._common("ids", "x"), port=port, dtype="int64", start=self._taken,
            shape=(*shape, id_digits(rows)), scale=1.0, zero_point=0, rows=rows,
        )  # fmt: skip
        self._taken += int(np.prod(node.shape))
        return self._add(node, node.shape, Interval(-128, 127), 0, 1.0)

    def embedding(self, width: int, zero_point: int = 0) -> str:
        """Rows of a secret table, by the ids at the head."""
        (ids,) = (node for node in self.nodes if node.name == self.head)
        common = self._common("embedding")
        table = self.rng.integers(-128, 128, (ids.rows, width)).astype(np.int8)
        self.parameters[f"{common['name']}.weight"] = table
        node = ops.Embedding(
            **common, rows=ids.rows, width=width, scale=1 / 32, zero_point=zero_point
        )
        shape = (*self.shape[:-1], width)
        return self._add(node, shape, Interval(-128, 127) - zero_point, zero_point, 1 / 32)

    def out(self, port: str, *, per_channel: bool = False, axis: int = -1) -> str:
        """The head as an output; the head stays."""
        count = self.shape[axis] if per_channel else 1
        multiplier = tuple(self.rng.integers(1, 256, count).tolist()) if per_channel else (1,)
        node = ops.OutputPort(
            **self._common("out"), port=port, multiplier=multiplier, axis=axis,
            scale=self.scale[self.head],
        )  # fmt: skip
        self.nodes.append(node)
        return node.name

    def joined(self, *ports: str, salt: bytes = b"") -> Graph:
        """The graph with an Output of several."""
        node = ops.Output(name="y", inputs=ports, scale=1.0)
        return Graph((*self.nodes, node), self.parameters, salt, lookups=self.lookups)

    def at(self, name: str) -> Net:
        self.head = name
        return self

    def done(self, *, salt: bytes = b"", per_channel: bool = False, axis: int = -1) -> Graph:
        """The graph with an Output that reads the head."""
        count = self.shape[axis] if per_channel else 1
        multiplier = tuple(self.rng.integers(1, 256, count).tolist()) if per_channel else (1,)
        node = ops.Output(
            name="y", inputs=(self.head,), multiplier=multiplier, axis=axis,
            scale=self.scale[self.head],
        )  # fmt: skip
        return Graph((*self.nodes, node), self.parameters, salt)
