"""Writes ``tiny_model.sq``, the frozen example of docs/spec/file-format.md.

Run by hand: ``python tests/vectors/make_tiny_model.py``. ``test_frozen_model.py`` checks that it
still writes the committed bytes, and ``verify_tiny_model.py`` that those mean what the page says.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from secure_quant.ir import Graph, artifact, ops

PATH = Path(__file__).with_name("tiny_model.sq")


def tiny_model() -> Graph:
    weight = np.array([[1, -2, 3], [127, 0, -128]], np.int8)
    coded = np.array([[1, -1] * 10, [3, 5] * 10], np.int8)
    repeat = tuple((i * 50) % 256 - 128 for i in range(16))
    nodes = (
        ops.Input(name="x", shape=(3,), scale=0.03125, zero_point=-1),
        ops.Linear(
            name="fc1", inputs=("x",), in_features=3, out_features=2, bias=True,
            bound=40960, scale=1e-05,
        ),
        ops.Requantize(
            name="q1", inputs=("fc1",), multiplier=(255, 1), axis=-1, offset=-4096, shift=9,
            table=repeat, scale=0.5, zero_point=2,
        ),
        ops.Concat(name="wide", inputs=("q1",) * 10, axis=0),
        ops.Linear(
            name="fc2", inputs=("wide",), in_features=20, out_features=2, bias=False,
            bound=12288, scale=0.25,
        ),
        ops.Output(name="y", inputs=("fc2",), multiplier=(7, 9), axis=0, scale=2.0),
    )  # fmt: skip
    parameters = {
        "fc1.weight": weight,
        "fc1.bias": np.array([12500, -300], np.int32),
        "fc2.weight": coded,
    }
    return Graph(nodes, parameters, bytes(range(32)))


if __name__ == "__main__":
    PATH.write_bytes(artifact.encode(tiny_model()))
    print(PATH.name, tiny_model().hash)
