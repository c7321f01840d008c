"""Clients of exact engines: arrays in, arrays out, for threads and for asyncio."""

from __future__ import annotations

from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from secure_quant import reference
from secure_quant.ir import Graph
from secure_quant_client.cells import AsyncChoice, Choice
from secure_quant_client.connection import AsyncClient, SyncClient
from secure_quant_client.driver import Deadline
from secure_quant_client.integers import IntegerModel
from secure_quant_client.progress import OnProgress, Telling
from secure_quant_client.stats import Inference, Named, NamedAnswer, NamedInference

__all__ = ["AsyncIntegerClient", "IntegerClient", "allow"]

Exact = TypeVar("Exact", bound=IntegerModel)


def allow(deadline: Deadline, model: IntegerModel, q: Any) -> None:
    """``deadline`` lets the model compute. What ``q`` is if it is no batch, its check will say."""
    shape = getattr(q, "shape", ())
    deadline.allow(model.patience_s(shape[0] if shape else 1))


class IntegerClient(SyncClient[Exact]):
    """Of an exact engine, for threads."""

    _cells: Choice[Exact] | None = None

    def _asked(self, deadline: Deadline) -> Exact:
        return self._cells.model(deadline) if self._cells else self._connect(deadline)

    def _inferred(
        self, q: NDArray[Any], deadline: Deadline, progress: OnProgress | None
    ) -> Inference[np.int64]:
        tell = None if progress is None else Telling(progress)
        if self._cells:
            answer = self._cells.infer(q, deadline, tell)
        else:
            model = self._connect(deadline)
            allow(deadline, model, q)
            program = model.infer(q, deadline, watched=tell is not None)
            answer = self._run(program, deadline, tell)
        if tell is not None:
            tell.end()
        return answer

    @property
    def graph(self) -> Graph:
        """The public graph, fetched at first use. Raises HashMismatch and the like."""
        return self._asked(self._deadline()).graph

    @property
    def batch(self) -> int:
        """Most samples of one call to the servers; larger inputs travel as several."""
        return self._asked(self._deadline()).batch

    @overload
    def infer(
        self, x: Named, *, timeout: float | None = None, progress: OnProgress | None = None
    ) -> NamedAnswer: ...
    @overload
    def infer(
        self, x: ArrayLike, *, timeout: float | None = None, progress: OnProgress | None = None
    ) -> NDArray[np.float32]: ...
    def infer(
        self, x: Any, *, timeout: float | None = None, progress: OnProgress | None = None
    ) -> Any:
        """float[batch, *input shape] -> float32[batch, *output shape].

        Arrays by name, of every input of the model, give the outputs by name: a dict, of one item
        too. An array gives an array, of a model with one of each, whatever their names; of others
        it is refused. ``graph.input_ports`` and ``output_ports`` say names, shapes and dtypes.

        timeout: seconds, finite, for everything: the model's fetch, waiting, every call. The
        default is the deadline in ``limits``.
        progress: called with a Progress, a few times a second and once at the end, in this thread,
        or in the event loop; what it raises ends the inference. Without it nothing more is sent.
        Raises ShapeMismatch, DtypeMismatch, ValueOutOfRange (NaN, infinity, an integer out of its
        input's range), DeadlineExceeded.
        """
        return self.infer_with_stats(x, timeout=timeout, progress=progress).y

    @overload
    def infer_with_stats(
        self, x: Named, *, timeout: float | None = None, progress: OnProgress | None = None
    ) -> NamedInference: ...
    @overload
    def infer_with_stats(
        self, x: ArrayLike, *, timeout: float | None = None, progress: OnProgress | None = None
    ) -> Inference[np.float32]: ...
    def infer_with_stats(
        self, x: Any, *, timeout: float | None = None, progress: OnProgress | None = None
    ) -> Any:
        """As ``infer``, with what it cost."""
        deadline = self._deadline(timeout)
        graph = self._asked(deadline).graph
        y, stats = self._inferred(reference.asked(graph, x), deadline, progress)
        made = reference.answer(graph, x, y)
        return NamedInference(made, stats) if isinstance(made, dict) else Inference(made, stats)

    def infer_int8(
        self, q: NDArray[Any], *, timeout: float | None = None, progress: OnProgress | None = None
    ) -> NDArray[np.int64]:
        """int8[batch, *input shape] -> the integers at the Output, int64[batch, *output shape]; of
        several arrays as they lie packed (``reference.quantize_input``, ``reference.named``)."""
        return self.infer_int8_with_stats(q, timeout=timeout, progress=progress).y

    def infer_int8_with_stats(
        self, q: NDArray[Any], *, timeout: float | None = None, progress: OnProgress | None = None
    ) -> Inference[np.int64]:
        """As ``infer_int8``, with what it cost."""
        return self._inferred(q, self._deadline(timeout), progress)


