"""The client's half of homomorphic inference: it makes the key, encrypts and decrypts.

One session is one inference under a key of its own. All that leaves it is what ``encrypt``
returns: fresh encryptions, whose only secret-dependent content is their message. Decryption
errors are rounded away here and never shown, so nothing that depends on the key goes back to the
server (Li and Micciancio, 2021).
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import DtypeMismatch, ShapeMismatch, ValueOutOfRange
from secure_quant.he.parameters import Parameters
from secure_quant.he.plan import HePlan
from secure_quant.he.products import multiplied
from secure_quant.he.ring import ring
from secure_quant.he.sampling import Uniform, fresh
from secure_quant.he.wire import Call
from secure_quant.ir import Graph
from secure_quant.keystream import SEED_BYTES
from secure_quant_client.forks import forgotten_by_children, require_own
from secure_quant_client.he.ckks_key import SecretKey

__all__ = ["CkksKeys"]

U64 = NDArray[np.uint64]
Int = NDArray[np.int64]


@dataclass(frozen=True, repr=False)
class _Pad:
    """Encryptions of zero that wait for a message; used once.

    head: seed, public key, and all of c0 that carries no input, ready to be sent.
    c0: what will carry it, uint64[ciphertexts, primes, carried].
    """

    head: bytes
    c0: U64


class CkksKeys:
    """Encrypts and decrypts one inference. Not for use by several threads at once.

    graph and plan are public; the plan must belong to the graph.
    """

    def __init__(self, graph: Graph, plan: HePlan) -> None:
        self.graph, self.plan = graph, plan
        self._process = os.getpid()
        self._keys: dict[Parameters, SecretKey] = {}
        self._pads: dict[tuple[int, int], _Pad] = {}
        forgotten_by_children(self)

    def forget(self) -> None:
        """In a forked process: the keys are the parent's."""
        self._keys, self._pads = {}, {}

    def prepare(self, batch: int) -> None:
        """Do ahead of time all that does not depend on the input. Raises ValueOutOfRange."""
        for step, planned in enumerate(self.plan.steps):
            if (step, batch) not in self._pads:
                self._pads[step, batch] = self._pad(planned.call(batch))

    def encrypt(self, step: int, x: Int) -> bytes:
        """x̂ int64[batch, *input shape of the step's node], centred -> the request.

        Raises ShapeMismatch, DtypeMismatch, ValueOutOfRange, ConfigError in a forked process.
        """
        batch = self._check(step, x)
        call = self.plan.steps[step].call(batch)
        require_own("keys of an inference", self._process)
        pad = self._pads.pop((step, batch), None) or self._pad(call)
        geometry, field = call.packing.geometry, ring(call.ring)
        message = call.packing.input(geometry.arrange(x))
        table = _scaled(call.ring, call.scaling.unit, geometry.magnitude)
        c0 = field.add(pad.c0, table[:, message + geometry.magnitude].swapaxes(0, 1))
        return pad.head + call.request_tail(c0)

    def decrypt(self, step: int, batch: int, response: bytes) -> Int:
        """Response -> exact accumulators with bias, int64[batch, *output shape].

        Raises MalformedMessage for a wrong length or a value out of range (both of which the
        sender knows); an answer of the right form always decrypts to something.
        """
        call = self.plan.steps[step].call(batch)
        unit = call.scaling.unit
        rounded = (self._raw(call, response) + unit // 2) // unit
        return call.packing.geometry.restore(rounded)

    def _raw(self, call: Call, response: bytes) -> Int:
        """Accumulators times the unit plus their error, centred. Secret: it never leaves."""
        c1, c0 = call.read_response(response)
        own, prime = call.packing.output(self._key(call.ring).times(call, c1)), call.ring.prime
        raw = c0.reshape(own.shape) + own
        raw = np.minimum(raw, raw - np.uint64(prime)).astype(np.int64)
        centred: Int = np.where(raw > prime // 2, raw - prime, raw)
        return centred

    def _check(self, step: int, x: Int) -> int:
        geometry = self.plan.steps[step].geometry
        if x.dtype.kind not in "iu":
            raise DtypeMismatch("activations", got=x.dtype, expected="int64")
        if x.ndim < 1 or x.shape[1:] != geometry.in_shape:
            expected = f"[batch, {', '.join(map(str, geometry.in_shape))}]"
            raise ShapeMismatch("activations", got=list(x.shape), expected=expected)
        if len(x) and max(-int(x.min()), int(x.max())) > geometry.magnitude:
            raise ValueOutOfRange(
                "activations", got="a value outside", expected=f"|x| <= {geometry.magnitude}"
            )
        return len(x)

    def _key(self, parameters: Parameters) -> SecretKey:
        require_own("keys of an inference", self._process)
        if parameters not in self._keys:
            self._keys[parameters] = SecretKey.fresh(parameters)
        return self._keys[parameters]

    def _pad(self, call: Call) -> _Pad:
        """A public key and one encryption of zero per ciphertext, ``a`` expanded from a seed:
        c0 = -a·s + e."""
        field, key = ring(call.ring), self._key(call.ring)
        count = 1 + call.ciphertexts_up
        seed, random = secrets.token_bytes(SEED_BYTES), fresh()
        product = Uniform(seed, field.primes, field.degree).polynomials(count)
        field.multiply(product, key.request)
        field.inverse(product)
        errors = random.errors((count, field.degree))
        if call.scaling.drop_up:
            # The server puts a value in the middle of its dropped bits, which errs by +1/2 on
            # average; this errs by -1/2.
            errors[1:] -= random.bits(errors[1:].shape)
        c0 = field.add(field.moduli - product, field.residues(errors))
        carried, spare = call.packing.divide(c0[1:])
        return _Pad(call.request_head(seed, _public_key(call, c0[0]), spare), carried)


def _public_key(call: Call, p0: U64) -> U64:
    """p0 [primes, degree] as the request takes it: with several primes rounded to a multiple of
    all but the first, modulo that."""
    kept, *left = (each.astype(np.int64) for each in p0)
    q, *dropped = call.ring.primes
    # The centred residue modulo the product has centred digits, one for each prime: p0 less a
    # digit is a multiple of its prime, which is divided away for the next.
    weight = 1
    for i, p in enumerate(dropped):
        digit = np.where(left[i] > p // 2, left[i] - p, left[i])
        kept = multiplied(digit, -weight, q, kept)
        for j, other in enumerate(dropped[i + 1 :], i + 1):
            left[j] = multiplied(left[j] - digit, pow(p, -1, other), other)
        weight *= p
    made: U64 = kept.view(np.uint64)
    return made


@lru_cache(maxsize=64)
def _scaled(parameters: Parameters, unit: int, magnitude: int) -> U64:
    """uint64[primes, 2·magnitude + 1]: residues of x·unit (times the dropped prime) by
    x + magnitude."""
    whole = unit * parameters.dropped
    values = range(-magnitude, magnitude + 1)
    return np.array([[x * whole % prime for x in values] for prime in parameters.primes], np.uint64)
