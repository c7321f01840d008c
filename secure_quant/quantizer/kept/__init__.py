"""Models that are quantized already: their scales and zero points are taken as they are.

In such a model an op, ``on_grid``, stands where a value is rounded. Everything that looks at float
models sees the identity there, and weights that are floats on a grid; at the end the op becomes the
pair of nodes that the lowering reads, and weights their integers.
"""

from secure_quant.quantizer.kept.grid import ON_GRID, KeptScales, kept_scales, on_grid, rounding

__all__ = ["ON_GRID", "KeptScales", "kept_scales", "on_grid", "rounding"]