class AsyncIntegerClient(AsyncClient[Exact]):
    """Of an exact engine, for asyncio: as IntegerClient."""

    _cells: AsyncChoice[Exact] | None = None

    async def _asked(self, deadline: Deadline) -> Exact:
        return await (self._cells.model(deadline) if self._cells else self._connect(deadline))

    async def _inferred(
        self, q: NDArray[Any], deadline: Deadline, progress: OnProgress | None
    ) -> Inference[np.int64]:
        tell = None if progress is None else Telling(progress)
        if self._cells:
            answer = await self._cells.infer(q, deadline, tell)
        else:
            model = await self._connect(deadline)
            allow(deadline, model, q)
            program = model.infer(q, deadline, watched=tell is not None)
            answer = await self._run(program, deadline, tell)
        if tell is not None:
            tell.end()
        return answer

    async def graph(self) -> Graph:
        """The public graph, fetched at first use. Raises HashMismatch and the like."""
        deadline = self._deadline()
        async with deadline.bounding():
            return (await self._asked(deadline)).graph

    async def batch(self) -> int:
        """Most samples of one call to the servers; larger inputs travel as several."""
        deadline = self._deadline()
        async with deadline.bounding():
            return (await self._asked(deadline)).batch

    @overload
    async def infer(
        self, x: Named, *, timeout: float | None = None, progress: OnProgress | None = None
    ) -> NamedAnswer: ...
    @overload
    async def infer(
        self, x: ArrayLike, *, timeout: float | None = None, progress: OnProgress | None = None
    ) -> NDArray[np.float32]: ...
    async def infer(
        self, x: Any, *, timeout: float | None = None, progress: OnProgress | None = None
    ) -> Any:
        """As ``IntegerClient.infer``: an array for an array, a dict for arrays by name."""
        return (await self.infer_with_stats(x, timeout=timeout, progress=progress)).y

    @overload
    async def infer_with_stats(
        self, x: Named, *, timeout: float | None = None, progress: OnProgress | None = None
    ) -> NamedInference: ...
    @overload
    async def infer_with_stats(
        self, x: ArrayLike, *, timeout: float | None = None, progress: OnProgress | None = None
    ) -> Inference[np.float32]: ...
    async def infer_with_stats(
        self, x: Any, *, timeout: float | None = None, progress: OnProgress | None = None
    ) -> Any:
        """As ``infer``, with what it cost."""
        deadline = self._deadline(timeout)
        async with deadline.bounding():
            graph = (await self._asked(deadline)).graph
            y, stats = await self._inferred(reference.asked(graph, x), deadline, progress)
            made = reference.answer(graph, x, y)
            return NamedInference(made, stats) if isinstance(made, dict) else Inference(made, stats)

    async def infer_int8(
        self, q: NDArray[Any], *, timeout: float | None = None, progress: OnProgress | None = None
    ) -> NDArray[np.int64]:
        """int8[batch, *input shape] -> the integers at the Output, int64[batch, *output shape]."""
        return (await self.infer_int8_with_stats(q, timeout=timeout, progress=progress)).y

    async def infer_int8_with_stats(
        self, q: NDArray[Any], *, timeout: float | None = None, progress: OnProgress | None = None
    ) -> Inference[np.int64]:
        """As ``infer_int8``, with what it cost."""
        deadline = self._deadline(timeout)
        async with deadline.bounding():
            return await self._inferred(q, deadline, progress)
