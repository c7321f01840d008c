"""Reads the pickles of CIFAR-10's Python version as data: nothing in them is ever called.

A pickle is a program, and running a stranger's is handing over the machine. So ``pickle`` is not
used here at all: ``pickletools`` splits the file into opcodes, and the few that these files need
build plain values. The only names they may mention are numpy's array and dtype; those become inert
records, checked before numpy sees their bytes. Any other opcode or name is refused.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import MalformedDataset

__all__ = ["Array", "read_pickle"]

_MARK = object()

_LITERALS = {
    "BININT", "BININT1", "BININT2", "BINBYTES", "SHORT_BINBYTES", "BINUNICODE", "SHORT_BINUNICODE",
}  # fmt: skip
_OLD_STRINGS = {"BINSTRING", "SHORT_BINSTRING"}
_MADE: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "MARK": lambda: _MARK,
}  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass
class _Name:
    """A name that the pickle mentions; it stands for nothing that could be called."""

    name: str


_NAMES = {
    f"numpy{package}.multiarray _reconstruct": "reconstruct" for package in (".core", "._core")
} | {"numpy ndarray": "ndarray", "numpy dtype": "dtype"}


@dataclass
class _Dtype:
    """A dtype by its code, as in ``u1``."""

    code: Any


@dataclass
class Array:
    """An array as the pickle tells it: nothing of it is believed before ``to_numpy``."""

    state: Any = None

    def to_numpy(self, where: str) -> NDArray[np.uint8]:
        """uint8 of the told shape. Raises MalformedDataset unless the bytes are as many."""
        match self.state:
            case (1, tuple() as shape, _Dtype(b"u1" | "u1"), bool() as fortran, bytes() as data):
                sizes_fit = all(type(n) is int and n >= 0 for n in shape) and len(shape) <= 4
                if sizes_fit and math.prod(shape) == len(data):
                    flat = np.frombuffer(data, np.uint8)
                    return flat.reshape(shape, order="F" if fortran else "C")
        raise MalformedDataset(where, expected="an array of uint8 with as many bytes as its shape")


def read_pickle(data: bytes, where: str) -> Any:
    """What a pickle of dicts, lists, tuples, strings, integers and uint8 arrays holds.

    Strings of Python 2 become bytes. Raises MalformedDataset for anything else.
    """
    reader = _Reader()
    try:
        for opcode, argument, _ in pickletools.genops(data):
            reader.step(opcode.name, argument)
        if len(reader.stack) == 1 and reader.stack[0] is not _MARK:
            return reader.stack[0]
    except MalformedDataset as error:
        raise MalformedDataset(
            where, got=error.what, expected="dicts, lists, strings, integers, uint8 arrays",
            hint="the binary version of the data set holds no pickles",
        ) from error  # fmt: skip
    # What a machine of a stack and a memo raises on nonsense.
    except (ValueError, IndexError, KeyError, TypeError, UnicodeError) as error:
        raise MalformedDataset(where, got="a broken pickle") from error
    raise MalformedDataset(where, got="a broken pickle")


class _Reader:
    """The stack and the memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """One opcode. Raises MalformedDataset for one that these files have no need of."""
        push = self.stack.append
        if name in _LITERALS:
            push(argument)
        elif name in _OLD_STRINGS:
            push(argument.encode("latin-1"))  # the bytes as they stand in the file
        elif name in _MADE:
            push(_MADE[name]())
        elif name in _TUPLES:
            count = _TUPLES[name]
            push(tuple(reversed([self._pop() for _ in range(count)])))
        elif name == "TUPLE":
            push(tuple(self._pop_to_mark()))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self.stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            push(self._memo[argument])
        elif name in ("APPEND", "APPENDS"):
            items = [self._pop()] if name == "APPEND" else self._pop_to_mark()
            self._top(list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            last = [self._pop(), self._pop()][::-1] if name == "SETITEM" else self._pop_to_mark()
            if not all(isinstance(key, bytes | str) for key in last[::2]):
                raise MalformedDataset("a key that is no string")
            self._top(dict).update(zip(last[::2], last[1::2], strict=True))
        elif name == "GLOBAL":
            push(_Name(_allowed(argument)))
        elif name == "REDUCE":
            arguments, made = self._pop(), self._pop()
            push(_stand_in(made, arguments))
        elif name == "BUILD":
            state = self._pop()
            if isinstance(self.stack[-1], Array):
                self.stack[-1].state = state
            elif not isinstance(self.stack[-1], _Dtype):
                raise MalformedDataset("state for a value that takes none")
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise MalformedDataset(f"the opcode {name}")

    def _pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise MalformedDataset("a mark in the place of a value")
        return value

    def _pop_to_mark(self) -> list[Any]:
        place = len(self.stack) - 1
        while self.stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise MalformedDataset("no mark")
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items

    def _top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise MalformedDataset(f"items for a value that is no {kind.__name__}")
        return self.stack[-1]


def _allowed(name: str) -> str:
    if name not in _NAMES:
        raise MalformedDataset(f"the name {name.replace(' ', '.')[:80]!r}")
    return _NAMES[name]


def _stand_in(made: Any, arguments: Any) -> Array | _Dtype:
    """The record for ``_reconstruct(ndarray, (0,), b"b")`` or ``dtype("u1", ...)``."""
    match made, arguments:
        case _Name("reconstruct"), (_Name("ndarray"), *_):
            return Array()
        case _Name("dtype"), (code, *_):
            return _Dtype(code)
    raise MalformedDataset("a call")
