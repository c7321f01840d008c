"""What a caller asks for and gets, in whichever of the protocol's two forms it came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import InputError, MalformedMessage

__all__ = ["Asked", "Made", "collected", "refuse_unknown", "seconds_in"]

_REFUSED = {
    "classification": "the outputs are answered as they are",
    "sequence_id": "the models keep no state",
    "sequence_start": "the models keep no state",
    "sequence_end": "the models keep no state",
    "shared_memory_region": "tensors travel in the message",
    "shared_memory_byte_size": "tensors travel in the message",
    "shared_memory_offset": "tensors travel in the message",
}
"""Parameters that would change the answer; others are hints, and may be left out of account."""


@dataclass(frozen=True)
class Asked:
    """inputs: by name, [batch, ...]. outputs: those wanted, in their order; () for all. seconds:
    the caller's limit of time, None for none of its own."""

    model: str
    version: str
    id: str
    inputs: Mapping[str, NDArray[Any]] = field(repr=False)
    outputs: tuple[str, ...] = ()
    seconds: float | None = None


@dataclass(frozen=True)
class Made:
    """outputs: by name, float32[batch, ...], as they were asked for."""

    model: str
    version: str
    id: str
    outputs: Mapping[str, NDArray[np.float32]] = field(repr=False)


def collected(names: Sequence[str], what: str) -> tuple[str, ...]:
    """Each of them once. Raises MalformedMessage."""
    for name in names:
        if names.count(name) > 1:
            raise MalformedMessage(what, got=f"{name!r} twice", expected="each name once")
    return tuple(names)


def refuse_unknown(parameters: Mapping[str, Any]) -> None:
    """Raises InputError for a parameter that would change the answer."""
    for name in parameters:
        if name in _REFUSED and parameters[name] not in (0, False, ""):
            raise InputError(f"parameter {name!r}", got="set", hint=_REFUSED[name])


def seconds_in(parameters: Mapping[str, Any]) -> float | None:
    """Of the parameter ``timeout``, microseconds. Raises MalformedMessage."""
    found = parameters.get("timeout")
    if found is None or found == 0:
        return None
    if isinstance(found, bool) or not isinstance(found, int) or not 0 < found < 10**15:
        raise MalformedMessage("parameter 'timeout'", expected="microseconds > 0")
    return found / 1e6
