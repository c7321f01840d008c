"""The user's forward on the CPU, whatever devices its code and its tensors name.

A model that was trained on a GPU often says so in its forward: ``x.to(device)``,
``torch.zeros(n, device="cuda")``, tensors in lists. It is quantized on the CPU, so that the same
model gives the same integers on every machine, with a GPU or without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

__all__ = ["OnCpu", "elsewhere", "on_cpu"]

_CPU = torch.device("cpu")
_MOVES: set[Any] = {
    getattr(Tensor, name) for name in ("cuda", "xpu", "hpu", "ipu", "mtia") if hasattr(Tensor, name)
}
"""Methods of a tensor that move it to the device that they are called after."""


class OnCpu(TorchFunctionMode):
    """While this lasts, every device that a call of torch names is the CPU, and a tensor that is
    elsewhere is copied to the CPU where a call reads it. The meta device, which holds no values,
    stays."""

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Any = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in _MOVES:
            return args[0] if _here(args[0]) else args[0].cpu()
        given = dict(kwargs or {})
        if given.get("device") is not None:
            given["device"] = _plain(given["device"])
        if func is Tensor.pin_memory:
            return args[0]
        given.pop("pin_memory", None)
        if func is Tensor.to and len(args) > 1:
            args = (args[0], _plain(args[1], positional=True), *args[2:])
        elif func is Tensor.type and len(args) > 1:
            args = (args[0], _kind(args[1]), *args[2:])
        if func is not Tensor.cpu and any(_away(each) for each in (*args, *given.values())):
            args, given = _moved(args), _moved(given)
        return func(*args, **given)


def on_cpu(tensor: Tensor) -> Tensor:
    """A copy on the CPU that no gradient leads out of; of a parameter a parameter like it."""
    made = tensor.detach().to("cpu", copy=True)
    return nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made


def elsewhere(module: nn.Module) -> dict[int, Tensor]:
    """id -> a copy on the CPU of each tensor of ``module`` that is not there: a memo for
    ``copy.deepcopy``, which then takes no memory of a GPU."""
    found = (
        value
        for part in module.modules()
        for value in tree_leaves([list(vars(part).values()), part._parameters, part._buffers])
        if isinstance(value, Tensor) and not _here(value)
    )
    return {id(value): on_cpu(value) for value in found}


def _here(value: Tensor) -> bool:
    return value.device.type in ("cpu", "meta")


def _away(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_away, value))
    return isinstance(value, Tensor) and not _here(value)


def _moved(value: Any) -> Any:
    if isinstance(value, list | tuple):
        parts: Any = [_moved(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, dict):
        return {name: _moved(part) for name, part in value.items()}
    return value.cpu() if _away(value) else value


def _plain(device: Any, positional: bool = False) -> Any:
    """The CPU in place of a device; ``positional``: of what may be a dtype or a tensor as well."""
    if positional and not isinstance(device, torch.device | str | int):
        return device
    return device if str(device).startswith("meta") else _CPU


def _kind(wanted: Any) -> Any:
    """What ``Tensor.type`` takes, without the device in its name."""
    if isinstance(wanted, torch.dtype):
        return wanted
    name = wanted if isinstance(wanted, str) else f"{wanted.__module__}.{wanted.__name__}"
    return f"torch.{name.rsplit('.', 1)[-1]}"
