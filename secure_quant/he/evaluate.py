"""The server's half: one linear layer on ciphertexts. Stateless between calls.

A response is ``Σ ciphertext·weights + u·(public key) + errors + flood``: a fresh encryption of
the accumulators. Without the last three terms its c1 would be ``a·weights`` with ``a`` known to
the client, who could divide. ``docs/spec/ckks.md`` states what each term hides.
"""

from __future__ import annotations

import os
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import MalformedMessage
from secure_quant.he.blinds import Blind, blind_size
from secure_quant.he.effort import prefers_taps, transforms_bytes
from secure_quant.he.packing import Packing
from secure_quant.he.plan import MAX_BATCH, HePlan, Layout
from secure_quant.he.request import Request
from secure_quant.he.ring import Ring, ring
from secure_quant.he.weights import Taps, Transformed, Weights
from secure_quant.he.wire import Call
from secure_quant.ir import Graph

__all__ = ["STOCK_MEMORY", "Evaluator"]

U64 = NDArray[np.uint64]

STOCK_MEMORY = 256 * 2**20
_BLOCK = 64


@dataclass(frozen=True, repr=False)
class _Prepared:
    """A layer for one layout. bias: uint64[groups, cout], scaled."""

    weights: Weights
    bias: U64


class Evaluator:
    """Evaluates the steps of one model. Holds its weights, never a key.

    weight_memory: bytes of transformed weights to keep. Where they are more, other layers keep
    theirs as bytes, or transform them for each request; what was not asked for in two walks
    through the model makes room.
    stock_limit: blinds kept ready per step and batch. stock_memory: bytes of all of them; those
    of the least recently used step and batch go first.
    skip_zeros: leave out weight polynomials that are all zero, of which time then tells.
    """

    def __init__(
        self,
        graph: Graph,
        plan: HePlan,
        *,
        weight_memory: int = 2**30,
        stock_limit: int = 4,
        stock_memory: int = STOCK_MEMORY,
        skip_zeros: bool = True,
    ) -> None:
        self.graph, self.plan = graph.public(), plan
        self.model_hash = graph.hash
        self._parameters = graph.parameters
        self._graph = graph
        self._weight_memory, self._stock_limit = weight_memory, stock_limit
        self._stock_memory, self._stocked = stock_memory, 0
        self._skip_zeros = skip_zeros
        self._weights: OrderedDict[tuple[int, Layout], _Prepared] = OrderedDict()
        self._asked, self._used = 0, dict[tuple[int, Layout], int]()  # requests; the last of each
        self._stock: OrderedDict[tuple[int, int], deque[list[Blind]]] = OrderedDict()
        self._process = os.getpid()
        self._lock = Lock()

    def evaluate(
        self, step: int, batch: int, ciphertexts: bytes | memoryview, hidden: U64 | None = None
    ) -> bytes:
        """Request of one step for ``batch`` samples -> response, both as the plan lays them out.

        hidden: residues uint64[answers, primes, *wanted shape] that are subtracted before errors
        and flood go in, in place of the bias, which is then not added.

        Raises MalformedMessage for an unknown step or batch, a wrong length or a value out of
        range; nothing is allocated for a request whose length is wrong.
        """
        call = self._checked(step, batch)
        field = ring(call.ring)
        request = Request(call, field, memoryview(ciphertexts).cast("B"))
        layer = self._prepared(step, batch, field)
        blinds = self._take(step, batch)
        packing, prime = call.packing, call.ring.prime
        c1: list[bytes] = []
        wanted: list[U64] = []
        for cells in _blocks(call):
            blind = next(blinds, None) or Blind.fresh(call, field, len(cells) * packing.n_out)
            if hidden is not None:
                first = cells.start * packing.n_out
                blind = blind.shifted(call, field, hidden[first : first + len(blind.u)])
            masks, results = layer.weights.answer(call, field, request, cells, blind)
            c1.append(call.response_c1(masks))
            wanted.append(results)
        c0 = packing.output(np.concatenate(wanted))
        if hidden is None:
            c0 = c0 + layer.bias[:, :, None, None]
            c0 = np.minimum(c0, c0 - np.uint64(prime))  # a difference below zero wraps to huge
        return b"".join([*c1, call.response_c0(c0)])

    def prepare(self, step: int, batch: int) -> bool:
        """Make weights ready and one blind ahead of demand. False if there is enough of that kind,
        or no room for it.

        Raises MalformedMessage for an unknown step or batch.
        """
        call = self._checked(step, batch)
        field = ring(call.ring)
        self._prepared(step, batch, field)
        stock = self._stock.setdefault((step, batch), deque())
        self._stock.move_to_end((step, batch))
        if len(stock) >= self._stock_limit or blind_size(call) > self._stock_memory:
            return False
        stock.append([Blind.fresh(call, field, len(c) * call.packing.n_out) for c in _blocks(call)])
        self._stocked += blind_size(call)
        while self._stocked > self._stock_memory:
            oldest = next(iter(self._stock))
            if not self._stock[oldest]:
                del self._stock[oldest]
                continue
            self._stock[oldest].popleft()
            self._stocked -= blind_size(self._checked(*oldest))
        return True

    def _checked(self, step: int, batch: int) -> Call:
        if not 0 <= step < len(self.plan.steps):
            raise MalformedMessage("step", got=step, expected=f"0 to {len(self.plan.steps) - 1}")
        if not 1 <= batch <= MAX_BATCH:
            raise MalformedMessage("batch", got=batch, expected=f"1 to {MAX_BATCH}")
        return self.plan.steps[step].call(batch)

    def _take(self, step: int, batch: int) -> Iterator[Blind]:
        if self._process != os.getpid():  # a forked copy would use the same blinds again
            self._process = os.getpid()
            self._stock.clear()
            self._stocked = 0
        try:
            found = self._stock[step, batch].popleft()
        except (KeyError, IndexError):
            return iter(())
        self._stocked -= sum(blind.size for blind in found)
        return iter(found)

    def _prepared(self, step: int, batch: int, field: Ring) -> _Prepared:
        planned = self.plan.steps[step]
        key = (step, planned.layout(batch))
        with self._lock:
            self._asked += 1
            if key in self._weights:
                self._weights.move_to_end(key)
                self._used[key] = self._asked
                return self._weights[key]
        made = self._arranged(step, planned.call(batch), field)
        with self._lock:
            if self._make_room(made.weights.size):
                self._weights[key], self._used[key] = made, self._asked
        return made

    def _make_room(self, size: int) -> bool:
        """Whether ``size`` bytes fit beside what is in use. Layers that are walked through in turn
        would each be thrown out before they come again, if the oldest made room."""
        stale = self._asked - 2 * len(self.plan.steps)
        while self._weights and self._held + size > self._weight_memory:
            oldest = next(iter(self._weights))
            if self._used[oldest] >= stale:
                return False
            del self._weights[oldest], self._used[oldest]
        return True

    @property
    def _held(self) -> int:
        return sum(each.weights.size for each in self._weights.values())

    def _has_room(self, packing: Packing, field: Ring) -> bool:
        """For transforms; always where there is no other form."""
        size = transforms_bytes(packing, field.primes)
        return len(field.primes) > 1 or self._held + size <= self._weight_memory

    def _arranged(self, step: int, call: Call, field: Ring) -> _Prepared:
        node = self._graph.by_name[self.plan.steps[step].node]
        packing, geometry = call.packing, call.packing.geometry
        arranged = geometry.arrange_weight(self._parameters[f"{node.name}.weight"])
        weights: Weights
        if prefers_taps(packing, field.primes) or not self._has_room(packing, field):
            weights = Taps.of(packing, arranged)
        else:
            weights = Transformed.of(packing, field, arranged, skip_zeros=self._skip_zeros)
        bias = self._graph.bias(node)  # type: ignore[arg-type]
        scaled = [int(b) * call.scaling.unit % call.ring.prime for b in bias]
        shape = (geometry.groups, geometry.cout)
        return _Prepared(weights, np.array(scaled, np.uint64).reshape(shape))


def _blocks(call: Call) -> Iterator[range]:
    """Cells in blocks of about ``_BLOCK`` responses, so that memory stays near the message's."""
    step = max(1, _BLOCK // call.packing.n_out)
    for start in range(0, call.packing.cells, step):
        yield range(start, min(start + step, call.packing.cells))
