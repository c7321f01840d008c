"""A module of several tensors as a module of one in and one out.

Inputs lie end to end in float[batch, N], outputs in float[batch, M], as in the integer graph. Two
ops mark in the captured graph where they begin and end; all that looks at a model (capture, gate,
probes, calibration) sees one tensor on each side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from secure_quant.errors import UnsupportedModule
from secure_quant.ir.ops import is_kind

__all__ = [
    "COLUMN",
    "INPUT_PORT",
    "LOOKUP_PORT",
    "OUTPUT_PORTS",
    "PORTS",
    "InputSpec",
    "OutputSpec",
    "Ported",
    "check_used",
    "ends_here",
    "first_data",
    "largest_of",
    "leaves",
    "loss_of",
    "parts_of",
    "port_name",
    "specs_of",
]


@torch.library.custom_op("secure_quant::input_port", mutates_args=())
def _input_port(
    packed: Tensor, name: str, dtype: str, start: int, shape: list[int], real: bool
) -> Tensor:
    """Elements start, start + 1, ... of each row under ``shape``; ``real``: in the packed dtype,
    rounded as ``dtype`` says, else in ``dtype`` itself."""
    count = torch.Size(shape).numel()
    part = packed[:, start : start + count].reshape(-1, *shape).clone()
    if dtype == "float32":
        return part
    whole = part > 0.5 if dtype == "bool" else part.round()
    return whole.to(packed.dtype if real else _DTYPES[dtype])


@_input_port.register_fake
def _(packed: Tensor, name: str, dtype: str, start: int, shape: list[int], real: bool) -> Tensor:
    own = packed.dtype if real or dtype == "float32" else _DTYPES[dtype]
    return packed.new_empty((packed.shape[0], *shape), dtype=own)


@torch.library.custom_op("secure_quant::lookup_port", mutates_args=())
def _lookup_port(
    packed: Tensor, weight: Tensor, name: str, start: int, shape: list[int], private: bool
) -> Tensor:
    """Rows of ``weight`` by the numbers that start at ``start``: [batch, *shape, width].
    ``private``: the table is secret, else public."""
    numbers = packed[:, start : start + torch.Size(shape).numel()].round().long()
    return weight[numbers.reshape(-1, *shape)]


@_lookup_port.register_fake
def _(
    packed: Tensor, weight: Tensor, name: str, start: int, shape: list[int], private: bool
) -> Tensor:
    return weight.new_empty((packed.shape[0], *shape, weight.shape[1]))


def _stands(ctx: Any, grad: Tensor) -> tuple[None, ...]:
    """Nothing for any of the arguments: the grid of a table covers all its rows, so training leaves
    them as they are."""
    return (None,) * 6


_lookup_port.register_autograd(_stands)


@torch.library.custom_op("secure_quant::output_ports", mutates_args=())
def _output_ports(parts: list[Tensor], names: str) -> Tensor:
    """[batch, ...] each -> [batch, M]. names: with a blank between."""
    return torch.cat([part.reshape(len(part), -1) for part in parts], 1)


@_output_ports.register_fake
def _(parts: list[Tensor], names: str) -> Tensor:
    width = sum(part[0].numel() for part in parts)
    return parts[0].new_empty((parts[0].shape[0], width))


def _shapes(ctx: Any, inputs: Any, output: Tensor) -> None:
    ctx.shapes = [part.shape for part in inputs[0]]


def _backward(ctx: Any, grad: Tensor) -> tuple[list[Tensor], None]:
    widths = [shape[1:].numel() for shape in ctx.shapes]
    parts = torch.split(grad, widths, 1)
    return [p.reshape(s) for p, s in zip(parts, ctx.shapes, strict=True)], None


_output_ports.register_autograd(_backward, setup_context=_shapes)

COLUMN = "secure_quant_column"
"""Note of a port that is one column of an input: that input's name."""
INPUT_PORT = torch.ops.secure_quant.input_port.default
LOOKUP_PORT = torch.ops.secure_quant.lookup_port.default
PORTS = {INPUT_PORT, LOOKUP_PORT}
"""What reads the packed inputs."""
OUTPUT_PORTS = torch.ops.secure_quant.output_ports.default
_DTYPES = {"int64": torch.int64, "bool": torch.bool}


@dataclass(frozen=True)
class InputSpec:
    """shape: of a sample, as the module sees it. start: in the packed vector."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def stop(self) -> int:
        return self.start + torch.Size(self.shape).numel()


@dataclass(frozen=True)
class OutputSpec:
    """As InputSpec, of an output."""

    name: str
    shape: tuple[int, ...]
    start: int

    @property
    def stop(self) -> int:
        return self.start + torch.Size(self.shape).numel()


class Ported(nn.Module):
    """``module`` on packed vectors. positional: the inputs are passed in order, else by name.
    tables: who may know a table that an input chooses rows of: "client", who gets it; "private",
    nobody but its owner; None refuses such."""

    tables: str | None = None

    def __init__(
        self,
        module: nn.Module,
        inputs: Sequence[InputSpec],
        outputs: Sequence[OutputSpec],
        positional: bool,
    ) -> None:
        super().__init__()
        self.sq_inner = module  # INNER: messages leave it out
        self.inputs, self.outputs, self.positional = tuple(inputs), tuple(outputs), positional

    @staticmethod
    def of(
        module: nn.Module, inputs: Sequence[InputSpec], outputs: Sequence[OutputSpec],
        positional: bool,
    ) -> Ported:  # fmt: skip
        """Under the name of the user's class, which messages tell."""
        kind: type[Ported] = type(type(module).__name__, (Ported,), {})
        return kind(module, inputs, outputs, positional)

    def forward(self, packed: Tensor) -> Tensor:
        """float[batch, N] -> float[batch, M]."""
        given = {
            spec.name: INPUT_PORT(
                packed, spec.name, spec.dtype, spec.start, list(spec.shape), False
            )
            for spec in self.inputs
        }
        made = self.sq_inner(*given.values()) if self.positional else self.sq_inner(**given)
        names = " ".join(spec.name for spec in self.outputs)
        wide: Tensor = OUTPUT_PORTS([value for _, value in leaves(made)], names)
        return wide

    def opened(self, made: Tensor) -> Any:
        """The packed outputs [batch, M] as a caller knows them: a dict of several, or the one."""
        parts = {
            spec.name: made[:, spec.start : spec.stop].reshape(len(made), *spec.shape)
            for spec in self.outputs
        }
        return parts if len(parts) > 1 else next(iter(parts.values()))


