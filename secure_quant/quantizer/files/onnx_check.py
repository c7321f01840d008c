"""What was read of an ONNX file against onnxruntime, which reads it itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from secure_quant.errors import CaptureMismatch
from secure_quant.quantizer.files.onnx_model import OnnxModule

__all__ = ["check_same"]

_SAMPLES = 4
_TOLERANCE = 1e-4
"""Relative to the largest output: float32 sums in another order differ by less."""


def check_same(module: OnnxModule, xs: Sequence[Tensor]) -> None:
    """Compare with onnxruntime, which reads the file itself, on some samples of each input.

    Raises CaptureMismatch with the first node whose value differs.
    """
    inner = [name for wire in module.wiring for name in wire.outputs]
    batch = module.batch.fixed or _SAMPLES
    whole = [torch.cat([x] * -(-2 * batch // len(x)))[: 2 * batch] for x in xs]
    halves = [[x[:batch] for x in whole], [x[batch:] for x in whole]]
    outputs: list[dict[str, Tensor]] = []
    with torch.no_grad():
        for half in halves:
            tensors = {n: v for n, v in module.values(*half).items() if isinstance(v, Tensor)}
            floats = [n for n in inner if n in tensors and tensors[n].dtype.is_floating_point]
            for name, value in zip(floats, _run(module, half, floats), strict=True):
                _compare(f"ONNX value {name!r}", tensors[name], value, "onnxruntime's")
            outputs.append({name: tensors[name] for name in module.outputs if name in tensors})
        both = module.values(*whole)
    for name, first in outputs[0].items():
        wanted = torch.cat([first, outputs[1][name]]).numpy()
        _compare(f"output {name!r} of {2 * batch} samples", both[name], wanted, "one half's")


def _run(module: OnnxModule, xs: Sequence[Tensor], names: Sequence[str]) -> list[NDArray[Any]]:
    """Values of the graph as onnxruntime computes them, without its rewriting."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    proto = onnx.ModelProto()
    proto.CopyFrom(module.proto)
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    try:
        session = onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        kinds = {each.name: each.type for each in session.get_inputs()}
        feed = {
            name: x.numpy().astype(_NUMPY.get(kinds[name], "float32"))
            for name, x in zip(module.inputs, xs, strict=True)
        }
        made: list[NDArray[Any]] = session.run(list(names), feed)
    except Exception as error:  # its own classes, of no common base
        first = str(error).strip().splitlines()[0]
        raise CaptureMismatch("the ONNX model in onnxruntime", got=first) from error
    return made


_NUMPY = {"tensor(float16)": "float16", "tensor(double)": "float64", "tensor(int64)": "int64",
          "tensor(int32)": "int32"}  # fmt: skip


def _compare(what: str, mine: Any, wanted: NDArray[Any], whose: str) -> None:
    part = mine.detach().double().numpy() if isinstance(mine, Tensor) else mine
    if part.shape != wanted.shape:
        raise CaptureMismatch(what, got=f"shape {part.shape}", expected=f"{wanted.shape}")
    finite = np.isfinite(wanted)
    if not finite.any():
        return
    scale = max(float(np.abs(wanted[finite]).max()), 1e-6)
    off = float(np.abs(part[finite] - wanted[finite]).max()) / scale
    if not off <= _TOLERANCE:
        raise CaptureMismatch(
            what, got=f"{off:.2g} off {whose}, relative to the largest value",
            expected=f"<= {_TOLERANCE:g}",
            hint="please report the operator; meanwhile pass the torch module itself",
        )  # fmt: skip
