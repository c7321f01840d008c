"""CIFAR-10 and MNIST from the folders in which they are handed out.

Every file is checked before memory is taken for what it claims to hold: magic numbers, sizes
against the length of the file, labels against the number of classes. Formats:
https://www.cs.toronto.edu/~kriz/cifar.html and the IDX files of LeCun, Cortes and Burges.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import MalformedDataset, ValueOutOfRange
from secure_quant.quantizer.zoo.data import Split
from secure_quant.quantizer.zoo.pickled import Array, read_pickle

__all__ = ["cifar10", "mnist"]

Bytes = NDArray[np.uint8]
Labelled = tuple[Bytes, Bytes]
"""uint8 images [n, ...] and uint8 labels [n]."""

_CLASSES = 10
_IMAGE = (3, 32, 32)
_PIXELS = 3 * 32 * 32
_LARGEST_FILE = 2**30
_DEFLATE_RATIO = 1032
"""No deflate stream is larger than that many times its file (zlib's technical notes)."""
_MNIST_PLACES = ("", "raw", "MNIST/raw")
_CIFAR_PLACES = ("", "cifar-10-batches-bin", "cifar-10-batches-py")


def mnist(folder: str | Path, *, pad: int = 0, limit: int | None = None) -> Split:
    """MNIST (or a set in its form, such as Fashion-MNIST): float32 images [n, 1, 28, 28] in 0..1.

    folder  holds train-images-idx3-ubyte and its three siblings, each plain or as .gz.
    pad     zeros at each side of an image; 2 makes the 32×32 that LeNet takes.
    limit   at most so many samples of each half.

    Raises MalformedDataset, ValueOutOfRange.
    """
    if not 0 <= pad <= 64:
        raise ValueOutOfRange("pad", got=pad, expected="0 to 64")
    halves = [_idx_half(Path(folder).expanduser(), half, limit) for half in ("train", "t10k")]
    borders = ((0, 0), (pad, pad), (pad, pad))
    return _split([(np.pad(x, borders)[:, None], y) for x, y in halves])


def cifar10(folder: str | Path, *, limit: int | None = None) -> Split:
    """CIFAR-10: float32 images [n, 3, 32, 32] in 0..1, channels red, green, blue.

    folder  holds data_batch_1.bin to data_batch_5.bin and test_batch.bin (the binary version), or
            the same names without .bin (the Python version, whose pickles are read as data, never
            run: see ``pickled``).
    limit   at most so many samples of each half.

    Raises MalformedDataset, ValueOutOfRange.
    """
    tail, read, folder = "", _cifar_pickle, Path(folder).expanduser()
    if _present(folder, "test_batch.bin", _CIFAR_PLACES):
        tail, read = ".bin", _cifar_binary
    batches = [f"data_batch_{i}{tail}" for i in range(1, 6)]
    halves = []
    for names in (batches, [f"test_batch{tail}"]):
        parts: list[Labelled] = []
        for name in names:
            path = _find(folder, name, _CIFAR_PLACES)
            if _more_wanted(parts, limit):
                parts.append(read(path))
        x, y = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        halves.append((x[:limit].reshape(-1, *_IMAGE), y[:limit]))
    return _split(halves)


def _more_wanted(parts: Sequence[Labelled], limit: int | None) -> bool:
    if limit is not None and limit < 1:
        raise ValueOutOfRange("limit", got=limit, expected=">= 1")
    return limit is None or sum(len(y) for _, y in parts) < limit


def _split(halves: Sequence[Labelled]) -> Split:
    (train_x, train_y), (test_x, test_y) = (
        (x.astype(np.float32) / np.float32(255), y.astype(np.int64)) for x, y in halves
    )
    return Split(train_x, train_y, test_x, test_y)


def _cifar_binary(path: Path) -> Labelled:
    """Records of one label byte and 3,072 pixel bytes."""
    data = _read(path)
    if not data or len(data) % (1 + _PIXELS):
        raise MalformedDataset(
            str(path), got=f"{len(data)} bytes", expected=f"records of {1 + _PIXELS} bytes"
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, 1 + _PIXELS)
    return records[:, 1:], _checked_labels(path, records[:, 0])


def _cifar_pickle(path: Path) -> Labelled:
    """A dict with b"data", uint8 [n, 3072], and b"labels", n numbers."""
    batch = read_pickle(_read(path), str(path))
    data, labels = (
        (batch.get(b"data"), batch.get(b"labels")) if isinstance(batch, dict) else (None, None)
    )
    if not isinstance(data, Array) or not isinstance(labels, list):
        raise MalformedDataset(str(path), expected="a dict of data and labels")
    pixels = data.to_numpy(str(path))
    if pixels.ndim != 2 or pixels.shape[1] != _PIXELS or not 0 < len(pixels) == len(labels):
        raise MalformedDataset(
            str(path), got=f"data {list(pixels.shape)} and {len(labels)} labels",
            expected=f"[n >= 1, {_PIXELS}] and n",
        )  # fmt: skip
    if not all(type(label) is int and 0 <= label < _CLASSES for label in labels):
        raise MalformedDataset(f"labels of {path}", expected=f"0 to {_CLASSES - 1}")
    return pixels, np.array(labels, np.uint8)


def _idx_half(folder: Path, half: str, limit: int | None) -> Labelled:
    paths = [
        _find(folder, f"{half}-{what}-idx{rank}-ubyte", _MNIST_PLACES)
        for what, rank in (("images", 3), ("labels", 1))
    ]
    images, labels = (_idx(path, rank) for path, rank in zip(paths, (3, 1), strict=True))
    if len(images) != len(labels):
        raise MalformedDataset(
            str(paths[1]), got=f"{len(labels)} labels", expected=f"{len(images)}, as images"
        )
    if images.shape[1:] != (28, 28):
        raise MalformedDataset(str(paths[0]), got=images.shape[1:], expected=(28, 28))
    _more_wanted((), limit)
    return images[:limit], _checked_labels(paths[1], labels)[:limit]


def _idx(path: Path, rank: int) -> Bytes:
    """An IDX file: bytes 0, 0, 8 (uint8), rank; ``rank`` sizes as big-endian uint32; data."""
    size = path.stat().st_size
    packed = path.suffix == ".gz"
    header = 4 + 4 * rank
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            head = file.read(header)
            if len(head) < header or head[:4] != bytes((0, 0, 8, rank)):
                raise MalformedDataset(
                    str(path), got=head[:4].hex() or "nothing", expected=f"magic 0000080{rank}"
                )
            shape = tuple(int(n) for n in np.frombuffer(head, ">u4", offset=4))
            want = int(np.prod([int(n) for n in shape], dtype=object))
            most = _DEFLATE_RATIO * size if packed else size - header
            if not 0 < want <= min(most, _LARGEST_FILE):
                raise MalformedDataset(
                    str(path), got=f"sizes {shape} in a file of {size} bytes",
                    expected="at least one item, and no more than the file holds",
                )  # fmt: skip
            data = file.read(want + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error, OSError) as error:
        raise MalformedDataset(str(path), got=type(error).__name__) from error
    if len(data) != want:
        raise MalformedDataset(
            str(path), got=f"{'more' if len(data) > want else len(data)} bytes", expected=want
        )
    return np.frombuffer(data, np.uint8).reshape(shape)


def _checked_labels(path: Path, labels: Bytes) -> Bytes:
    if labels.max() >= _CLASSES:
        raise MalformedDataset(
            f"labels of {path}", got=int(labels.max()), expected=f"0 to {_CLASSES - 1}"
        )
    return labels


def _read(path: Path) -> bytes:
    size = path.stat().st_size
    if size > _LARGEST_FILE:
        raise MalformedDataset(str(path), got=f"{size} bytes", expected=f"<= {_LARGEST_FILE}")
    return path.read_bytes()


def _present(folder: Path, name: str, places: Sequence[str]) -> Path | None:
    """The file of that name; an IDX file also packed, or with the dot of some mirrors."""
    names = [name]
    if "-idx" in name:
        names += [name.replace("-idx", ".idx")]
        names += [f"{each}.gz" for each in names]
    candidates = [folder / place / each for place in places for each in names]
    return next((path for path in candidates if path.is_file()), None)


def _find(folder: Path, name: str, places: Sequence[str]) -> Path:
    found = _present(folder, name, places)
    if found is None:
        raise MalformedDataset(str(folder), got="no such file", expected=name)
    return found
