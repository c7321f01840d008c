"""Data sets: scikit-learn's digits, without any download."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["Split", "digits"]


@dataclass(frozen=True)
class Split:
    """float32 inputs [n, *shape] and int64 labels [n] to train and to test on."""

    train_x: NDArray[np.float32]
    train_y: NDArray[np.int64]
    test_x: NDArray[np.float32]
    test_y: NDArray[np.int64]


def digits(form: str = "image", *, test_share: float = 0.25, seed: int = 0) -> Split:
    """The 1,797 handwritten 8×8 digits of scikit-learn, pixels scaled to 0..1.

    form  "flat" [64]; "rows" [8, 8], a sequence of rows; "image" [3, 32, 32], upscaled
          bilinearly and repeated over the channels.
    """
    from sklearn.datasets import load_digits  # an extra of its own

    x, y = load_digits(return_X_y=True)
    pixels = torch.from_numpy(x.astype(np.float32) / 16)
    if form == "rows":
        pixels = pixels.reshape(-1, 8, 8)
    elif form == "image":
        small = pixels.reshape(-1, 1, 8, 8)
        large = torch.nn.functional.interpolate(small, size=(32, 32), mode="bilinear")
        pixels = large.repeat(1, 3, 1, 1)
    elif form != "flat":
        raise ValueError(f"form: got {form!r}, expected 'flat', 'rows' or 'image'")
    order = np.random.default_rng(seed).permutation(len(y))
    held = round(len(y) * test_share)
    test, rest = order[:held], order[held:]
    data, labels = pixels.numpy(), y.astype(np.int64)
    return Split(data[rest], labels[rest], data[test], labels[test])
