"""Arrays that users hand over as .npz or .npy files. Pickled objects inside are refused."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import InputError

__all__ = [
    "Arrays", "part_of", "read_array", "read_inputs", "read_labels", "read_named", "readable",
    "samples_of",
    "write_arrays",
]  # fmt: skip

Arrays = NDArray[Any] | dict[str, NDArray[Any]]
"""The inputs of a model: one array, or arrays by name."""


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


def readable(path: Path) -> None:
    """Raises InputError and OSError for a file that holds no arrays."""
    _read(path)


def read_inputs(path: Path, names: Sequence[str] | None) -> Arrays:
    """What a model takes: for None ``read_array``, else the arrays of these names, of which a file
    may hold more; where there is one, also the array "x" or the file's only array.

    Raises as ``read_array``.
    """
    if names is None:
        return read_array(path)
    arrays = _read(path)
    whole = {name: name.rpartition(".")[0] for name in names if name not in arrays}
    names = list(dict.fromkeys(n if whole.get(n) not in arrays else whole[n] for n in names))
    if len(names) == 1 and names[0] not in arrays:
        return {names[0]: read_array(path)}
    missing = [name for name in names if name not in arrays]
    if missing:
        expected = "an array of each input: " + ", ".join(names[:32])
        raise InputError(f"{path}: no array {missing[0]!r}", got=sorted(arrays), expected=expected)
    return {name: _numbers(path, arrays[name], "fiub") for name in names}


def read_named(path: Path, takes: Callable[[str], bool]) -> Arrays:
    """``read_array``, where the file has such an array; else all arrays whose names ``takes``
    accepts.

    Raises as ``read_array``.
    """
    arrays = _read(path)
    names = [name for name in arrays if takes(name)]
    if len(names) < 2:
        return read_array(path)
    return {name: _numbers(path, arrays[name], "fiub") for name in names}


def samples_of(x: Arrays) -> int:
    """How many there are."""
    return len(next(iter(x.values()))) if isinstance(x, dict) else len(x)


def part_of(x: Arrays, start: int | None, stop: int | None) -> Arrays:
    """Samples from start to below stop."""
    if isinstance(x, dict):
        return {name: array[start:stop] for name, array in x.items()}
    return x[start:stop]


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """An .npz file under this very name; ``numpy.savez`` cannot write every name. Raises
    OSError."""
    with zipfile.ZipFile(path, "w") as file:
        for name, array in arrays.items():
            with file.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asanyarray(array), allow_pickle=False)


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
            found = {name: loaded[name] for name in loaded.files}
        if not all(isinstance(array, np.ndarray) for array in found.values()):
            raise ValueError("another kind of zip")
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path}: not a readable .npz or .npy file of numbers", hint=_WAYS.get(path.suffix)
        ) from error
    return found


_WAYS = {
    **dict.fromkeys((".pt", ".pth"), "numpy.savez('data.npz', x=tensor.numpy()) writes one"),
    **dict.fromkeys((".csv", ".txt"),
                    "numpy.savez('data.npz', x=numpy.loadtxt(FILE, delimiter=',')) writes one"),
}  # fmt: skip
"""How the numbers of other files are written as one that can be read."""


def _numbers(path: Path, array: NDArray[Any], kinds: str = "fiu") -> NDArray[Any]:
    if array.dtype.kind not in kinds:
        raise InputError(f"{path}: array", got=array.dtype, expected="real numbers")
    if array.ndim == 0:
        raise InputError(f"{path}: array", got="a single number", expected="[samples, ...]")
    return array
