"""The server's half: linear and square layers on TenSEAL's CKKSVector, under a client's keys.

Stock TenSEAL computes ``mm`` right and ``mm -> + bias -> mm`` wrong: the second product reads
slots beyond the first vector's end, where copies of it stand to which the bias was not added.
Here every width is a power of two, so that copies fill all slots without a remainder, and every
bias is added to all of them. That also leaves nothing but copies of the outputs in an answer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tenseal as ts
from numpy.typing import NDArray

from secure_quant.errors import ConfigError, MalformedMessage
from secure_quant.he.leveled import seal_format
from secure_quant.he.leveled.model import LeveledModel
from secure_quant.he.leveled.plan import LeveledPlan, padded
from secure_quant.he.leveled.wire import pack_response, unpack_keys, unpack_request
from secure_quant.he.ring import polynomials

__all__ = ["LeveledEvaluator", "LoadedKeys", "galois_element"]

U64 = NDArray[np.uint64]
Float = NDArray[np.float64]


class LeveledEvaluator:
    """One model, ready to serve. Holds no key of anybody."""

    def __init__(self, model: LeveledModel, plan: LeveledPlan) -> None:
        if plan.public != model.public():
            raise ConfigError("leveled plan", got="another model's", expected="this model's")
        self.model, self.plan = model, plan
        self.model_hash = model.hash
        # TenSEAL gives every context a key pair; this one's is dropped here and never used.
        bare = ts.context(
            ts.SCHEME_TYPE.CKKS, plan.degree, coeff_mod_bit_sizes=list(plan.chain_bits)
        )
        bare.global_scale = float(plan.scale)
        self._chain = bare.seal_context().data
        found = _primes(self._chain)
        if found != plan.primes:
            raise ConfigError("primes of this SEAL", got=found, expected=plan.primes)
        self._template = bare.serialize(
            save_public_key=False, save_secret_key=False,
            save_galois_keys=False, save_relin_keys=False,
        )  # fmt: skip
        self._matrices, self._biases = _operands(model, plan)

    def open(self, keys: bytes | memoryview) -> LoadedKeys:
        """A session under a client's evaluation keys. Raises MalformedMessage for a wrong length
        or a residue out of range; any residues in range are keys, of sense or not."""
        b, a = unpack_keys(self.plan, keys)
        digits = len(self.plan.primes) - 1
        *_, public = whole = np.stack([b, a], axis=1)
        pairs = whole[:-1].reshape(-1, digits, *whole.shape[1:])
        level = list(self._chain.key_parms_id())
        relinearization = seal_format.switching_keys(level, 1, {0: pairs[0]})
        galois = {
            (galois_element(step, self.plan.degree) - 1) // 2: pair
            for step, pair in zip(self.plan.steps, pairs[1:], strict=True)
        }
        rotations = seal_format.switching_keys(level, self.plan.degree, galois)
        sealed = seal_format.ciphertext(level, public, 1.0)
        made = seal_format.context(self._template, sealed, relinearization, rotations)
        return LoadedKeys(self, ts.context_from(made))

    def run(self, context: Any, request: bytes | memoryview) -> bytes:
        """One sample under the context of a session. Raises MalformedMessage."""
        plan, slots = self.plan, self.plan.degree // 2
        pair = unpack_request(plan, request)
        if not pair[0].any() or not pair[1].any():
            raise MalformedMessage("request", got="a transparent ciphertext", expected="encrypted")
        level = list(self._chain.first_parms_id())
        scale, widths = float(plan.scale), padded(plan.public)
        sealed = seal_format.ciphertext(level, pair, scale)
        value = ts.ckks_vector_from(context, seal_format.vector(widths[0], sealed, scale))
        for i, (matrix, bias) in enumerate(zip(self._matrices, self._biases, strict=True)):
            if i:
                # No longer all slots but one copy, as mm asks; the others are where they were.
                value = _resized(context, value.square(), slots, widths[i])
            value = value.mm(matrix)
            value = _resized(context, value, len(bias), slots) + np.resize(bias, slots).tolist()
        return pack_response(plan, polynomials(value.ciphertext()[0]))


class LoadedKeys:
    """A client's evaluation keys, loaded."""

    def __init__(self, evaluator: LeveledEvaluator, context: Any) -> None:
        self._evaluator, self._context = evaluator, context

    def evaluate(self, request: bytes | memoryview) -> bytes:
        """Request of one sample -> response. Raises MalformedMessage."""
        return self._evaluator.run(self._context, request)


def galois_element(step: int, degree: int) -> int:
    """Exponent g of the automorphism X -> X^g that rotates slots to the left by ``step``."""
    return pow(3, step % (degree // 2), 2 * degree)


def _operands(model: LeveledModel, plan: LeveledPlan) -> tuple[list[Any], list[Float]]:
    """Matrices [in, out] as TenSEAL takes them, biases [out]; widths padded with zeros.

    TenSEAL calls the scale after a rescaling what it was before, though it became scale²/prime.
    The matrices undo that: each holds the factors of its own rescaling and of the square before.
    """
    levels = list(plan.primes[1:-1])
    matrices, biases = [], []
    widths = [*padded(plan.public), plan.outputs]
    for i, layer in enumerate(model.layers):
        factor = levels.pop() / plan.scale
        if i:
            factor *= levels.pop() / plan.scale
        matrix, bias = np.zeros((widths[i], widths[i + 1])), np.zeros(widths[i + 1])
        out, wide = layer.weight.shape
        matrix[:wide, :out], bias[:out] = layer.matrix.T * factor, layer.bias
        matrices.append(ts.plain_tensor(matrix.tolist()))
        biases.append(bias)
    return matrices, biases


def _resized(context: Any, value: Any, old: int, new: int) -> Any:
    return ts.ckks_vector_from(context, seal_format.resized(value.serialize(), old, new))


def _primes(chain: Any) -> tuple[int, ...]:
    return tuple(int(prime.value()) for prime in chain.key_context_data().parms().coeff_modulus())
