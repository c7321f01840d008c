#!/usr/bin/env python3
"""Large models as files for ``secure-quant bench``: published shapes, random weights from a seed.

    python bench/large.py resnet50 --out resnet50.sq
    secure-quant bench --model resnet50.sq --engine mpc --runs 3 --seconds 0

resnet18, resnet50: torchvision's (which is to be installed), on 3×224×224. bert: the encoder of
BERT-base in PyTorch's own layers (12 layers, 12 heads, 768 wide, 3072 inside, GELU), on 128
embedded tokens. Trained weights have other ranges, hence somewhat other tables and bytes.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from secure_quant.ir import save
from secure_quant.quantizer import quantize

SAMPLES = 4
"""To calibrate on."""

Made = tuple[torch.nn.Module, torch.Tensor]


def resnet(name: str) -> Made:
    """With BatchNorm's statistics of these inputs: without, a deep random network's activations
    vanish."""
    model = getattr(importlib.import_module("torchvision.models"), name)(weights=None)
    x = torch.randn(SAMPLES, 3, 224, 224)
    with torch.no_grad():
        model.train()(x)
    return model.eval(), x


def bert() -> Made:
    layer = torch.nn.TransformerEncoderLayer(768, 12, 3072, activation="gelu", batch_first=True)
    model = torch.nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)
    return model.eval(), torch.randn(SAMPLES, 128, 768)


MODELS: dict[str, Callable[[], Made]] = {
    "resnet18": partial(resnet, "resnet18"),
    "resnet50": partial(resnet, "resnet50"),
    "bert": bert,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.sq")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model, x = MODELS[arguments.model]()
    save(quantize(model, x), arguments.out)


if __name__ == "__main__":
    main()
