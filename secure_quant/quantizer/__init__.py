"""Float torch model -> integer graph. The only room that imports torch for models."""

from secure_quant.quantizer import _torchao  # noqa: F401  first: it imports torchao quietly
from secure_quant.quantizer.api import quantize
from secure_quant.quantizer.gate import AccuracyWarning
from secure_quant.quantizer.images import ImageFolder, ImageSpec
from secure_quant.quantizer.qat import Training
from secure_quant.quantizer.schemes import Clip, KMeans, Log, Scheme, Uniform

__all__ = [
    "AccuracyWarning",
    "Clip",
    "ImageFolder",
    "ImageSpec",
    "KMeans",
    "Log",
    "Scheme",
    "Training",
    "Uniform",
    "quantize",
]
