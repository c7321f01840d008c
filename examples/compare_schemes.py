"""What each weight scheme costs in accuracy and saves in bytes, on a LeNet for digits.

All schemes land on the int8 grid, so every engine runs them unchanged; those with at most 16
values are stored in half a byte per weight.

    python examples/compare_schemes.py [--epochs 8] [--images 449]
"""

import argparse

import numpy as np
import torch

import secure_quant as sq
from secure_quant.quantizer import Clip, KMeans, Log, Uniform, zoo
from secure_quant_cli.sizes import weight_bytes

SCHEMES = {
    "uniform, per channel": Uniform(),
    "uniform, per tensor": Uniform(per_channel=False),
    "clipped, least error": Clip(),
    "clipped, 99.5th percentile": Clip("percentile"),
    "k-means, 256 values": KMeans(256),
    "k-means, 16 values": KMeans(16),
    "powers of two": Log(),
    "powers of two, none to 0": Log(keep_small=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=8, help="of training")
    parser.add_argument("--images", type=int, default=449, help="test images to compare on")
    arguments = parser.parse_args()

    data = zoo.digits("image")
    model = zoo.train(zoo.LeNet, data, epochs=arguments.epochs)
    x, labels = data.test_x[: arguments.images], data.test_y[: arguments.images]
    with torch.no_grad():
        floats = model(torch.from_numpy(x)).numpy()
    right = zoo.accuracy(floats, labels)

    # error: of the logits, root mean square, relative to the float model's.
    # stored: the weights' bytes in the model file, as a share of float32.
    print(f"{'':28}{'error':>8}{'accuracy':>10}{'stored':>8}")
    print(f"{'float32':28}{'':8}{right:>10.2%}{1:>8.3f}")
    for name, scheme in SCHEMES.items():
        graph = sq.quantize(model, data.train_x[:128], scheme=scheme)
        logits = sq.reference.run(graph, x)
        error = np.sqrt(((logits - floats) ** 2).mean() / (floats**2).mean())
        stored, full = weight_bytes(graph)
        share = zoo.accuracy(logits, labels)
        print(f"{name:28}{error:>8.2%}{share:>10.2%}{stored / full:>8.3f}")


if __name__ == "__main__":
    main()
