"""What may stand in a field of an op."""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["is_kind"]

_LARGEST = 2**60


def _is_int(value: object) -> bool:
    return type(value) is int and abs(value) <= _LARGEST


def _is_tuple(item: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, tuple) and all(map(item, value))


def _is_name(value: object) -> bool:
    plain = isinstance(value, str) and value.isascii() and value.isprintable()
    return plain and 0 < len(str(value)) <= 200 and " " not in str(value)


_KINDS: dict[str, Callable[[object], bool]] = {
    "bool": lambda value: type(value) is bool,
    "float": lambda value: isinstance(value, float) and math.isfinite(value),
    "int": _is_int,
    "str": _is_name,
    "Pair": lambda value: isinstance(value, tuple) and len(value) == 2 and all(map(_is_int, value)),
    "tuple[int, ...]": _is_tuple(_is_int),
    "tuple[str, ...]": _is_tuple(_is_name),
}


def is_kind(value: object, kind: str) -> bool:
    """True if ``value`` may stand in a field annotated ``kind``: Python's own types, integers to
    2**60, finite numbers, names of 1 to 200 printable ASCII characters without blanks."""
    return _KINDS[kind](value)
