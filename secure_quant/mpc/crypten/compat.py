"""The one door through which CrypTen comes in, and the one place that touches its globals.

CrypTen 0.4.1 keeps its communicator, its provider of correlated randomness and its generators in
module attributes. ``bound`` replaces them for as long as a program runs and puts them back.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.onnx._internal.torchscript_exporter.registration as _registration

from secure_quant.errors import ConfigError

# CrypTen imports this module under the name it had before torch 2.9.
sys.modules.setdefault("torch.onnx._internal.registration", _registration)

try:
    import crypten
except ModuleNotFoundError as error:
    if error.name != "crypten":
        raise
    hint = "CrypTen is not installed; run: secure-quant add-crypten"
    raise ModuleNotFoundError(hint, name="crypten") from None
import crypten.communicator  # noqa: E402
import crypten.mpc  # noqa: E402
from crypten.communicator.communicator import Communicator  # noqa: E402
from crypten.mpc.primitives import ArithmeticSharedTensor, BinarySharedTensor  # noqa: E402
from crypten.mpc.primitives import arithmetic as _arithmetic  # noqa: E402
from crypten.mpc.primitives import binary as _binary  # noqa: E402
from crypten.mpc.provider.provider import TupleProvider  # noqa: E402

__all__ = [
    "ArithmeticSharedTensor",
    "BinarySharedTensor",
    "Communicator",
    "TupleProvider",
    "bound",
    "crypten",
]

_BUSY = threading.Lock()

RingElement = Callable[..., torch.Tensor]


@contextmanager
def bound(
    communicator: Communicator,
    provider: TupleProvider,
    generators: dict[str, Any],
    ring_element: RingElement,
    bits: RingElement,
) -> Iterator[None]:
    """CrypTen speaks through ``communicator``, takes tuples from ``provider`` and randomness from
    ``generators``, which ``ring_element`` and ``bits`` read, until the block ends.

    One block at a time per process, since CrypTen has one of each. Raises ConfigError.
    """
    if not _BUSY.acquire(blocking=False):
        raise ConfigError("CrypTen session", got="a second in this process", expected="one")
    cpu = torch.device("cpu")
    replaced: list[tuple[Any, str, Any]] = [
        (crypten.communicator, "get", lambda: communicator),
        (crypten.communicator, "is_initialized", lambda: True),
        (crypten.mpc, "get_default_provider", lambda: provider),
        (_arithmetic, "generate_random_ring_element", ring_element),
        (_binary, "generate_kbit_random_tensor", bits),
        (
            crypten,
            "generators",
            {name: {cpu: generator} for name, generator in generators.items()},
        ),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in replaced]
    try:
        for owner, name, value in replaced:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
        _BUSY.release()
