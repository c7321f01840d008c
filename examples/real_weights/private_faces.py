"""Private face detection: MTCNN's three nets judge windows of pictures that no server sees.

    pip install --no-deps facenet-pytorch scikit-image
    python examples/real_weights/private_faces.py [--engine mpc]

P-Net proposes windows of 12 pixels, R-Net and O-Net refine those of 24 and 48 (Zhang et al. 2016),
with facenet-pytorch's weights. Judged are 100 windows of Labeled Faces in the Wild and 100 of other
things, which come with scikit-image; half of them calibrate. Which windows to look at next, and
their non-maximum suppression, is the client's, between the nets.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

import secure_quant as sq
from models import face_net
from report import costs, encrypted

THRESHOLDS = {"pnet": 0.6, "rnet": 0.7, "onet": 0.7}
"""From which on facenet-pytorch keeps a window."""


def windows(side: int) -> tuple[Tensor, Tensor]:
    """float[200, 3, side, side] as the nets want them, in a fixed random order, and bool[200]."""
    (folder,) = find_spec("skimage").submodule_search_locations
    grey = torch.from_numpy(np.load(Path(folder) / "data/lfw_subset.npy", allow_pickle=False))
    pixels = grey.float()[:, None].expand(-1, 3, -1, -1) * 255
    scaled = functional.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
    order = torch.randperm(len(grey), generator=torch.Generator().manual_seed(0))
    return ((scaled - 127.5) / 128)[order], (order < 100)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=("mpc", "he"), help="run one window encrypted")
    arguments = parser.parse_args()

    exact = True
    for name, threshold in THRESHOLDS.items():
        model, side = face_net(name)
        x, face = windows(side)
        graph = sq.quantize(model, x[:100])
        q = sq.reference.quantize_input(graph, x[100:].numpy())
        made = sq.reference.dequantize(graph, sq.reference.run_int(graph, q))
        got = sq.reference.named(graph, made)
        with torch.no_grad():
            want = {key: value.numpy() for key, value in model(x[100:]).items()}
        kept, wanted = (part["prob"].reshape(100, 2)[:, 1] > threshold for part in (got, want))
        print(f"{name}, {side}x{side}: {(kept == wanted).sum()} of 100 windows judged as in float; "
              f"right: {(wanted == face[100:].numpy()).sum()} float, "
              f"{(kept == face[100:].numpy()).sum()} integers")  # fmt: skip
        for key in want:
            off = np.abs(got[key].reshape(want[key].shape) - want[key])
            print(f"  {key}: off by {off.mean():.4f} on the mean, {off.max():.3f} at most")
        costs(graph)
        if arguments.engine is not None:
            exact &= encrypted(graph, arguments.engine, q)
    return 0 if exact else 1


if __name__ == "__main__":
    raise SystemExit(main())
