"""Float torch model -> integer graph. The only room that imports torch for models."""

from secure_quant.quantize import _torchao  # noqa: F401  first: it imports torchao quietly
from secure_quant.quantize.api import quantize
from secure_quant.quantize.qat import Training
from secure_quant.quantize.schemes import Clip, KMeans, Log, Scheme, Uniform

__all__ = ["Clip", "KMeans", "Log", "Scheme", "Training", "Uniform", "quantize"]
