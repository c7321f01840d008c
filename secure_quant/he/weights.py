"""A layer's weights as the server multiplies ciphertexts with them: in one of two forms.

``Transformed``: the values of each weight polynomial at the roots of X^n + 1, so that a product is
one multiplication a coefficient, and a weight of a byte becomes 8·degree/taps bytes.

``Taps``: the bytes themselves. A weight polynomial has ``taps`` coefficients that are not always
zero, at the same places in all polynomials of a layer. So each coefficient of Σ a_i·w_i is a sum
over inputs i and places p of a weight times a coefficient of a_i, shifted by p and negated where
it wraps around: one matrix product. Residues are cut into limbs that keep the sums below 2**53, so
float64 is exact in any order of addition, and BLAS adds some thirty of them a nanosecond. Of c0
only the coefficients that are wanted are computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from secure_quant.he.blinds import Blind
from secure_quant.he.effort import limbs_of
from secure_quant.he.packing import Packing
from secure_quant.he.products import Factors
from secure_quant.he.request import Request
from secure_quant.he.ring import Ring
from secure_quant.he.wire import Call

__all__ = ["Taps", "Transformed", "Weights"]

U64 = NDArray[np.uint64]
I8 = NDArray[np.int8]
Float = NDArray[np.float64]


class Weights(Protocol):
    """Either form. size: bytes held."""

    @property
    def size(self) -> int: ...

    def answer(self, call: Call, field: Ring, request: Request, cells: range, blind: Blind) -> Pair:
        """Reads the ciphertexts of ``cells`` -> c1 uint64[responses, degree] and the wanted
        coefficients of c0 [responses, ...], blinded."""


Pair = tuple[U64, U64]


@dataclass(frozen=True, repr=False)
class Row:
    """Weights of one answer: which inputs have any that is not zero, int64[n], and their
    transforms uint64[n, primes, degree]."""

    inputs: NDArray[np.int64]
    values: U64


@dataclass(frozen=True)
class Transformed:
    """rows[group chunk][output]."""

    rows: list[list[Row]]

    @classmethod
    def of(cls, packing: Packing, field: Ring, arranged: I8, *, skip_zeros: bool) -> Transformed:
        """arranged: as ``Geometry.arrange_weight`` makes it."""
        rows: list[list[Row]] = []
        for group in range(packing.grid[1]):
            table: list[list[tuple[int, U64]]] = [[] for _ in range(packing.n_out)]
            for i, row in enumerate(packing.weight(arranged, group)):
                present = np.flatnonzero(row.any(-1) | (not skip_zeros))
                values = field.residues(row[present])
                field.forward(values)
                for o, value in zip(present.tolist(), values, strict=True):
                    table[o].append((i, value))
            rows.append([_row(entries, field) for entries in table])
        return cls(rows)

    @property
    def size(self) -> int:
        return sum(row.values.nbytes for rows in self.rows for row in rows)

    def answer(self, call: Call, field: Ring, request: Request, cells: range, blind: Blind) -> Pair:
        products = self.products(call, field, request, cells, blind)
        finish = _finished if len(field.primes) == 1 else _rescaled
        return finish(call, field, products, blind)

    def products(
        self, call: Call, field: Ring, request: Request, cells: range, blind: Blind
    ) -> U64:
        """uint64[responses, 2, primes, degree]: transformed, before errors are added."""
        n_in = call.packing.n_in
        inputs = request.transformed(len(cells) * n_in)
        made = np.empty((len(blind.u), 2, len(field.primes), field.degree), np.uint64)
        place = 0
        for i, cell in enumerate(cells):
            mine = inputs[i * n_in : (i + 1) * n_in]
            for row in self.rows[call.packing.group_of(cell)]:
                used = mine if len(row.inputs) == n_in else mine[row.inputs]
                terms = [(used, row.values), (request.key, blind.u[place : place + 1])]
                made[place] = field.products.dot(terms)
                place += 1
        return made


@dataclass(frozen=True, repr=False)
class Taps:
    """groups: of each chunk, int8[taps, n_out, n_in]. For rings of one prime."""

    groups: Sequence[I8]

    @classmethod
    def of(cls, packing: Packing, arranged: I8) -> Taps:
        """arranged: as ``Geometry.arrange_weight`` makes it."""
        groups = (packing.taps(arranged, group) for group in range(packing.grid[1]))
        return cls([np.ascontiguousarray(each.transpose(2, 0, 1)) for each in groups])

    @property
    def size(self) -> int:
        return sum(group.nbytes for group in self.groups)

    def answer(self, call: Call, field: Ring, request: Request, cells: range, blind: Blind) -> Pair:
        packing = call.packing
        n_in, n_out = packing.n_in, packing.n_out
        keyed = _keyed(field, request.key, blind.u)
        c0, c1 = request.coefficients(len(cells) * n_in)
        made = _finished(call, field, keyed, blind)
        for i, cell in enumerate(cells):
            mine, outs = slice(i * n_in, (i + 1) * n_in), slice(i * n_out, (i + 1) * n_out)
            sums = _sums(self.groups[packing.group_of(cell)], packing, field, c0[mine], c1[mine])
            for whole, found in zip(made, sums, strict=True):
                part = whole[outs]
                part[...] = field.add(part.reshape(n_out, -1), found).reshape(part.shape)
        return made


def _row(entries: list[tuple[int, U64]], field: Ring) -> Row:
    inputs = np.array([i for i, _ in entries], np.int64)
    values = np.empty((len(entries), len(field.primes), field.degree), np.uint64)
    for made, (_, value) in zip(values, entries, strict=True):
        made[...] = value
    return Row(inputs, values)


def _finished(call: Call, field: Ring, products: U64, blind: Blind) -> Pair:
    """What was summed transformed, with errors and flood; one prime."""
    field.inverse(products.reshape(-1, 1, field.degree))
    c1 = field.add(products[:, 1], blind.c1)[:, 0]
    return c1, field.add(call.packing.wanted(products[:, 0, 0]), blind.c0)


def _rescaled(call: Call, field: Ring, products: U64, blind: Blind) -> Pair:
    """The same with several primes: errors and flood go in before all but the first are divided
    away."""
    errors = np.stack([blind.c0, blind.c1], 1)
    field.forward(errors.reshape(-1, *errors.shape[2:]))
    made = np.empty((len(products), 2, field.degree), np.uint64)
    for i, pair in enumerate(field.add(products, errors)):
        ciphertext = field.ciphertext(*pair)
        field.rescale(ciphertext)
        made[i] = field.polynomials(ciphertext)[:, 0]
    return made[:, 1], call.packing.wanted(made[:, 0])


def _keyed(field: Ring, key: Factors, u: U64) -> U64:
    """u times the public key, uint64[responses, 2, primes, degree]."""
    made = np.empty((len(u), *key.values.shape[1:]), np.uint64)
    for i in range(len(u)):
        made[i] = field.products.dot([(key, u[i : i + 1])])
    return made


def _sums(taps: I8, packing: Packing, field: Ring, c0: U64, c1: U64) -> Pair:
    """Σ over inputs of c0 and c1, uint64[n_in, degree], times weights int8[taps, n_out, n_in]: of
    c1 all coefficients uint64[n_out, degree], of c0 the wanted ones [n_out, wanted]."""
    count, n_out, n_in = taps.shape
    (limbs, bits), degree = limbs_of(field.primes[0], n_in * count), field.degree
    sums = np.zeros((limbs, n_out, 1, degree + prod(packing.wanted_shape)))
    product = np.empty((n_out, degree))
    pairs = zip(_limbs(c0, bits, limbs), _limbs(c1, bits, limbs), strict=True)
    for made, (low0, low1) in zip(sums[:, :, 0], pairs, strict=True):
        for weights, place in zip(taps, packing.places.tolist(), strict=True):
            factors = weights.astype(np.float64)
            window = slice(degree - place, 2 * degree - place)  # times X to the power of place
            made[:, :degree] += np.matmul(factors, low1[:, window], out=product)
            made[:, degree:] += factors @ packing.wanted(low0[:, window]).reshape(n_in, -1)
    return _joined(field, sums.astype(np.int64), bits, degree)


def _joined(field: Ring, sums: NDArray[np.int64], bits: int, degree: int) -> Pair:
    """Σ of sums[i]·2**(bits·i) as residues, cut into c1 and what is wanted of c0."""
    made = sums[-1]
    for each in sums[-2::-1]:
        made = field.products.shifted(made, bits, each).view(np.int64)
    residues = made.view(np.uint64)[:, 0]
    return residues[:, :degree], residues[:, degree:]


def _limbs(values: U64, bits: int, count: int) -> Iterator[Float]:
    """Digits of ``bits`` bits, the lowest first, each twice in a row: negated and as it is, so that
    a window of the two is a shift."""
    mask = np.uint64((1 << bits) - 1)
    for limb in range(count):
        digit = ((values >> np.uint64(bits * limb)) & mask).astype(np.float64)
        yield np.concatenate([-digit, digit], axis=-1)
