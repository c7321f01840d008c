"""The server's half: one linear layer on ciphertexts. Stateless between calls.

A response is ``Σ ciphertext·weights + u·(public key) + errors + flood``: a fresh encryption of
the accumulators. Without the last three terms its c1 would be ``a·weights`` with ``a`` known to
the client, who could divide. ``docs/spec/ckks.md`` states what each term hides.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import MalformedMessage
from secure_quant.he.codec import pack, packed_size, unpack, width_of
from secure_quant.he.parameters import Parameters
from secure_quant.he.plan import MAX_BATCH, Call, HePlan, Layout
from secure_quant.he.ring import Ring, ring
from secure_quant.he.sampling import Stream, fresh, uniform_polynomials
from secure_quant.ir import Graph

__all__ = ["Evaluator"]

U64 = NDArray[np.uint64]
Int = NDArray[np.int64]


@dataclass(frozen=True)
class _Weights:
    """factors[group chunk][output][input]: SEAL plaintexts, None where all weights are zero."""

    factors: list[list[list[Any]]]
    bias: U64
    size: int


@dataclass(frozen=True)
class _Blind:
    """The input-independent half of one response; used once.

    u: one plaintext per ciphertext. c1: errors uint64[down, primes, degree]. c0: errors and
    flood, per wanted coefficient with one prime, per coefficient with two.
    """

    u: list[Any]
    c0: U64
    c1: U64


class Evaluator:
    """Evaluates the steps of one model. Holds its weights, never a key.

    weight_memory: bytes of transformed weights to keep; the least recently used layouts go first.
    stock_limit: blinds kept ready per step and batch.
    """

    def __init__(
        self, graph: Graph, plan: HePlan, *, weight_memory: int = 4 * 2**30, stock_limit: int = 4
    ) -> None:
        self.graph, self.plan = graph.public(), plan
        self.model_hash = graph.hash
        self._parameters = graph.parameters
        self._graph = graph
        self._weight_memory, self._stock_limit = weight_memory, stock_limit
        self._weights: OrderedDict[tuple[int, Layout], _Weights] = OrderedDict()
        self._stock: dict[tuple[int, int], deque[_Blind]] = {}
        self._lock = Lock()

    def evaluate(self, step: int, batch: int, ciphertexts: bytes | memoryview) -> bytes:
        """Request of one step for ``batch`` samples -> response, both as the plan lays them out.

        Raises MalformedMessage for an unknown step or batch, a wrong length or a value out of
        range; nothing is allocated for a request whose length is wrong.
        """
        call = self._checked(step, batch)
        data = memoryview(ciphertexts).cast("B")
        if len(data) != sum(call.request_sizes):
            raise MalformedMessage(
                "ciphertexts", got=f"{len(data)} bytes", expected=f"{sum(call.request_sizes)}"
            )
        field = ring(call.ring)
        key, inputs = _parse(call, field, data)
        blind = self._take(step, batch) or _blind(call, field)
        weights = self._prepared(step, batch, field)
        if len(call.ring.primes) == 1:
            c0, c1 = _answer(call, field, weights, key, inputs, blind)
        else:
            c0, c1 = _answer_rescaled(call, field, weights, key, inputs, blind)
        prime, scaling = call.ring.prime, call.scaling
        biased = c0 + weights.bias[:, :, None, None]
        biased = np.minimum(biased, biased - np.uint64(prime))
        return pack(c1, prime, scaling.drop_c1) + pack(biased, prime, scaling.drop_c0)

    def prepare(self, step: int, batch: int) -> bool:
        """Make weights ready and one blind ahead of demand. False if the stock is full.

        Raises MalformedMessage for an unknown step or batch.
        """
        call = self._checked(step, batch)
        field = ring(call.ring)
        self._prepared(step, batch, field)
        stock = self._stock.setdefault((step, batch), deque())
        if len(stock) >= self._stock_limit:
            return False
        stock.append(_blind(call, field))
        return True

    def _checked(self, step: int, batch: int) -> Call:
        if not 0 <= step < len(self.plan.steps):
            raise MalformedMessage("step", got=step, expected=f"0 to {len(self.plan.steps) - 1}")
        if not 1 <= batch <= MAX_BATCH:
            raise MalformedMessage("batch", got=batch, expected=f"1 to {MAX_BATCH}")
        return self.plan.steps[step].call(batch)

    def _take(self, step: int, batch: int) -> _Blind | None:
        try:
            return self._stock[step, batch].popleft()
        except (KeyError, IndexError):
            return None

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
        factors: list[list[list[Any]]] = []
        size = 0
        for group in range(packing.grid[1]):
            table: list[list[Any]] = [[None] * packing.n_in for _ in range(packing.n_out)]
            for i, row in enumerate(packing.weight(arranged, group)):
                present = np.flatnonzero(row.any(-1))
                values = field.residues(row[present])
                field.forward(values)
                for o, value in zip(present.tolist(), values, strict=True):
                    table[o][i] = field.plaintext(value)
                size += values.nbytes
            factors.append(table)
        bias = self._graph.bias(node)  # type: ignore[arg-type]
        scaled = [int(b) * (1 << call.scaling.scale) % call.ring.prime for b in bias]
        shape = (geometry.groups, geometry.cout)
        return _Weights(factors, np.array(scaled, np.uint64).reshape(shape), size)


def _parse(call: Call, field: Ring, data: memoryview) -> tuple[Any, list[Any]]:
    """(public key, input ciphertexts) as SEAL ciphertexts. Raises MalformedMessage."""
    primes, degree, count = field.primes, field.degree, call.ciphertexts_up
    seed_size, key_size, _ = call.request_sizes
    scaling = call.scaling
    c0 = np.zeros((1 + count, len(primes), degree), np.uint64)
    # With two primes the key is a multiple of the second: its residues there are the zeros.
    key_part = data[seed_size : seed_size + key_size]
    drop_key = scaling.drop_key if len(primes) == 1 else 0
    c0[0, 0] = unpack(key_part, (degree,), primes[0], drop_key)
    start = seed_size + key_size
    for i, prime in enumerate(primes):
        stop = start + packed_size(count * degree, width_of(prime, scaling.drop_up))
        c0[1:, i] = unpack(data[start:stop], (count, degree), prime, scaling.drop_up)
        start = stop
    field.forward(c0)
    c1 = uniform_polynomials(bytes(data[:seed_size]), 1 + count, primes, degree)
    made = [field.ciphertext(*pair) for pair in zip(c0, c1, strict=True)]
    return made[0], made[1:]


def _products(
    call: Call, field: Ring, weights: _Weights, key: Any, inputs: list[Any], blind: _Blind
) -> U64:
    """uint64[down, 2, primes, degree]: transformed, before errors are added."""
    packing = call.packing
    made = np.empty((call.ciphertexts_down, 2, len(field.primes), field.degree), np.uint64)
    for cell in range(packing.cells):
        mine = inputs[cell * packing.n_in : (cell + 1) * packing.n_in]
        for o, row in enumerate(weights.factors[packing.group_of(cell)]):
            place = cell * packing.n_out + o
            pairs = [(x, w) for x, w in zip(mine, row, strict=True) if w is not None]
            total = field.sum_of_products([*pairs, (key, blind.u[place])])
            made[place] = field.polynomials(total)
    return made


def _answer(
    call: Call, field: Ring, weights: _Weights, key: Any, inputs: list[Any], blind: _Blind
) -> tuple[U64, U64]:
    """(wanted c0 in the order of the result, c1 [down, degree])."""
    products = _products(call, field, weights, key, inputs, blind)
    field.inverse(products.reshape(-1, 1, field.degree))
    c1 = field.add(products[:, 1], blind.c1)[:, 0]
    packing = call.packing
    c0 = packing.output(packing.wanted(products[:, 0, 0]))
    return field.add(c0, blind.c0.reshape(c0.shape)), c1


def _answer_rescaled(
    call: Call, field: Ring, weights: _Weights, key: Any, inputs: list[Any], blind: _Blind
) -> tuple[U64, U64]:
    """The same with two primes: errors and flood go in before the second is divided away."""
    products = _products(call, field, weights, key, inputs, blind)
    made = np.empty((call.ciphertexts_down, 2, field.degree), np.uint64)
    errors = np.stack([blind.c0, blind.c1], 1)
    field.forward(errors.reshape(-1, *errors.shape[2:]))
    for i, pair in enumerate(field.add(products, errors)):
        ciphertext = field.ciphertext(*pair)
        field.rescale(ciphertext)
        field.evaluator.transform_from_ntt_inplace(ciphertext)
        made[i] = field.polynomials(ciphertext)[:, 0]
    packing = call.packing
    return packing.output(packing.wanted(made[:, 0])), made[:, 1]


def _blind(call: Call, field: Ring) -> _Blind:
    """Fresh u, errors and flood for one response."""
    stream = fresh()
    count, degree = call.ciphertexts_down, field.degree
    u = field.residues(stream.ternary((count, degree)))
    field.forward(u)
    c1 = field.residues(stream.errors((count, degree)))
    flood = call.scaling.flood
    if len(field.primes) == 1:
        noise = stream.errors((call.packing.outputs,)) + stream.flood(
            (call.packing.outputs,), flood
        )
        c0 = field.residues(noise[None])[0]
    else:
        errors = field.residues(stream.errors((count, degree)))
        c0 = field.add(errors, _wide_flood(stream, (count, degree), flood, call.ring))
    return _Blind([field.plaintext(values) for values in u], c0, c1)


def _wide_flood(stream: Stream, shape: tuple[int, int], bound: int, parameters: Parameters) -> U64:
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
