"""CrypTen's ``Communicator`` for two parties over the party link.

CrypTen programs are synchronous and run in a thread of their own; the link lives in an event loop.
Objects travel as JSON, never as pickle, so a peer can send values but nothing that runs.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import numpy as np
import torch
from torch.distributed import ReduceOp

from secure_quant.errors import MalformedMessage, OpNotSupported
from secure_quant.mpc.crypten.compat import Communicator
from secure_quant.mpc.runtime.link import PartyLink

__all__ = ["LinkCommunicator"]

T = TypeVar("T")
Tensor = torch.Tensor
PARTIES = 2
MAX_OBJECT = 2**20

_REDUCE: dict[Any, Callable[[Tensor, Tensor], Tensor]] = {
    ReduceOp.SUM: torch.add,
    ReduceOp.PRODUCT: torch.mul,
    ReduceOp.MIN: torch.minimum,
    ReduceOp.MAX: torch.maximum,
    ReduceOp.BAND: torch.bitwise_and,
    ReduceOp.BOR: torch.bitwise_or,
    ReduceOp.BXOR: torch.bitwise_xor,
}


class _Request:
    """What ``isend`` and ``irecv`` return."""

    def __init__(self, finish: Callable[[], None]) -> None:
        self._finish = finish

    def wait(self) -> None:
        """Return once the operation is done."""
        self._finish()


class LinkCommunicator(Communicator):  # type: ignore[misc]  # CrypTen has no types
    """``rank`` 0 or 1 of two. Every method blocks its thread, which must not be the loop's."""

    BYTES_PER_ELEMENT = 8

    def __init__(self, rank: int, link: PartyLink, loop: asyncio.AbstractEventLoop) -> None:
        self.rank, self._link, self._loop = rank, link, loop
        self._name = f"party{rank}"
        self._owed: deque[Callable[[], None]] = deque()
        self.reset_communication_stats()

    def get_rank(self) -> int:
        return self.rank

    def get_world_size(self) -> int:
        return PARTIES

    def set_name(self, name: str) -> None:
        self._name = name

    def get_name(self) -> str:
        return self._name

    def send(self, tensor: Tensor, dst: int) -> None:
        self._peer(dst)
        self._put([tensor])

    def recv(self, tensor: Tensor, src: int | None = None) -> Tensor:
        if src is not None:
            self._peer(src)
        self._settle()
        return tensor.copy_(self._get([tensor])[0])

    def isend(self, tensor: Tensor, dst: int) -> _Request:
        self.send(tensor, dst)
        return _Request(lambda: None)

    def irecv(self, tensor: Tensor, src: int | None = None) -> _Request:
        """Received in the order of the calls, whichever is waited for first."""
        if src is not None:
            self._peer(src)
        state = {"done": False}

        def receive() -> None:
            tensor.copy_(self._get([tensor])[0])
            state["done"] = True

        self._owed.append(receive)

        def finish() -> None:
            while not state["done"]:
                self._owed.popleft()()

        return _Request(finish)

    def scatter(
        self,
        scatter_list: list[Tensor] | None,
        src: int,
        size: Any = None,
        device: Any = None,
    ) -> Tensor:
        if src == self.rank:
            if scatter_list is None or len(scatter_list) != PARTIES:
                raise MalformedMessage("tensors to scatter", expected=f"{PARTIES} of them")
            self._put([scatter_list[1 - self.rank]])
            return scatter_list[self.rank]
        self._settle()
        return self._get([torch.empty(size, dtype=torch.long)])[0]

    def reduce(
        self,
        input: Any,  # noqa: A002
        dst: int,
        op: Any = ReduceOp.SUM,
        batched: bool = False,
    ) -> Any:
        tensors = list(input) if batched else [input]
        if dst != self.rank:
            self._put(tensors)
            return None
        self._settle()
        theirs = self._get(tensors)
        found = [_reduce(op)(mine, other) for mine, other in zip(tensors, theirs, strict=True)]
        return found if batched else found[0]

    def all_reduce(
        self,
        input: Any,  # noqa: A002
        op: Any = ReduceOp.SUM,
        batched: bool = False,
    ) -> Any:
        tensors = list(input) if batched else [input]
        theirs = self._swap(tensors)
        found = [_reduce(op)(mine, other) for mine, other in zip(tensors, theirs, strict=True)]
        return found if batched else found[0]

    def gather(self, tensor: Tensor, dst: int) -> list[Tensor | None]:
        if dst != self.rank:
            self._put([tensor])
            return [None]
        self._settle()
        return self._in_order(tensor, self._get([tensor])[0])

    def all_gather(self, tensor: Tensor) -> list[Tensor | None]:
        return self._in_order(tensor, self._swap([tensor])[0])

    def broadcast(self, input: Any, src: int, batched: bool = False) -> Any:  # noqa: A002
        tensors = list(input) if batched else [input]
        if src == self.rank:
            self._put(tensors)
            return input
        self._settle()
        for tensor, found in zip(tensors, self._get(tensors), strict=True):
            tensor.data.copy_(found)
        return input

    def barrier(self) -> None:
        self._swap([torch.zeros(1, dtype=torch.uint8)])

    def send_obj(self, obj: Any, dst: int) -> None:
        self._peer(dst)
        data = json.dumps(_plain(obj)).encode()
        if len(data) > MAX_OBJECT:
            raise OpNotSupported("object to send", got=f"{len(data)} bytes", expected=MAX_OBJECT)
        self._call(self._link.send(len(data).to_bytes(4, "little")))
        self._call(self._link.send(data))

    def recv_obj(self, src: int) -> Any:
        self._peer(src)
        self._settle()
        size = int.from_bytes(self._call(self._link.receive(4)), "little")
        if not 0 < size <= MAX_OBJECT:
            raise MalformedMessage("object", got=f"{size} bytes", expected=f"1 to {MAX_OBJECT}")
        try:
            return _object(json.loads(self._call(self._link.receive(size))))
        except (ValueError, RecursionError) as error:
            raise MalformedMessage("object", expected="JSON") from error

    def broadcast_obj(self, obj: Any, src: int) -> Any:
        if src == self.rank:
            self.send_obj(obj, 1 - self.rank)
            return obj
        return self.recv_obj(src)

    def exchange_bytes(self, data: bytes) -> bytes:
        """Ours for the peer's, of the same length."""
        return self._call(self._link.exchange(data))

    def _swap(self, tensors: list[Tensor]) -> list[Tensor]:
        self._settle()
        data = _join(tensors)
        self._count(2 * len(data))
        return _split(self._call(self._link.exchange(data)) if data else b"", tensors)

    def _put(self, tensors: list[Tensor]) -> None:
        data = _join(tensors)
        self._count(len(data))
        if data:
            self._call(self._link.send(data))

    def _get(self, like: list[Tensor]) -> list[Tensor]:
        size = sum(each.numel() * each.element_size() for each in like)
        self._count(size)
        return _split(self._call(self._link.receive(size)) if size else b"", like)

    def _settle(self) -> None:
        while self._owed:
            self._owed.popleft()()

    def _count(self, size: int) -> None:
        self.comm_rounds += 1
        self.comm_bytes += size

    def _in_order(self, mine: Tensor, theirs: Tensor) -> list[Tensor | None]:
        return [mine, theirs] if self.rank == 0 else [theirs, mine]

    def _peer(self, rank: int) -> None:
        if rank != 1 - self.rank:
            raise MalformedMessage("rank of the other party", got=rank, expected=1 - self.rank)

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def _reduce(op: Any) -> Callable[[Tensor, Tensor], Tensor]:
    for known, function in _REDUCE.items():
        if op == known:
            return function
    raise OpNotSupported("reduction", got=op)


