"""Imports torchao, for its side effects too (it registers the quantized_decomposed ops), without
what it logs about compiled kernels for other machines, none of which is used here, and without what
torch and torchao warn of in themselves: that is no news to a user, and ``-W error`` must not make
it one."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_shapes = logging.getLogger("torch.fx.experimental.symbolic_shapes")
"""Logs the code of a module that branches on values; the error that is raised says it shorter."""


@contextmanager
def quiet() -> Iterator[None]:
    """Without warnings about the making of torch and torchao; those of users and of ours stay."""
    with warnings.catch_warnings():
        for kind in (
            DeprecationWarning,
            PendingDeprecationWarning,
            FutureWarning,
            ImportWarning,
            SyntaxWarning,
        ):
            warnings.simplefilter("ignore", kind)
        warnings.filterwarnings("ignore", category=UserWarning, module="torch")
        # torch.export's, in the name of contextlib: the copy it is about goes.
        warnings.filterwarnings("ignore", "The tensor attribute", category=UserWarning)
        level = _shapes.level
        _shapes.setLevel(logging.ERROR)
        try:
            yield
        finally:
            _shapes.setLevel(level)


_LOUD = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
_levels = [logger.level for logger in _LOUD]
for _logger in _LOUD:
    _logger.setLevel(logging.ERROR)
try:
    with quiet():
        import torchao.quantization.pt2e.quantize_pt2e
finally:
    for _logger, _level in zip(_LOUD, _levels, strict=True):
        _logger.setLevel(_level)

__all__ = ["quiet", "torchao"]
