"""Float torch model -> integer graph. The only room that imports torch for models."""

from secure_quant.quantize.api import quantize
from secure_quant.quantize.observers import RangeObserver, WeightObserver

__all__ = ["RangeObserver", "WeightObserver", "quantize"]
