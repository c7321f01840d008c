"""Arrays that users hand over as .npz or .npy files. Pickled objects inside are refused."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import InputError

__all__ = ["read_array", "read_labels"]


def read_array(path: Path, name: str = "x") -> NDArray[Any]:
    """The array ``name`` of the file, or its only array: of numbers, its first axis the samples.

    Raises InputError (not such a file, no such array, not such an array) and OSError.
    """
    arrays = _read(path)
    if name in arrays:
        return _numbers(path, arrays[name])
    if len(arrays) == 1:
        return _numbers(path, next(iter(arrays.values())))
    raise InputError(f"{path}: no array {name!r}", got=sorted(arrays), expected=f"{name!r} or one")


def read_labels(path: Path) -> NDArray[Any] | None:
    """The integer array ``y`` beside the inputs, if there is one."""
    labels = _read(path).get("y")
    return labels if labels is not None and labels.dtype.kind in "iu" else None


def _read(path: Path) -> dict[str, NDArray[Any]]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"x": loaded}
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a readable .npz or .npy file of numbers") from error


def _numbers(path: Path, array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind not in "fiu":
        raise InputError(f"{path}: array", got=array.dtype, expected="real numbers")
    if array.ndim == 0:
        raise InputError(f"{path}: array", got="a single number", expected="[samples, ...]")
    return array