def _join(tensors: list[Tensor]) -> bytes:
    return b"".join(each.detach().contiguous().numpy().tobytes() for each in tensors)


def _split(data: bytes, like: list[Tensor]) -> list[Tensor]:
    found, start = [], 0
    for each in like:
        stop = start + each.numel() * each.element_size()
        kind = torch.empty(0, dtype=each.dtype).numpy().dtype
        array = np.frombuffer(bytearray(data[start:stop]), kind)
        found.append(torch.from_numpy(array).reshape(each.shape))
        start = stop
    return found


def _plain(obj: Any) -> Any:
    """``obj`` in JSON's types; tuples and torch.Size are marked. Raises OpNotSupported."""
    if obj is None or isinstance(obj, bool | int | float | str):
        return obj
    if isinstance(obj, torch.Size):
        return {"size": list(obj)}
    if isinstance(obj, tuple | list):
        return {type(obj).__name__: [_plain(each) for each in obj]}
    if isinstance(obj, dict) and all(isinstance(key, str) for key in obj):
        return {"dict": {key: _plain(value) for key, value in obj.items()}}
    raise OpNotSupported(
        "sending an object", got=type(obj).__name__,
        expected="numbers, texts, shapes, lists, tuples and dicts of them",
    )  # fmt: skip


def _object(plain: Any) -> Any:
    if not isinstance(plain, dict):
        return plain
    (kind, value), *rest = plain.items()
    if rest:
        raise MalformedMessage("object", got=len(plain), expected="one mark")
    if kind == "size":
        return torch.Size(value)
    if kind in ("tuple", "list"):
        made = [_object(each) for each in value]
        return tuple(made) if kind == "tuple" else made
    if kind == "dict":
        return {key: _object(each) for key, each in value.items()}
    raise MalformedMessage("object", got=str(kind)[:20], expected="a known mark")
