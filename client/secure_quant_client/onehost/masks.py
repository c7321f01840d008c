"""The client's half of linear layers on masks: it encrypts its share of a mask and learns s.

As under ``CkksKeys``, a key serves one item, and all that leaves it are fresh encryptions; errors
are rounded away here and never shown.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import ShapeMismatch, ValueOutOfRange
from secure_quant.he.ring import ring
from secure_quant.onehost.exchange import Joint, swap
from secure_quant.onehost.masked import MaskedPlan, residues, rounded
from secure_quant_client.forks import require_own
from secure_quant_client.he.ckks import CkksKeys

__all__ = ["MaskKeys"]

U64 = NDArray[np.uint64]


class MaskKeys(CkksKeys):
    """Encrypts the masks of one item. Not for use by several threads at once."""

    def __init__(self, plan: MaskedPlan) -> None:
        super().__init__(plan.he.graph, plan.he)
        self.masks = plan

    def request(self, name: str, r: U64) -> bytes:
        """r: own share of the input's mask, uint64[batch, *source of the node], below 2^k.

        Raises ShapeMismatch, ValueOutOfRange, ConfigError in a forked process.
        """
        step, bits = self.masks.step(name), self.masks.bits[name]
        source = self.plan.steps[step].geometry.in_shape
        if r.shape[1:] != source or r.dtype != np.uint64:
            raise ShapeMismatch("a mask", got=[*r.shape, str(r.dtype)], expected=["n", *source])
        if r.size and int(r.max()) >> bits:
            raise ValueOutOfRange("a mask", got="a value outside", expected=f"< 2^{bits}")
        require_own("keys of an item", self._process)
        call = self.plan.steps[step].call(len(r))
        pad = self._pads.pop((step, len(r)), None) or self._pad(call)
        message = call.packing.input(call.packing.geometry.arrange(r.view(np.int64)))
        scaled = residues(message.astype(np.uint64), bits, call.ring)
        c0 = ring(call.ring).add(pad.c0, scaled.swapaxes(1, 2))
        return pad.head + call.request_tail(c0)

    def answer(self, name: str, batch: int, response: bytes) -> U64:
        """s = W·r - u mod 2^k, uint64[batch, *shape of the node]. Raises MalformedMessage."""
        step, bits = self.masks.step(name), self.masks.bits[name]
        call = self.plan.steps[step].call(batch)
        prime = call.ring.prime
        raw = self._raw(call, response)
        found = rounded(np.where(raw < 0, raw + prime, raw).astype(np.uint64), bits, prime)
        return call.packing.geometry.restore(found.view(np.int64)).view(np.uint64)

    def share(self, name: str, r: U64) -> Joint[U64]:
        """The client's end of the offline half. Raises as ``request`` and ``answer``."""
        step = self.masks.step(name)
        yield from swap(self.request(name, r), 0)
        expected = self.plan.steps[step].call(len(r)).cost.bytes_down
        response = yield from swap(b"", expected)
        return self.answer(name, len(r), response)
