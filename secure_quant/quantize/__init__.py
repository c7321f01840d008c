"""Float torch model -> integer graph. The only room that imports torch for models.

The package may be called like its function: once it is imported, ``secure_quant.quantize`` names
the package, and ``sq.quantize(model, x)`` means the same as before.
"""

import sys
from types import ModuleType
from typing import Any

from secure_quant.quantize import _torchao  # noqa: F401  first: it imports torchao quietly
from secure_quant.quantize.api import quantize
from secure_quant.quantize.qat import Training
from secure_quant.quantize.schemes import Clip, KMeans, Log, Scheme, Uniform

__all__ = ["Clip", "KMeans", "Log", "Scheme", "Training", "Uniform", "quantize"]


class _Callable(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return quantize(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
