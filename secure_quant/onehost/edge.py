"""What goes to the host alone: the Input, and what nothing but linear layers read.

The Input's mask is the client's alone, so x + r is all there is to send. The host, which has the
weights, opens what linear layers read; the client has its share of the mask and needs no more.
"""

from __future__ import annotations

from collections.abc import Generator
from math import prod

import numpy as np
from numpy.typing import NDArray

from secure_quant.mpc.protocol.cost import packed_bytes
from secure_quant.mpc.protocol.gates.base import Wire
from secure_quant.mpc.protocol.gates.edge import InputGate
from secure_quant.mpc.protocol.ring import Ring, reduce, to_ring
from secure_quant.onehost.exchange import Joint, swap
from secure_quant.onehost.products import packed, unpacked

__all__ = ["entered", "input_bytes", "sent_in", "told_to_host"]


def input_bytes(gate: InputGate, batch: int) -> int:
    """From client to host."""
    return packed_bytes(batch * prod(gate.shape), gate.bits)


def sent_in(gate: InputGate, q: NDArray[np.int8], mask: Ring) -> Joint[Wire]:
    """The client's end. q: int8[batch, *shape]. mask: all of the wire's."""
    made = reduce(to_ring(q.astype(np.int64), 64) + mask, gate.bits)
    yield from swap(packed(made.reshape(-1, 1), gate.bits), 0)
    return Wire(made, mask)


def entered(gate: InputGate, mask: Ring) -> Joint[Wire]:
    """The host's end. mask: its share, which is 0. Raises MalformedMessage."""
    message = yield from swap(b"", input_bytes(gate, len(mask)))
    made = unpacked(message, mask.size, gate.bits)
    return Wire(made.reshape(mask.shape), mask)


def told_to_host(
    run: Generator[bytes, bytes, Wire], rounds: int, party: int, mask: Ring
) -> Joint[Wire]:
    """A gate's rounds, of whose last the host alone learns. mask: own share of the value's.

    Raises MalformedMessage."""
    sent = next(run)
    for _ in range(rounds - 1):
        sent = run.send((yield from swap(sent, len(sent))))
    if party == 0:
        run.close()
        yield from swap(sent, 0)
        return Wire(mask=mask)
    peer = yield from swap(b"", len(sent))
    try:
        run.send(peer)
    except StopIteration as end:
        return Wire(end.value.public, mask)
    raise ValueError("a gate of more rounds than its plan says")
