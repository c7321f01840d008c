"""The user's own module: an untouched copy that is only ever run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from secure_quant.errors import UnsupportedModule
from secure_quant.quantizer.accept import own_copy
from secure_quant.quantizer.devices import OnCpu
from secure_quant.quantizer.gate.floatgraph import of_samples
from secure_quant.quantizer.memory import Filled
from secure_quant.quantizer.ports import Ported
from secure_quant.quantizer.refuse import first_line, own_path

__all__ = ["Owner", "Seen"]

Seen = Callable[[str, int, str, Tensor], None]
"""Called with a module's path, the number of its call, "in" or "out", and the tensor there."""


class Owner:
    """Copies of ``model`` in eval mode, in float64 and float32. The model itself is never run, nor
    are the tensors given here: each call gets its own."""

    def __init__(self, model: nn.Module) -> None:
        self.name = type(model).__name__
        self.outputs = model.outputs if isinstance(model, Ported) else ()
        inputs = model.inputs if isinstance(model, Ported) else ()
        self.masked = any(spec.dtype == "bool" for spec in inputs)
        self._model = model
        self._copies = {dtype: self._copy(dtype) for dtype in (torch.float64, torch.float32)}
        self.dtype = torch.float64

    def _copy(self, dtype: torch.dtype) -> nn.Module:
        return own_copy(self._model).to(dtype)

    def run(self, x: Tensor, dtype: torch.dtype | None = None, seen: Seen | None = None) -> Tensor:
        """The one output for float[n, *input shape], in ``dtype`` (else in float64 where the module
        can). Raises UnsupportedModule if it fails or returns anything but one tensor."""
        dtype = dtype or self.dtype
        with torch.no_grad(), OnCpu(), Filled(), _watched(self._copies[dtype], seen):
            try:
                made = self._copies[dtype](x.to(dtype, copy=True))
            except Exception as error:
                raise UnsupportedModule(
                    f"{self.name} on inputs of shape {list(x.shape)}", got=first_line(error),
                    expected="a result for any number of samples",
                ) from error  # fmt: skip
        tensors = [leaf for leaf in _pytree.tree_leaves(made) if isinstance(leaf, Tensor)]
        if len(tensors) != 1:
            raise UnsupportedModule(
                f"output of {self.name}", got=f"{len(tensors)} tensors", expected="one tensor",
                hint="return the one that is asked for, from a module around this one",
            )  # fmt: skip
        return of_samples(tensors[0].detach(), len(x)).clone()

    def run_fresh(self, x: Tensor) -> Tensor:
        """As ``run``, in a new copy, for which it is the first call."""
        kept = self._copies[self.dtype]
        self._copies[self.dtype] = self._copy(self.dtype)
        try:
            return self.run(x)
        finally:
            self._copies[self.dtype] = kept

    def settle(self, x: Tensor) -> None:
        """Find out whether the module runs in float64, as most do. Raises as ``run``."""
        try:
            self.run(x)
        except UnsupportedModule:
            self.dtype = torch.float32
            self.run(x)

    def state(self) -> dict[str, Tensor]:
        """Copies of parameters and buffers, also of those that are not saved."""
        module = self._copies[self.dtype]
        named = [*module.named_parameters(), *module.named_buffers()]
        return {own_path(name): value.detach().clone() for name, value in named}


@contextmanager
def _watched(module: nn.Module, seen: Seen | None) -> Iterator[None]:
    """Hooks on every submodule for as long as this lasts."""
    if seen is None:
        yield
        return
    calls: dict[str, int] = {}

    def watch(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, arguments: Any, made: Any) -> None:
            number = calls[path] = calls.get(path, -1) + 1
            for side, value in (("in", arguments), ("out", made)):
                tensors = [t for t in _pytree.tree_leaves(value) if isinstance(t, Tensor)]
                if len(tensors) == 1 and tensors[0].is_floating_point():
                    seen(path, number, side, tensors[0].detach().clone())

        return hook

    handles = [
        part.register_forward_hook(watch(path))
        for path, part in ((own_path(name), part) for name, part in module.named_modules())
        if path
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
