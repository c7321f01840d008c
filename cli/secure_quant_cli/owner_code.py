"""Runs the model owner's own Python file to get a float model from it."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from secure_quant.errors import ConfigError

__all__ = ["build_model"]


def build_model(reference: str) -> Any:
    """``path/to/model.py:factory`` -> what ``factory()`` returns, a torch.nn.Module in eval mode.

    This executes the file: it is meant for the owner's own code. Raises ConfigError, also for
    whatever that code raises.
    """
    file, separator, name = reference.rpartition(":")
    path = Path(file)
    if not separator or not name.isidentifier() or path.suffix != ".py":
        raise ConfigError("model", got=reference, expected="FILE.py:FACTORY")
    if not path.is_file():
        raise ConfigError(f"no such file {str(path)!r}")
    with _named(path):
        factory = getattr(_import(path), name, None)
    if not callable(factory):
        raise ConfigError(f"{path} has no callable {name!r}")
    from torch import nn

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
