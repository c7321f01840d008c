"""Small models and data sets to try the library on."""

from secure_quant.quantize.zoo.data import Split, digits
from secure_quant.quantize.zoo.models import (
    DepthwiseNet,
    LeNet,
    ResNet,
    RowClassifier,
    TransformerEncoder,
    linear,
    mlp,
)
from secure_quant.quantize.zoo.train import accuracy, train

__all__ = [
    "DepthwiseNet",
    "LeNet",
    "ResNet",
    "RowClassifier",
    "Split",
    "TransformerEncoder",
    "accuracy",
    "digits",
    "linear",
    "mlp",
    "train",
]
