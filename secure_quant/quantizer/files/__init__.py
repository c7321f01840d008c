"""Float models from files and from other tools: what ``quantize`` takes besides a module."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from secure_quant.errors import ConfigError, MalformedModel, UnsupportedModule
from secure_quant.quantizer._torchao import quiet
from secure_quant.quantizer.files.converted import exported, is_converted, module_of_converted
from secure_quant.quantizer.files.estimators import is_estimator, module_of_estimator
from secure_quant.quantizer.files.programs import (
    NAMES,
    module_of_program,
    module_of_script,
    names_of_program,
    names_of_script,
    read_program,
    read_script,
)

__all__ = ["SUFFIXES", "input_names", "opened", "read"]

SUFFIXES = {
    ".onnx": "an ONNX model",
    ".pt2": "a program of torch.export.save",
    ".ts": "TorchScript",
    ".torchscript": "TorchScript",
}
"""Of the files that can be taken."""


def read(model: Any) -> Any:
    """What the file holds whose path ``model`` is; anything else as it is. Raises as ``opened``."""
    with quiet():
        return _read(Path(model)) if isinstance(model, str | Path) else model


def input_names(model: Any) -> tuple[str, ...] | None:
    """Of what was read from a file, by which its inputs go in this order; None for anything else,
    and for a program that takes some by name."""
    named: tuple[str, ...] | None = getattr(model, NAMES, None)
    if named is not None:
        return named
    if isinstance(model, ExportedProgram):
        return names_of_program(model)
    if isinstance(model, torch.jit.ScriptModule):
        return names_of_script(model)
    if type(model).__module__.partition(".")[0] == "onnx" and hasattr(model, "graph"):
        constants = {each.name for each in model.graph.initializer}
        return tuple(each.name for each in model.graph.input if each.name not in constants)
    return None


def opened(model: Any, examples: Sequence[Tensor]) -> Any:
    """A module for an ONNX model, an ExportedProgram or TorchScript, or the path of a file that
    holds one, or for a fitted estimator of scikit-learn; anything else as it is.

    ``examples``: a batch of each input. What is read of an ONNX file is compared on it with
    onnxruntime. Raises MalformedModel, UnsupportedModule, CaptureMismatch.
    """
    with quiet():
        return _opened(model, examples)


def _opened(model: Any, examples: Sequence[Tensor]) -> Any:
    model = read(model)
    if isinstance(model, torch.fx.GraphModule) and is_converted(model.graph):
        model = exported(model, [x[:2] for x in examples])
    if isinstance(model, ExportedProgram):
        converted = is_converted(model.graph)
        return module_of_converted(model) if converted else module_of_program(model)
    if isinstance(model, torch.jit.ScriptModule):
        return module_of_script(model, [x[:2] for x in examples])
    if is_estimator(model) and not isinstance(model, nn.Module):
        return module_of_estimator(model, examples[0])
    if type(model).__module__.partition(".")[0] == "onnx":
        return _checked_onnx(model, examples)
    return model


def _read(path: Path) -> Any:
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        hint = None
        if kind in (".pt", ".pth", ".bin", ".safetensors", ".ckpt"):
            hint = "build the module, and load_state_dict these parameters into it"
        raise UnsupportedModule(
            f"the file {path.name}",
            got=kind or "no suffix",
            expected=" or ".join(SUFFIXES),
            hint=hint,
        )
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise MalformedModel(
            f"the file {path.name}", got=error.strerror, expected="a file that can be read"
        ) from error
    if kind == ".onnx":
        _need_onnx()
        import onnx

        from secure_quant.quantizer.files.onnx_model import loaded

        model: onnx.ModelProto = loaded(path)
        return model
    return read_program(path) if kind == ".pt2" else read_script(path)


def _need_onnx() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            "a model in ONNX", got=f"no package {missing[0]}", hint="install the extra 'onnx'"
        )


def _checked_onnx(proto: Any, examples: Sequence[Tensor]) -> nn.Module:
    _need_onnx()
    from secure_quant.quantizer.files.onnx_check import check_same
    from secure_quant.quantizer.files.onnx_model import OnnxModule, checked

    module = OnnxModule(checked(proto))
    setattr(module, NAMES, tuple(module.inputs))
    check_same(module, examples)
    return module
