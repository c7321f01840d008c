"""What was read of an ONNX file against onnxruntime, which reads it itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from secure_quant.errors import CaptureMismatch
from secure_quant.quantizer.files.onnx_model import OnnxModule
from secure_quant.quantizer.kept import rounding
from secure_quant.quantizer.refuse import first_line

__all__ = ["check_same"]

_SAMPLES = 4
_TOLERANCE = 1e-4
"""Relative to the largest output: float32 sums in another order differ by less."""
_OF_HALVES = 1e-2
"""The same of a model that computes with float16, which onnxruntime rounds to at each node."""


def check_same(module: OnnxModule, xs: Sequence[Tensor]) -> None:
    """Compare with onnxruntime, which reads the file itself, on some samples of each input.

    Raises CaptureMismatch with the first node whose value differs.
    """
    inner = [name for wire in module.wiring for name in wire.outputs]
    batch = module.batch.fixed or _SAMPLES
    whole = [torch.cat([x] * -(-2 * batch // len(x)))[: 2 * batch] for x in xs]
    with torch.no_grad():
        halves = [_tensors(module, [x[:batch] for x in whole]),
                  _tensors(module, [x[batch:] for x in whole])]  # fmt: skip
        both = module.values(*whole)
    floats = [n for n in inner if n in halves[0] and halves[0][n].dtype.is_floating_point]
    run = _runtime(module, inner if module.batch.rounded else floats)
    for first, ours in zip((0, batch), halves, strict=True):
        part = [x[first : first + batch] for x in whole]
        theirs = run(part)
        if module.batch.rounded:
            _check_rounded(module, part, dict(zip(inner, theirs, strict=True)))
            continue
        half = any(value.dtype == np.float16 for value in theirs)
        for name, value in zip(floats, theirs, strict=True):
            bound = _OF_HALVES if half else _TOLERANCE
            _compare(f"ONNX value {name!r}", ours[name], value, "onnxruntime's", bound)
    for name in module.outputs:
        if name in halves[0]:
            wanted = torch.cat([half[name] for half in halves]).numpy()
            _compare(f"output {name!r} of {2 * batch} samples", both[name], wanted, "one half's")


def _check_rounded(
    module: OnnxModule, xs: Sequence[Tensor], theirs: dict[str, NDArray[Any]]
) -> None:
    """The same of a model in QDQ form, each node from the integers that onnxruntime has before it:
    an integer may be one step off where a real value is half-way."""
    grids = module.grids
    forced = {
        name: torch.from_numpy((theirs[name].astype(np.float32) - zero) * np.float32(scale))
        for name, (scale, zero, _) in grids.items()
    }
    with torch.no_grad(), rounding():
        ours = module.values(*xs, forced=forced)
    for name in theirs:
        mine = ours[name]
        if name in grids and isinstance(mine, Tensor):
            off = float((mine - forced[name]).abs().max()) / grids[name][0]
            if not off <= 1 + _TOLERANCE:
                raise CaptureMismatch(
                    f"ONNX value {name!r}", got=f"{off:.3g} steps off onnxruntime's",
                    expected="at most 1",
                )  # fmt: skip
        elif isinstance(mine, Tensor) and mine.dtype.is_floating_point:
            _compare(f"ONNX value {name!r}", mine, theirs[name], "onnxruntime's")


def _tensors(module: OnnxModule, xs: Sequence[Tensor]) -> dict[str, Tensor]:
    return {name: v for name, v in module.values(*xs).items() if isinstance(v, Tensor)}


def _runtime(
    module: OnnxModule, names: Sequence[str]
) -> Callable[[Sequence[Tensor]], list[NDArray[Any]]]:
    """What gives these values of the graph as onnxruntime computes them, without its rewriting."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    proto = onnx.ModelProto()
    proto.CopyFrom(module.proto)
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    with _named():
        session = onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    kinds = {each.name: each.type for each in session.get_inputs()}

    def run(xs: Sequence[Tensor]) -> list[NDArray[Any]]:
        with _named():
            feed = {
                name: x.numpy().astype(_NUMPY.get(kinds[name], "float32"))
                for name, x in zip(module.inputs, xs, strict=True)
            }
            made: list[NDArray[Any]] = session.run(list(names), feed)
        return made

    return run


@contextmanager
def _named() -> Iterator[None]:
    """onnxruntime's errors have classes of its own, of no common base."""
    try:
        yield
    except Exception as error:
        got = first_line(error)
        raise CaptureMismatch("the ONNX model in onnxruntime", got=got) from error


_NUMPY = {"tensor(float16)": "float16", "tensor(double)": "float64", "tensor(int64)": "int64",
          "tensor(int32)": "int32", "tensor(bool)": "bool", "tensor(uint8)": "uint8",
          "tensor(int8)": "int8"}  # fmt: skip


def _compare(
    what: str, mine: Any, wanted: NDArray[Any], whose: str, bound: float = _TOLERANCE
) -> None:
    part = mine.detach().double().numpy() if isinstance(mine, Tensor) else mine
    if part.shape != wanted.shape:
        raise CaptureMismatch(what, got=f"shape {part.shape}", expected=f"{wanted.shape}")
    finite = np.isfinite(wanted)
    if not finite.any():
        return
    scale = max(float(np.abs(wanted[finite]).max()), 1e-6)
    off = float(np.abs(part[finite] - wanted[finite]).max()) / scale
    if not off <= bound:
        raise CaptureMismatch(
            what, got=f"{off:.2g} off {whose}, relative to the largest value",
            expected=f"<= {bound:g}",
            hint="please report the operator; meanwhile pass the torch module itself",
        )  # fmt: skip
