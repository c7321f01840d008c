"""The owner's float model: from their own Python file, which is run, or from a model file."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from secure_quant.errors import ConfigError
from secure_quant_cli.arrays import Arrays

__all__ = ["MODEL_HELP", "add_weights", "build_model", "owner_model"]

MODEL_HELP = "the float model: a factory in your own code, or a file (.onnx, .pt2, .ts)"
WEIGHTS = (".safetensors", ".pt", ".pth", ".bin")


def add_weights(parser: argparse.ArgumentParser) -> None:
    """The option that goes with a factory."""
    parser.add_argument("--weights", type=Path, metavar="FILE",
                        help="parameters for what the factory makes: a state dict as safetensors, "
                             "or by torch.save")  # fmt: skip


def owner_model(reference: str, weights: Path | None, data: Arrays | None = None) -> Any:
    """A torch.nn.Module from ``FILE.py:FACTORY`` or from a model file, with these parameters; of
    a file with named inputs what it holds.

    data: inputs, on which a file is checked. Raises ConfigError, ModelError.
    """
    from secure_quant.quantizer.calibration import split_batches
    from secure_quant.quantizer.files import SUFFIXES, opened, read

    path = Path(reference)
    if path.suffix.lower() in SUFFIXES:
        if weights is not None:
            raise ConfigError("--weights", got=path.name, expected="FILE.py:FACTORY to load into")
        if not path.is_file():
            raise ConfigError(f"no such file {reference!r}")
        if isinstance(data, dict):  # whoever calibrates knows which input is which
            return read(path)
        return opened(path, [split_batches(data, 64)[0]])
    model = build_model(reference)
    if weights is not None:
        _load(model, weights)
    return model


def _load(model: Any, path: Path) -> None:
    """Parameters into a module, all of them and no others. Nothing in the file is executed."""
    import torch

    if path.suffix.lower() not in WEIGHTS:
        raise ConfigError("--weights", got=path.name, expected=" or ".join(WEIGHTS))
    if not path.is_file():
        raise ConfigError(f"no such file {str(path)!r}")
    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
            state = state["state_dict"]  # as trainers keep it beside their own state
    except Exception as error:  # of four libraries, without a common base
        found = " ".join(str(error).split())[:300]
        pickled = "weights_only" in found  # torch's way out would run what the file holds
        raise ConfigError(
            f"--weights {path.name}", got="objects that are no tensors" if pickled else found,
            expected="a state dict", hint="save model.state_dict(), and nothing else of the module",
        ) from error  # fmt: skip
    if not isinstance(state, dict):
        raise ConfigError(
            f"--weights {path.name}", got=type(state).__name__, expected="a state dict"
        )
    try:
        model.load_state_dict(_unwrapped(state, model.state_dict()))
    except Exception as error:  # torch's own, and those of hooks
        found = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"--weights {path.name}", got=found,
            expected=f"the parameters of {type(model).__name__}, all and no others",
        ) from error  # fmt: skip


def _unwrapped(state: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Without the names of wrappers, DataParallel's and torch.compile's, that all names begin
    with."""
    first = {str(name).partition(".")[0] for name in state}
    if not first <= {"module"} and not first <= {"_orig_mod"}:
        return state
    if not state or own.keys() & state.keys():
        return state
    return _unwrapped({name.partition(".")[2]: value for name, value in state.items()}, own)


_PARAMETERS = "parameters alone make no model: FILE.py:FACTORY builds it, --weights loads them"
_HINTS = {
    ".py": "name the function that builds the model: FILE.py:build",
    ".sq": "it is quantized already: inspect, verify, split and export take it",
    **dict.fromkeys(WEIGHTS, _PARAMETERS),
}
"""What else is handed over as a float model -> the way out."""


def build_model(reference: str) -> Any:
    """``path/to/model.py:factory`` -> what ``factory()`` returns, a torch.nn.Module in eval mode;
    or the module of that name.

    This executes the file: it is meant for the owner's own code. Raises ConfigError, also for
    whatever that code raises.
    """
    file, separator, name = reference.rpartition(":")
    path = Path(file)
    if not separator or not name.isidentifier() or path.suffix != ".py":
        expected = "FILE.py:FACTORY, or a file .onnx, .pt2 or .ts"
        hint = _HINTS.get(Path(reference).suffix.lower())
        raise ConfigError("model", got=reference, expected=expected, hint=hint)
    if not path.is_file():
        raise ConfigError(f"no such file {str(path)!r}")
    with _named(path):
        module = _import(path)
    from torch import nn

    factory = getattr(module, name, None)
    if not callable(factory):
        own = (
            n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__
        )
        there = ", ".join(sorted(n for n in own if callable(getattr(module, n)))) or "none"
        raise ConfigError(f"{path} has no callable {name!r}", hint=f"those it defines: {there}")
    if isinstance(factory, nn.Module):
        return factory.eval()
    with _named(path):
        model = factory()
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise ConfigError(f"{name}()", got=kind, expected="a torch.nn.Module")
    return model.eval()


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """What the owner's code raises, in one line with its place in that file."""
    try:
        yield
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "torch":
            raise  # the extra is what is missing
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__)
            if Path(frame.filename).resolve() == path.resolve()
        ]  # fmt: skip
        if isinstance(error, SyntaxError):
            lines = [error.lineno]
        where = f"{path}:{lines[-1]}" if lines else f"{path}"
        raise ConfigError(where, got=f"{type(error).__name__}: {error}") from error


def _import(path: Path) -> Any:
    name = f"_secure_quant_owner_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that dataclasses and the like find their module
    sys.path.insert(0, str(path.resolve().parent))  # as `python FILE.py` would
    spec.loader.exec_module(module)
    return module
