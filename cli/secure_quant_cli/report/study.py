"""What each weight scheme would make of a model, on the inputs at hand."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_quant_cli.arrays import Arrays, part_of

__all__ = ["scheme_study"]

CALIBRATION = 512
"""Samples to calibrate with, of those given."""


def scheme_study(model: Any, x: Arrays, labels: NDArray[Any] | None) -> list[dict[str, Any]]:
    """One record per scheme: name, weight_bytes, float_weight_bytes, file_bytes, mean float error
    at the output, and with labels the accuracy, of the first output.

    Quantizes ``model`` anew for each, calibrated on ``x`` itself: good to compare the schemes with
    one another, not to foretell the accuracy on data that was not seen.
    """

    from secure_quant import reference
    from secure_quant.ir.artifact import encode
    from secure_quant.quantizer import AccuracyWarning, Clip, KMeans, Log, Uniform, quantize
    from secure_quant_cli.comparison import accuracy
    from secure_quant_cli.console import progress
    from secure_quant_cli.sizes import weight_bytes

    schemes: dict[str, Any] = {
        "uniform": Uniform(),
        "uniform, per tensor": Uniform(per_channel=False),
        "clip, mse": Clip(),
        "clip, percentile": Clip("percentile"),
        "k-means, 256": KMeans(256),
        "k-means, 16": KMeans(16),
        "log": Log(),
    }
    from secure_quant.quantizer.floats import outputs_of

    floats = outputs_of(model, x)
    found = []
    with (
        progress(f"{len(schemes)} weight schemes") as line,
        warnings.catch_warnings(action="ignore", category=AccuracyWarning),
    ):
        for name, scheme in schemes.items():
            line.note(name)
            graph = quantize(model, part_of(x, 0, CALIBRATION), scheme=scheme, max_error=inf)
            y = reference.run(graph, x)
            made = y if isinstance(y, dict) else {"": y}
            stored, whole = weight_bytes(graph)
            record = {
                "scheme": name,
                "weight_bytes": stored,
                "float_weight_bytes": whole,
                "file_bytes": len(encode(graph)),
                "float_error_mean": _mean_error(made, floats),
            }
            if labels is not None:
                record["accuracy"] = accuracy(next(iter(made.values())), labels)
            found.append(record)
    return found


def _mean_error(made: Mapping[str, NDArray[Any]], floats: Sequence[NDArray[Any]]) -> float:
    """Over all values of all outputs."""
    pairs = zip(made.values(), floats, strict=True)
    errors = [np.abs(y - real.reshape(y.shape)) for y, real in pairs]
    return float(sum(e.sum() for e in errors) / sum(e.size for e in errors))
