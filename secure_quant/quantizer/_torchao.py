"""Imports torchao, for its side effects too (it registers the quantized_decomposed ops), without
what it logs about compiled kernels for other machines, none of which is used here."""

from __future__ import annotations

import logging

_LOUD = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
_levels = [logger.level for logger in _LOUD]
for _logger in _LOUD:
    _logger.setLevel(logging.ERROR)
try:
    import torchao.quantization.pt2e.quantize_pt2e
finally:
    for _logger, _level in zip(_LOUD, _levels, strict=True):
        _logger.setLevel(_level)

__all__ = ["torchao"]
