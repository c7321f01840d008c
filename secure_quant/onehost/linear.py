"""Linear and Conv2d without a dealer: the server has the weights, the client a share of the mask.

Ahead of time the client learns s = W·r_0 - u mod 2^k, r_0 its share of the input's mask, from an
answer under homomorphic encryption, and the server draws u and z. Online one message goes to the
client: D_y = W·(D - zero point) - W·r_1 - u + b + z = y + s + z. So the new mask's shares are s and
z, both known ahead; z MUST be 0 only where the Output reads this very layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from secure_quant.ir.ops import Linear
from secure_quant.mpc.protocol.cost import packed_bytes
from secure_quant.mpc.protocol.gates.linear import LinearGate, weight_shape
from secure_quant.mpc.protocol.products import Narrow
from secure_quant.mpc.protocol.ring import Ring, narrow_kind, reduce, to_ring
from secure_quant.onehost.exchange import Joint, swap
from secure_quant.onehost.masked import MaskedPlan, residues
from secure_quant.onehost.products import packed, unpacked

__all__ = ["HostLinear", "receive", "serve_mask", "words"]

Int = NDArray[np.int64]


class Evaluates(Protocol):
    """An ``Evaluator`` that skips no zeros, or what stands before one."""

    def evaluate(
        self, step: int, batch: int, ciphertexts: bytes, hidden: NDArray[np.uint64]
    ) -> bytes: ...


def serve_mask(
    plan: MaskedPlan, evaluator: Evaluates, name: str, batch: int, random: Ring
) -> Joint[Ring]:
    """The server's end of the offline half: u, uint64[batch, *shape], below 2^k.

    evaluator: of ``plan.he``, which skips no zeros. random: fresh words, as many as ``words``.
    Raises MalformedMessage.
    """
    step = plan.step(name)
    call, bits = plan.call(name, batch), plan.bits[name]
    request = yield from swap(b"", call.cost.bytes_up)
    shape = (call.ciphertexts_down, *call.packing.wanted_shape)
    u = reduce(random, bits).reshape(shape)
    hidden = np.moveaxis(residues(u, bits, call.ring), -1, 1)
    yield from swap(evaluator.evaluate(step, batch, request, np.ascontiguousarray(hidden)), 0)
    signed = call.packing.output(u).view(np.int64)
    return call.packing.geometry.restore(signed).view(np.uint64)


def words(plan: MaskedPlan, name: str, batch: int) -> int:
    """Random words that ``serve_mask`` takes."""
    call = plan.call(name, batch)
    return int(call.ciphertexts_down * np.prod(call.packing.wanted_shape))


@dataclass(frozen=True, eq=False)
class HostLinear:
    """The server's half of a layer. weight: W mod 2^k. bias: uint64[out] mod 2^k."""

    gate: LinearGate
    weight: Narrow = field(repr=False)
    bias: Ring = field(repr=False)

    @classmethod
    def of(cls, gate: LinearGate, weight: NDArray[np.int8], bias: Int) -> HostLinear:
        """weight: as the graph has it. bias: int64[out]."""
        whole = to_ring(weight.reshape(weight_shape(gate.node)), gate.bits)
        return cls(gate, whole.astype(narrow_kind(gate.bits)), to_ring(bias, gate.bits))

    def state(self, mask: Ring, u: Ring, z: Ring | None) -> Ring:
        """b + z - u - W·r_1, of the own share of the input's mask, uint64[batch, *source]. z:
        fresh, uint64[batch, *shape]; None where the Output reads this layer."""
        made = np.uint64(0) - self.gate.apply(self.weight, mask) - u
        made += self.bias.reshape((-1,) if isinstance(self.gate.node, Linear) else (-1, 1, 1))
        return reduce(made if z is None else made + z, self.gate.bits)

    def send(self, state: Ring, masked: Ring) -> Joint[Ring]:
        """D_y, uint64[batch, *shape], told to the client. masked: D of the input."""
        own = self.gate.apply(self.weight, masked, self.gate.zero_point)
        made = reduce(own + state, self.gate.bits)
        yield from swap(packed(made.reshape(-1, 1), self.gate.bits), 0)
        return made


def receive(gate: LinearGate, batch: int) -> Joint[Ring]:
    """The client's end of ``HostLinear.send``. Raises MalformedMessage."""
    count = batch * int(np.prod(gate.shape))
    message = yield from swap(b"", packed_bytes(count, gate.bits))
    return unpacked(message, count, gate.bits).reshape(batch, *gate.shape)
