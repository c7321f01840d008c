"""One ONNX node as its operator's function sees it: attributes, operator set, constants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from secure_quant.errors import UnsupportedModule

__all__ = ["Batch", "Host", "NodeView", "Value", "tensor_of"]

Host = np.ndarray
"""What is known without running the model, shapes above all, stays in numpy."""
Value = Tensor | NDArray[Any] | None
"""None where an optional argument is left out."""


@dataclass
class Batch:
    """fixed: the size that the file fixes, and with it its shapes; None where it leaves it open.
    today: that of the call that runs. rounded: whether the file is in QDQ form."""

    fixed: int | None
    today: int = 0
    rounded: bool = False


class NodeView:
    """Attributes with their names, and a refusal that says where.

    opset  version of the operator set that the file imports.
    """

    def __init__(self, node: onnx.NodeProto, opset: int, batch: Batch) -> None:
        self.kind, self.opset, self.batch = node.op_type, opset, batch
        self.name = node.name or f"{node.op_type} {', '.join(node.output)}"
        self.outputs = len(node.output)
        self._attributes = {
            each.name: onnx.helper.get_attribute_value(each) for each in node.attribute
        }

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute: int, float, str, list of these, or ``default``."""
        value = self._attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def given(self, name: str, arguments: tuple[Value, ...], at: int) -> Any:
        """What is an argument in today's operator sets and was an attribute before: a list of
        numbers, or None where neither is there. Raises UnsupportedModule if it is computed."""
        if name in self._attributes:
            return self.get(name)
        if at >= len(arguments) or arguments[at] is None:
            return None
        return self.known(arguments[at], name).tolist()

    def known(self, value: Value, name: str) -> NDArray[Any]:
        """An argument that must not depend on the input's values. Raises UnsupportedModule."""
        if not isinstance(value, Host):
            raise self.refused(f"{name} computed from the input", f"a constant {name}")
        return value

    def refused(self, got: object, expected: object = None, hint: str | None = None) -> Exception:
        """The error to raise; ``got`` says what of the node cannot be taken."""
        return UnsupportedModule(
            f"{self.kind} at {self.name!r}", got=got, expected=expected, hint=hint
        )


def tensor_of(value: Value) -> Tensor:
    """A value that takes part in arithmetic."""
    if isinstance(value, Tensor):
        return value
    made = torch.from_numpy(np.ascontiguousarray(value))
    return made.float() if made.dtype == torch.float64 else made
