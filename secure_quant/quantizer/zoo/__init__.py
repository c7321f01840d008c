"""Small models and data sets to try the library on."""

from secure_quant.quantizer.zoo.data import Split, digits
from secure_quant.quantizer.zoo.datasets import cifar10, mnist
from secure_quant.quantizer.zoo.models import (
    DepthwiseNet,
    LeNet,
    ResNet,
    RowClassifier,
    TransformerEncoder,
    linear,
    mlp,
)
from secure_quant.quantizer.zoo.train import accuracy, train

__all__ = [
    "DepthwiseNet",
    "LeNet",
    "ResNet",
    "RowClassifier",
    "Split",
    "TransformerEncoder",
    "accuracy",
    "cifar10",
    "digits",
    "linear",
    "mlp",
    "mnist",
    "train",
]