def leaves(made: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of everything in what a forward returned, None left out: by key, by field, or
    by place as output_0, output_1, ...; what lies deeper has the names on the way joined by "_".

    Raises UnsupportedModule for what holds anything but tensors.
    """
    if isinstance(made, Tensor):
        yield name or "output", made
    elif made is not None:
        for key, value in _items(made, name):
            yield from leaves(value, f"{name}_{key}" if name else str(key))


def _items(made: Any, name: str) -> list[tuple[Any, Any]]:
    if isinstance(made, Mapping):
        return list(made.items())
    if is_dataclass(made) and not isinstance(made, type):
        return [(f.name, getattr(made, f.name)) for f in fields(made)]
    if isinstance(made, tuple) and hasattr(made, "_fields"):
        return list(zip(made._fields, made, strict=True))
    if isinstance(made, tuple | list):
        return [(number if name else f"output_{number}", v) for number, v in enumerate(made)]
    raise UnsupportedModule(
        f"output {name!r}" if name else "the model's output", got=type(made).__name__,
        expected="tensors, alone or in tuples, lists, dicts and dataclasses",
        hint="return tensors only, of a Hugging Face decoder with config.use_cache = False",
    )  # fmt: skip


def specs_of(made: Any, batch: int, kind: str) -> list[OutputSpec]:
    """What a forward returned for ``batch`` samples. Raises UnsupportedModule."""
    found: list[OutputSpec] = []
    for name, value in leaves(made):
        where = f"output {name!a} of {kind}"
        if not is_kind(name, "str") or name in {spec.name for spec in found}:
            raise UnsupportedModule(
                where, got="a name that cannot be used" if name else "no name",
                expected="names of their own, of printable ASCII without blanks",
            )  # fmt: skip
        if not value.dtype.is_floating_point:
            raise UnsupportedModule(
                where, got=value.dtype, expected="floats",
                hint="return the scores; take argmax, comparisons and casts to the client",
            )  # fmt: skip
        if value.ndim == 0 or len(value) != batch or not value.numel():
            raise UnsupportedModule(
                where, got=f"shape {list(value.shape)} for {batch} samples",
                expected="[batch, ...]", hint="keep the batch axis first in every output",
            )  # fmt: skip
        start = found[-1].stop if found else 0
        found.append(OutputSpec(name, tuple(value.shape[1:]), start))
    return found


def parts_of(made: Tensor, outputs: Sequence[OutputSpec]) -> dict[str, Tensor]:
    """Packed outputs [n, M] by name; without specs the whole, as "", whatever its shape."""
    if not outputs:
        return {"": made}
    return {spec.name: made[:, spec.start : spec.stop] for spec in outputs}


def largest_of(size: Tensor, outputs: Sequence[OutputSpec]) -> Tensor:
    """The largest of [n, ...], a scalar; of packed outputs each one's own, at all its places:
    [M]."""
    if not outputs:
        return size.max()
    parts = parts_of(size, outputs).values()
    return torch.cat([part.max().expand(part.shape[1]) for part in parts])


def ends_here(node: Node) -> bool:
    """True for a node that hands values out of the graph."""
    return node.op == "output" or node.target is OUTPUT_PORTS


def port_name(node: Node) -> str:
    """Of an input port."""
    return str(node.args[2 if node.target is LOOKUP_PORT else 1])


def first_data(module: GraphModule) -> Node:
    """A float input of the graph: its placeholder, or the first float port of it."""
    source: Node = next(node for node in module.graph.nodes if node.op == "placeholder")
    ports = [user for user in source.users if user.target in PORTS]
    real = [port for port in ports if port.meta["val"].dtype.is_floating_point]
    return real[0] if real else source


def check_used(module: GraphModule, model: nn.Module) -> None:
    """Raise UnsupportedModule for an input that the outputs of a captured graph do not depend
    on."""
    if not isinstance(model, Ported):
        return
    ports = [node for node in module.graph.nodes if node.target in PORTS]
    used = {node.meta.get(COLUMN, port_name(node)) for node in ports}
    for spec in model.inputs:
        if spec.name not in used:
            raise UnsupportedModule(
                f"input {spec.name!r} of {type(model).__name__}", got="no output depends on it",
                hint="leave it out of the data; fix what forward asks for in a module around it",
            )  # fmt: skip


Loss = Callable[[Any, Tensor], Tensor]


def loss_of(model: nn.Module, loss: Loss) -> Loss:
    """``loss`` on packed outputs; it is called with what ``opened`` gives."""
    if not isinstance(model, Ported):
        return loss
    ported = model
    return lambda made, targets: loss(ported.opened(made), targets)
