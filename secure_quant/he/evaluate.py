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
from math import prod
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import MalformedMessage
from secure_quant.he.parameters import Parameters
from secure_quant.he.plan import MAX_BATCH, HePlan, Layout
from secure_quant.he.products import Factors
from secure_quant.he.ring import Ring, ring
from secure_quant.he.sampling import Sampler, Uniform, fresh
from secure_quant.he.wire import Call
from secure_quant.ir import Graph

__all__ = ["STOCK_MEMORY", "Evaluator"]

U64 = NDArray[np.uint64]

STOCK_MEMORY = 256 * 2**20
_BLOCK = 64


@dataclass(frozen=True)
class _Row:
    """Weights of one answer: which inputs have any that is not zero, int64[n], and their
    transforms uint64[n, primes, degree]."""

    inputs: NDArray[np.int64]
    values: U64


@dataclass(frozen=True)
class _Weights:
    """rows[group chunk][output]."""

    rows: list[list[_Row]]
    bias: U64
    size: int


@dataclass(frozen=True)
class _Blind:
    """The input-independent half of some responses; used once.

    u: transformed, uint64[responses, primes, degree]. c1: errors of the same shape. c0: errors and
    flood, per wanted coefficient [responses, ...] with one prime, and of that shape with two.
    """

    u: U64
    c0: U64
    c1: U64

    @property
    def size(self) -> int:
        """Bytes."""
        return self.u.nbytes + self.c0.nbytes + self.c1.nbytes


