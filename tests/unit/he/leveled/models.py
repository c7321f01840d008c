"""Random leveled models."""

from __future__ import annotations

import itertools

import numpy as np

from secure_quant.he.leveled import LeveledModel


def random_model(widths: tuple[int, ...], seed: int = 0, bound: float = 1.0) -> LeveledModel:
    """Outputs of the order of one."""
    rng = np.random.default_rng(seed)
    layers = [
        (
            rng.integers(-127, 128, (out, wide)).astype(np.int8),
            rng.uniform(0.5, 1.5, out) / (127 * np.sqrt(wide)),
            rng.normal(0, 0.2, out),
        )
        for wide, out in itertools.pairwise(widths)
    ]
    return LeveledModel.of(layers, bound)


def extremes(model: LeveledModel, seed: int = 0) -> np.ndarray:
    """Zeros, both ends, signs that add up in one output, values beyond the bound, random ones."""
    wide, bound = model.layers[0].weight.shape[1], model.input_bound
    rng = np.random.default_rng(seed)
    return np.stack(
        [
            np.zeros(wide),
            np.full(wide, bound),
            np.full(wide, -bound),
            bound * np.sign(model.layers[0].weight[0]),
            rng.normal(0, 3 * bound, wide),
            rng.uniform(-bound, bound, wide),
        ]
    )
