"""Calibration data, in whatever shape it comes, as float32 batches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from secure_quant.errors import CalibrationError, SecureQuantError
from secure_quant.quantizer.refuse import first_line

__all__ = ["check_batch_size", "check_calibration", "drawn", "shows_little", "split_batches"]

_SMALLEST, _LARGEST = 1e-30, 1e18
_FEW = 4
_MOST_BATCHES, _MOST_NUMBERS = 2**17, 2**30
_ONLY_INPUTS = "pass inputs only: an array, or (x for x, *rest in batches)"


def split_batches(calibration: Any, batch_size: int) -> list[Tensor]:
    """Calibration data as float32 batches of at most ``batch_size``.

    An array, an iterable of arrays, or a DataLoader, whose batches may be (inputs, targets, ...).
    Raises CalibrationError.
    """
    check_batch_size(batch_size)
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
            "calibration shapes",
            got=shapes,
            expected="one shape",
            hint=f"{_ONLY_INPUTS}; several inputs need a forward with an argument for each",
        )
    return batches


def check_batch_size(size: object) -> None:
    """Raise CalibrationError for what is no number of samples."""
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise CalibrationError("batch size", got=size, expected="a whole number >= 1")


def drawn(batches: Iterable[Any]) -> Iterator[Any]:
    """One by one. Raises CalibrationError where the caller's own iterator fails, or goes on for
    ever: all that it gives is held in memory."""
    iterator, room = iter(batches), _MOST_NUMBERS
    for count in itertools.count():
        if count == _MOST_BATCHES or room < 0:
            raise CalibrationError(
                "calibration", got=f"an iterator with more than {count} batches",
                expected=f"at most {_MOST_BATCHES} batches and {_MOST_NUMBERS} numbers",
                hint="some hundred samples do: itertools.islice(batches, 16)",
            )  # fmt: skip
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
        room -= sum(math.prod(getattr(part, "shape", ())) for part in tree_leaves(batch))
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
            hint="one sample is x[None], a list of samples np.stack(samples); labels go last",
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
            if np.ma.is_masked(x):
                raise TypeError("masked values")
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