class Evaluator:
    """Evaluates the steps of one model. Holds its weights, never a key.

    weight_memory: bytes of transformed weights to keep; the least recently used layouts go first.
    stock_limit: blinds kept ready per step and batch. stock_memory: bytes of all of them; those
    of the least recently used step and batch go first.
    skip_zeros: leave out weight polynomials that are all zero, of which time then tells.
    """

    def __init__(
        self,
        graph: Graph,
        plan: HePlan,
        *,
        weight_memory: int = 4 * 2**30,
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
        self._weights: OrderedDict[tuple[int, Layout], _Weights] = OrderedDict()
        self._stock: OrderedDict[tuple[int, int], deque[list[_Blind]]] = OrderedDict()
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
        request = _Request(call, field, memoryview(ciphertexts).cast("B"))
        weights = self._prepared(step, batch, field)
        blinds = self._take(step, batch)
        answer = _answer if len(call.ring.primes) == 1 else _answer_rescaled
        packing, prime = call.packing, call.ring.prime
        c1: list[bytes] = []
        wanted: list[U64] = []
        for cells in _blocks(call):
            blind = next(blinds, None) or _blind(call, field, len(cells) * packing.n_out)
            if hidden is not None:
                first = cells.start * packing.n_out
                blind = _shifted(call, field, blind, hidden[first : first + len(blind.u)])
            products = _products(call, field, weights, request, cells, blind)
            masks, results = answer(call, field, products, blind)
            c1.append(call.response_c1(masks))
            wanted.append(results)
        c0 = packing.output(np.concatenate(wanted))
        if hidden is None:
            c0 = c0 + weights.bias[:, :, None, None]
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
        if len(stock) >= self._stock_limit or _blind_size(call) > self._stock_memory:
            return False
        stock.append([_blind(call, field, len(c) * call.packing.n_out) for c in _blocks(call)])
        self._stocked += _blind_size(call)
        while self._stocked > self._stock_memory:
            oldest = next(iter(self._stock))
            if not self._stock[oldest]:
                del self._stock[oldest]
                continue
            self._stock[oldest].popleft()
            self._stocked -= _blind_size(self._checked(*oldest))
        return True

    def _checked(self, step: int, batch: int) -> Call:
        if not 0 <= step < len(self.plan.steps):
            raise MalformedMessage("step", got=step, expected=f"0 to {len(self.plan.steps) - 1}")
        if not 1 <= batch <= MAX_BATCH:
            raise MalformedMessage("batch", got=batch, expected=f"1 to {MAX_BATCH}")
        return self.plan.steps[step].call(batch)

    def _take(self, step: int, batch: int) -> Iterator[_Blind]:
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

    def _prepared(self, step: int, batch: int, field: Ring) -> _Weights:
        planned = self.plan.steps[step]
        key = (step, planned.layout(batch))
        with self._lock:
            if key in self._weights:
                self._weights.move_to_end(key)
                return self._weights[key]
        made = self._transform(step, planned.call(batch), field)
        with self._lock:
            self._weights[key] = made
            total = sum(weights.size for weights in self._weights.values())
            while total > self._weight_memory and len(self._weights) > 1:
                total -= self._weights.popitem(last=False)[1].size
        return made

    def _transform(self, step: int, call: Call, field: Ring) -> _Weights:
        node = self._graph.by_name[self.plan.steps[step].node]
        packing, geometry = call.packing, call.packing.geometry
        arranged = geometry.arrange_weight(self._parameters[f"{node.name}.weight"])
        rows: list[list[_Row]] = []
        for group in range(packing.grid[1]):
            table: list[list[tuple[int, U64]]] = [[] for _ in range(packing.n_out)]
            for i, row in enumerate(packing.weight(arranged, group)):
                present = np.flatnonzero(row.any(-1) | (not self._skip_zeros))
                values = field.residues(row[present])
                field.forward(values)
                for o, value in zip(present.tolist(), values, strict=True):
                    table[o].append((i, value))
            rows.append([_row(entries, field) for entries in table])
        size = sum(row.values.nbytes for group_rows in rows for row in group_rows)
        bias = self._graph.bias(node)  # type: ignore[arg-type]
        scaled = [int(b) * call.scaling.unit % call.ring.prime for b in bias]
        shape = (geometry.groups, geometry.cout)
        return _Weights(rows, np.array(scaled, np.uint64).reshape(shape), size)


def _row(entries: list[tuple[int, U64]], field: Ring) -> _Row:
    inputs = np.array([i for i, _ in entries], np.int64)
    values = np.empty((len(entries), len(field.primes), field.degree), np.uint64)
    for made, (_, value) in zip(values, entries, strict=True):
        made[...] = value
    return _Row(inputs, values)


class _Request:
    """A request's ciphertexts, transformed as they are read. Raises MalformedMessage as it is made
    and as it is read."""

    def __init__(self, call: Call, field: Ring, data: memoryview) -> None:
        self._field, self._packing = field, call.packing
        self._reader = call.read_request(data)
        self._uniform = Uniform(self._reader.seed, field.primes, field.degree)
        self._key = np.zeros((1, len(field.primes), field.degree), np.uint64)
        # With two primes the key is a multiple of the second: its residues there are the zeros.
        self._key[0, 0] = self._reader.key()
        self.key: Factors | None = None

    def take(self, count: int) -> tuple[Factors, Factors]:
        """The public key, and the next ``count`` ciphertexts, transformed: [n, 2, ...]."""
        c0 = self._packing.unite(*self._reader.take(count))
        if self.key is not None:
            return self.key, self._transformed(c0)
        both = self._transformed(np.concatenate([self._key, c0]))
        self.key = both[:1]
        return self.key, both[1:]

    def _transformed(self, c0: U64) -> Factors:
        """With c1 expanded from the seed."""
        self._field.forward(c0)
        both = np.stack([c0, self._uniform.polynomials(len(c0))], axis=1)
        return self._field.products.factors(both)


def _blocks(call: Call) -> Iterator[range]:
    """Cells in blocks of about ``_BLOCK`` responses, so that memory stays near the message's."""
    step = max(1, _BLOCK // call.packing.n_out)
    for start in range(0, call.packing.cells, step):
        yield range(start, min(start + step, call.packing.cells))


def _products(
    call: Call, field: Ring, weights: _Weights, request: _Request, cells: range, blind: _Blind
) -> U64:
    """uint64[responses, 2, primes, degree]: transformed, before errors are added."""
    n_in = call.packing.n_in
    key, inputs = request.take(len(cells) * n_in)
    made = np.empty((len(blind.u), 2, len(field.primes), field.degree), np.uint64)
    place = 0
    for i, cell in enumerate(cells):
        mine = inputs[i * n_in : (i + 1) * n_in]
        for row in weights.rows[call.packing.group_of(cell)]:
            used = mine if len(row.inputs) == n_in else mine[row.inputs]
            terms = [(used, row.values), (key, blind.u[place : place + 1])]
            made[place] = field.products.dot(terms)
            place += 1
    return made


def _answer(call: Call, field: Ring, products: U64, blind: _Blind) -> tuple[U64, U64]:
    """(c1 [responses, degree], wanted coefficients of c0 [responses, ...])."""
    field.inverse(products.reshape(-1, 1, field.degree))
    c1 = field.add(products[:, 1], blind.c1)[:, 0]
    return c1, field.add(call.packing.wanted(products[:, 0, 0]), blind.c0)


def _answer_rescaled(call: Call, field: Ring, products: U64, blind: _Blind) -> tuple[U64, U64]:
    """The same with two primes: errors and flood go in before the second is divided away."""
    errors = np.stack([blind.c0, blind.c1], 1)
    field.forward(errors.reshape(-1, *errors.shape[2:]))
    made = np.empty((len(products), 2, field.degree), np.uint64)
    for i, pair in enumerate(field.add(products, errors)):
        ciphertext = field.ciphertext(*pair)
        field.rescale(ciphertext)
        made[i] = field.polynomials(ciphertext)[:, 0]
    return made[:, 1], call.packing.wanted(made[:, 0])


def _blind(call: Call, field: Ring, count: int) -> _Blind:
    """Fresh u, errors and flood for ``count`` responses."""
    stream, degree, flood = fresh(), field.degree, call.scaling.flood
    u = field.residues(stream.ternary((count, degree)))
    field.forward(u)
    c1 = field.residues(stream.errors((count, degree)))
    if len(field.primes) == 1:
        shape = (count, *call.packing.wanted_shape)
        c0 = field.residues(stream.errors(shape) + stream.flood(shape, flood))[..., 0, :]
    else:
        errors = field.residues(stream.errors((count, degree)))
        c0 = field.add(errors, _wide_flood(stream, (count, degree), flood, call.ring))
    return _Blind(u, c0, c1)


def _shifted(call: Call, field: Ring, blind: _Blind, hidden: U64) -> _Blind:
    """With ``hidden`` subtracted from the wanted coefficients of c0."""
    moduli = field.moduli.reshape(-1, 1, 1, 1, 1)
    change = np.where(hidden == 0, hidden, moduli - hidden)
    if len(field.primes) == 1:
        return _Blind(blind.u, field.add(blind.c0, change[:, 0]), blind.c1)
    whole = np.zeros_like(blind.c0)
    for i in range(len(field.primes)):
        call.packing.wanted(whole[:, i])[...] = change[:, i]
    return _Blind(blind.u, field.add(blind.c0, whole), blind.c1)


def _blind_size(call: Call) -> int:
    """Bytes of all blinds of one call."""
    whole = call.ring.degree * len(call.ring.primes)
    c0 = prod(call.packing.wanted_shape) if len(call.ring.primes) == 1 else whole
    return 8 * call.ciphertexts_down * (2 * whole + c0)


def _wide_flood(stream: Sampler, shape: tuple[int, int], bound: int, parameters: Parameters) -> U64:
    """Residues [count, 2, degree] of A + p·B with A uniform below the dropped prime p and B in
    [-bound, bound): uniform over an interval of 2·p·bound integers."""
    q, p = parameters.primes
    low = stream.residues(shape[0] * shape[1], p).reshape(shape)
    high = stream.flood(shape, bound)
    # p·(high mod q) modulo q by base 256, since the product would leave 64 bits.
    digits = (high % q).astype(np.uint64)
    factor, modulus = np.uint64(p % q), np.uint64(q)
    total = np.zeros(shape, np.uint64)
    for shift in range(8 * (-(-q.bit_length() // 8) - 1), -1, -8):
        digit = (digits >> np.uint64(shift)) & np.uint64(255)
        total = ((total << np.uint64(8)) + digit * factor) % modulus
    return np.stack([(total + low % modulus) % modulus, low], 1)
