"""A model as the gateway serves it: a connection to its servers, what callers are told of it, and
the way of a request from floats to floats."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_quant import reference
from secure_quant.engines import Engine
from secure_quant.errors import (
    DeadlineExceeded,
    InputError,
    ModelNotFound,
    SecureQuantError,
)
from secure_quant.ir import Graph
from secure_quant.within import within
from secure_quant_client.gateway.asked import Asked, Made
from secure_quant_client.gateway.joining import Joiner
from secure_quant_client.gateway.status import from_servers
from secure_quant_client.gateway.tensors import ANSWERED, asked_of, metadata_shape

__all__ = ["Served", "Tensor"]

FRESH_S = 1.0
"""For which a look at the servers' health counts."""
LOOK_S = 5.0
LARGE = 2**18
"""Elements above which an input is quantized in a thread."""


@dataclass(frozen=True)
class Tensor:
    """What metadata says of an input or an output; shape with -1 for the batch."""

    name: str
    datatype: str
    shape: list[int]


class Served:
    """name: what callers call it. connection: ``Engine.connect``'s options.

    timeout_s: of a request whose caller states none, and the most that one may state. batch: most
    samples of one joined inference; None for what the servers take.
    """

    def __init__(
        self, name: str, engine: Engine, targets: Sequence[str], *, timeout_s: float | None,
        batch: int | None, at_once: int, pending: int, connection: dict[str, Any],
    ) -> None:  # fmt: skip
        self.name, self._engine, self._timeout_s = name, engine, timeout_s
        self._client = engine.connect(targets, aio=True, **connection)
        self._batch, self._at_once, self._pending = batch, at_once, pending
        self._known: tuple[Graph, Joiner] | None = None
        self._connecting: asyncio.Task[tuple[Graph, Joiner]] | None = None
        self._looking, self._looked = asyncio.Lock(), -FRESH_S
        self._away: SecureQuantError | None = None

    @property
    def platform(self) -> str:
        """Of the protocol's metadata."""
        return f"secure-quant_{self._engine.name}"

    @property
    def joiner(self) -> Joiner | None:
        """Of its requests; None before the servers have told the model."""
        return None if self._known is None else self._known[1]

    async def close(self) -> None:
        """Give up the connection."""
        if self._connecting is not None:
            self._connecting.cancel()
        if self._known is not None:
            await self._known[1].stop()
        await self._client.close()

    async def check_ready(self) -> None:
        """The model is known and its servers serve. Raises PeerUnavailable and its kin."""
        async with self._looking:
            if time.monotonic() - self._looked >= FRESH_S:
                self._away = None
                try:
                    await self._client.check_ready(timeout=LOOK_S)
                    async with _within(LOOK_S):
                        await self._connected()
                except SecureQuantError as error:
                    self._away = error
                self._looked = time.monotonic()
            if self._away is not None:
                raise self._away

    async def version(self, asked: str = "") -> str:
        """The model's hash. Raises ModelNotFound for another version, PeerUnavailable and its kin
        while the servers are away."""
        graph, _ = await self._connected()
        if asked not in ("", graph.hash):
            raise ModelNotFound(
                f"version of model {self.name!r}", got=ascii(asked[:64]), expected=graph.hash
            )
        return graph.hash

    async def tensors(self) -> tuple[list[Tensor], list[Tensor]]:
        """Inputs and outputs."""
        graph, _ = await self._connected()
        return (
            [Tensor(p.name, asked_of(p), metadata_shape(p.asked)) for p in graph.input_ports],
            [Tensor(p.name, ANSWERED, metadata_shape(p.shape)) for p in graph.output_ports],
        )

    async def infer(self, asked: Asked) -> Made:
        """Raises InputError's leaves, which name the input; ModelNotFound, Overloaded,
        DeadlineExceeded, and what the engine's client raises."""
        limits = [each for each in (self._timeout_s, asked.seconds) if each is not None]
        seconds = min(limits, default=None)
        async with _within(seconds):
            graph, joiner = await self._connected()
            version = await self.version(asked.version)
            wanted = self._wanted(graph, asked.outputs)
            if sum(array.size for array in asked.inputs.values()) > LARGE:
                q = await asyncio.to_thread(_quantized, graph, asked.inputs)
            else:
                q = _quantized(graph, asked.inputs)
            y = await joiner.infer(q, seconds)
        outputs = reference.answer(graph, asked.inputs, y)
        return Made(self.name, version, asked.id, {name: outputs[name] for name in wanted})

    async def _connected(self) -> tuple[Graph, Joiner]:
        """Once the servers have told the model: all who ask meanwhile wait for one answer."""
        if self._known is not None:
            return self._known
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect())
            self._connecting.add_done_callback(self._connection_ended)
        return await asyncio.shield(self._connecting)

    async def _connect(self) -> tuple[Graph, Joiner]:
        with from_servers():
            graph, taken = await self._client.graph(), await self._client.batch()
        joiner = Joiner(
            self._infer, samples=min(taken, self._batch or taken), at_once=self._at_once,
            pending=self._pending,
        )  # fmt: skip
        self._known = graph, joiner
        return self._known

    def _connection_ended(self, task: asyncio.Task[tuple[Graph, Joiner]]) -> None:
        self._connecting = None
        if not task.cancelled():
            task.exception()  # whoever waits has it; if nobody does, it is nobody's

    async def _infer(self, q: NDArray[np.int8], seconds: float | None) -> NDArray[np.int64]:
        with from_servers():
            made: NDArray[np.int64] = await self._client.infer_int8(q, timeout=seconds)
        return made

    @staticmethod
    def _wanted(graph: Graph, asked: tuple[str, ...]) -> tuple[str, ...]:
        known = tuple(port.name for port in graph.output_ports)
        for name in asked:
            if name not in known:
                expected = ", ".join(ascii(each) for each in known[:32])
                raise InputError("requested output", got=ascii(name[:80]), expected=expected)
        return asked or known


def _within(seconds: float | None) -> AbstractAsyncContextManager[object]:
    return within(seconds, lambda: DeadlineExceeded("inference", expected=f"<= {seconds:g} s"))


def _quantized(graph: Graph, inputs: Any) -> NDArray[np.int8]:
    """Raises InputError's leaves, by the input's name also where the model has but one."""
    try:
        return reference.asked(graph, inputs)
    except InputError as error:
        if error.what != "input":
            raise
        what = f"input {graph.input_ports[0].name!r}"
        raise type(error)(what, got=error.got, expected=error.expected, hint=error.hint) from error
