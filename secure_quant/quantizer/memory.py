"""Memory that nobody wrote decides nothing: a module is run with two fillings of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from secure_quant.errors import UnsupportedModule
from secure_quant.quantizer.devices import OnCpu

__all__ = ["Filled", "refuse_unwritten"]

aten = torch.ops.aten
_OTHER = 12345.678
"""A filling that no clamp to a usual range makes the same as 0."""
_EMPTY = {
    aten.empty.memory_format, aten.empty_like.default, aten.empty_strided.default,
    aten.empty_permuted.default, aten.new_empty.default, aten.new_empty_strided.default,
}  # fmt: skip


class Filled(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While this lasts, ``torch.empty`` and its like give ``number``: 1 in integers for any but 0.

    used: whether any did."""

    def __init__(self, number: float = 0.0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._number, self.used = number, False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Any = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in _EMPTY and made.numel():
            self.used = True
            real = made.dtype.is_floating_point
            made.fill_(self._number if real else int(self._number != 0))
        return made


def refuse_unwritten(name: str, call: Callable[[], Tensor]) -> None:
    """Raise UnsupportedModule for a ``call`` whose result depends on memory that nobody wrote."""
    with torch.random.fork_rng(devices=[]):
        state = torch.random.get_rng_state()

        def result(number: float) -> tuple[Tensor | None, bool]:
            torch.random.set_rng_state(state)
            with torch.no_grad(), OnCpu(), Filled(number) as filled:
                try:
                    return call(), filled.used
                except Exception:  # noqa: BLE001  with 0 it went; what fails is what differs
                    return None, filled.used

        first, used = result(0.0)
        if not used or _same(first, result(_OTHER)[0]) or not _same(first, result(0.0)[0]):
            return  # or no two calls are alike, which another check names
    raise UnsupportedModule(
        name, got="memory that was never written, of torch.empty or its like, in its result",
        expected="a result of the input and of constants", hint="start from zeros, not empty",
    )  # fmt: skip


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and bool(torch.equal(a.nan_to_num(), b.nan_to_num()))
