"""Calibration data, in whatever shape it comes, as float32 batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from secure_quant.errors import CalibrationError, SecureQuantError
from secure_quant.quantizer.refuse import first_line

__all__ = ["check_calibration", "drawn", "shows_little", "split_batches"]

_SMALLEST, _LARGEST = 1e-30, 1e18
_FEW = 4
_ONLY_INPUTS = "pass inputs only: an array, or (x for x, *rest in batches)"


def split_batches(calibration: Any, batch_size: int) -> list[Tensor]:
    """Calibration data as float32 batches of at most ``batch_size``.

    An array, an iterable of arrays, or a DataLoader, whose batches may be (inputs, targets, ...).
    Raises CalibrationError.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise CalibrationError("batch size", got=batch_size, expected=">= 1")
    batches = [
        b
        for x in drawn(_sources(calibration))
        for b in torch.split(check_calibration(x), batch_size)
    ]
    if not batches:
        raise CalibrationError("calibration", got="no data", expected="at least one sample")
    if len({b.shape[1:] for b in batches}) != 1:
        shapes = sorted({tuple(b.shape[1:]) for b in batches})[:3]
        raise CalibrationError(
            "calibration shapes", got=shapes, expected="one shape", hint=_ONLY_INPUTS
        )
    return batches


def drawn(batches: Iterable[Any]) -> Iterator[Any]:
    """One by one. Raises CalibrationError where the caller's own iterator fails."""
    iterator = iter(batches)
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except SecureQuantError:
            raise
        except Exception as error:
            raise CalibrationError(
                "calibration", got=f"{first_line(error)}, from the iterator of its batches",
                expected="arrays", hint="go through the data in a loop of your own to see it fail",
            ) from error  # fmt: skip
        yield batch


def shows_little(batches: Sequence[Tensor]) -> str | None:
    """In words, why ranges seen on ``batches`` can hardly be those of other inputs; None if nothing
    speaks for it."""
    first = batches[0].reshape(-1)[0]
    if all(bool((batch == first).all()) for batch in batches):
        return f"calibration holds no number but {float(first):g}"
    count = sum(map(len, batches))
    if count < _FEW:
        return f"calibration holds {count} sample{'s' * (count > 1)}"
    return None


def _sources(calibration: Any) -> Iterable[Any]:
    if isinstance(calibration, Tensor) or hasattr(calibration, "__array__"):
        return [calibration]
    if isinstance(calibration, DataLoader):
        return (b[0] if isinstance(b, tuple | list) and b else b for b in calibration)
    plain = isinstance(calibration, Iterable) and not isinstance(calibration, str | bytes | Mapping)
    if not plain:
        hint = "load the file first" if isinstance(calibration, str | bytes) else _ONLY_INPUTS
        raise CalibrationError(
            "calibration", got=type(calibration).__name__, hint=hint,
            expected="an array, batches of arrays or a DataLoader",
        )  # fmt: skip
    return calibration  # type: ignore[no-any-return]


def check_calibration(x: object) -> Tensor:
    """One calibration batch as float32[batch >= 1, ...]. Raises CalibrationError."""
    tensor = _tensor(x)
    if tensor.ndim < 2 or not tensor.numel():
        raise CalibrationError(
            "calibration batch", got=list(tensor.shape), expected="[batch >= 1, *input shape]",
            hint="one sample is x[None]",
        )  # fmt: skip
    if not torch.isfinite(tensor).all():
        raise CalibrationError(
            "calibration batch",
            got="NaN or infinity",
            expected="finite numbers, as float32",
            hint="leave those samples out, or fill them as inputs to come will be",
        )
    largest = float(tensor.abs().max())
    if largest > _LARGEST or 0 < largest < _SMALLEST:
        raise CalibrationError(
            "calibration batch", got=f"values up to {largest:.3g}",
            expected=f"{_SMALLEST:.0e} to {_LARGEST:.0e}", hint="give the inputs another unit",
        )  # fmt: skip
    return tensor


def _tensor(x: object) -> Tensor:
    if isinstance(x, str | bytes | Mapping) or (
        isinstance(x, tuple | list) and any(hasattr(part, "shape") for part in x)
    ):
        got = f"{type(x).__name__} of arrays" if isinstance(x, tuple | list) else type(x).__name__
        raise CalibrationError("calibration batch", got=got, expected="an array", hint=_ONLY_INPUTS)
    try:
        if not isinstance(x, Tensor):
            array = np.asarray(x)
            if array.dtype.kind not in "fiub":
                raise TypeError(array.dtype)
            with np.errstate(over="ignore"):  # becomes infinity, which the caller refuses
                x = torch.from_numpy(array.astype(np.float32))
        if x.is_complex() or x.is_quantized or x.is_meta or x.layout != torch.strided:
            raise TypeError(x.dtype)
        return x.detach().cpu().to(torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CalibrationError(
            "calibration batch", got=f"{type(x).__name__}: {error}",
            expected="an array of real numbers, dense and with values",
        ) from error  # fmt: skip
