#!/usr/bin/env python3
"""Large models as files for ``secure-quant bench``: published shapes, random weights from a seed.

    python bench/large.py resnet50 --out resnet50.sq
    secure-quant bench --model resnet50.sq --engine mpc --runs 3 --seconds 0

resnet18, resnet50: torchvision's (which is to be installed), on 3×224×224. bert: the encoder of
BERT-base in PyTorch's own layers (12 layers, 12 heads, 768 wide, 3072 inside, GELU), on 128
embedded tokens. bert-ids: BERT-base as transformers (which is to be installed) builds it, from 128
token numbers and a mask, with secret tables. Trained weights have other ranges, hence somewhat
other tables and bytes. --layers: fewer than there are.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from arguments import parser, positive, run

from secure_quant.errors import ConfigError
from secure_quant.ir import save
from secure_quant.quantizer import quantize

SAMPLES = 4
"""To calibrate on."""

Inputs = torch.Tensor | dict[str, torch.Tensor]
Made = tuple[torch.nn.Module, Inputs]


def resnet(name: str, layers: int | None) -> Made:
    """With BatchNorm's statistics of these inputs: without, a deep random network's activations
    vanish."""
    if layers:
        raise ConfigError(f"--layers for {name}", got=layers, expected="one of the BERTs")
    model = getattr(importlib.import_module("torchvision.models"), name)(weights=None)
    x = torch.randn(SAMPLES, 3, 224, 224)
    with torch.no_grad():
        model.train()(x)
    return model.eval(), x


def bert(layers: int | None) -> Made:
    layer = torch.nn.TransformerEncoderLayer(768, 12, 3072, activation="gelu", batch_first=True)
    model = torch.nn.TransformerEncoder(layer, layers or 12, enable_nested_tensor=False)
    return model.eval(), torch.randn(SAMPLES, 128, 768)


def bert_ids(layers: int | None) -> Made:
    kinds = importlib.import_module("transformers")
    config = kinds.BertConfig(num_hidden_layers=layers or 12)
    lengths = torch.randint(16, 129, (SAMPLES, 1))
    inputs = {
        "input_ids": torch.randint(0, config.vocab_size, (SAMPLES, 128)),
        "attention_mask": (torch.arange(128) < lengths).long(),
    }
    return kinds.BertModel(config, add_pooling_layer=False).eval(), inputs


MODELS: dict[str, Callable[[int | None], Made]] = {
    "resnet18": partial(resnet, "resnet18"),
    "resnet50": partial(resnet, "resnet50"),
    "bert": bert,
    "bert-ids": bert_ids,
}


def main() -> int:
    line = parser(__doc__)
    line.add_argument("model", choices=sorted(MODELS))
    line.add_argument("--out", type=Path, required=True, metavar="FILE.sq")
    line.add_argument("--layers", type=positive, metavar="N")
    arguments = line.parse_args()
    torch.manual_seed(0)
    model, x = MODELS[arguments.model](arguments.layers)
    save(quantize(model, x, embedding="private" if isinstance(x, dict) else None), arguments.out)
    return 0


if __name__ == "__main__":
    run(main)
