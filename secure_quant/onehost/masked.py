"""Linear layers on the client's mask, under homomorphic encryption: what both ends agree on.

The client encrypts its share r of the input's mask, mod 2^k, the server answers with an encryption
of W·r - u mod 2^k, u uniform. The layers are those of ``secure_quant.he`` with 2^(k-1) as the bound
on accumulators, under T1-strict: an r travels as the integer nearest to Q·r/2^k, Q the product of
all primes, so that whatever wraps mod 2^k wraps mod Q. Rounding at Q and not at one of the primes
is what keeps the rounding errors that the weights multiply below 1/2, under the flood.
``docs/spec/one-host.md``, 7.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import OpNotSupported
from secure_quant.he.geometry import Geometry
from secure_quant.he.noise import ERROR_VARIANCE, margin, weight_noise
from secure_quant.he.parameters import TIERS, Parameters, Tier
from secure_quant.he.plan import HePlan, Layout, Step
from secure_quant.he.search import layer_of, search
from secure_quant.he.wire import Call
from secure_quant.ir import Graph
from secure_quant.ir.ops import Conv2d, Linear

__all__ = [
    "BUDGET",
    "RINGS",
    "TIER",
    "WIDEST",
    "MaskedPlan",
    "narrow",
    "plan",
    "residues",
    "rounded",
    "wide",
]

U64 = NDArray[np.uint64]

TIER: Tier = "T1-strict"
RINGS = (
    *TIERS[TIER],
    Parameters(8192, (36028797018652673, 1152921504606830593), 163841),
)
"""The tier's, and one of 115 bits, whose flood is wide enough for many calls."""
WIDEST = Parameters(8192, (140737488273409, 70368743669761, 35184371613697), 163841)
"""138 bits, for models that are too large for the others."""
BUDGET = 2.0**-40
"""Statistical distance that all answers to one client may add up to."""
_ROUNDING = math.sqrt(1 + 1 / (12 * ERROR_VARIANCE))
"""By how much the rounding of r, uniform in half a unit either way, widens the weights' share."""


@dataclass(frozen=True)
class MaskedPlan:
    """he: the steps' layouts, one per Linear or Conv2d. bits: k of each, by node name."""

    he: HePlan
    bits: Mapping[str, int]

    def step(self, name: str) -> int:
        return self.he.step_of[name]

    def call(self, name: str, batch: int) -> Call:
        """What evaluating a layer on ``batch`` masks is."""
        return self.he.steps[self.step(name)].call(batch)

    def distance(self, batch: int = 1) -> float:
        """By how much, in statistical distance, the errors in all answers to one item of ``batch``
        samples depend on the weights: a sum over all wanted coefficients."""
        return self.he.distance(batch) * _ROUNDING

    @property
    def calls(self) -> int:
        """Samples that one client may be served before the distances add up to BUDGET."""
        return int(BUDGET / self.distance()) if self.he.steps else 2**63 - 1


def plan(graph: Graph, bits: Mapping[str, int], calls: int = 1) -> MaskedPlan:
    """Layouts for every Linear and Conv2d of ``graph``, whose values are masked mod 2^bits[name],
    with errors below half a step but with probability below 2^-40 a call, and good for ``calls``
    samples of one client, in the rings of two primes or, where these do not hold it, with WIDEST.
    Layers whose answers tell most take the wider rings.

    Raises OpNotSupported where no ring holds a layer, or no rings all of them for so many samples.
    """
    try:
        return narrow(graph, bits, calls)
    except OpNotSupported:
        return wide(graph, bits, calls)


def narrow(graph: Graph, bits: Mapping[str, int], calls: int = 1) -> MaskedPlan:
    """``plan`` in the rings of two primes alone. Raises as it does."""
    return _plan(graph, bits, calls, RINGS)


def wide(graph: Graph, bits: Mapping[str, int], calls: int = 1) -> MaskedPlan:
    """``plan`` in all rings, for what ``narrow`` refused. Raises as it does."""
    return _plan(graph, bits, calls, (*RINGS, WIDEST))


def _plan(
    graph: Graph, bits: Mapping[str, int], calls: int, rings: tuple[Parameters, ...]
) -> MaskedPlan:
    public = graph.public()
    nodes = [node for node in public.nodes if isinstance(node, Linear | Conv2d)]
    choices = [_steps(public, node, bits[node.name], rings) for node in nodes]
    taken = [0] * len(nodes)
    while True:
        steps = tuple(found[i] for found, i in zip(choices, taken, strict=True))
        made = MaskedPlan(HePlan(public, "latency", TIER, steps), dict(bits))
        if made.distance() * calls <= BUDGET:
            return made
        wider = [n for n, found in enumerate(choices) if taken[n] + 1 < len(found)]
        if not wider:
            raise OpNotSupported(
                f"linear layers on masks for {calls} samples of one client",
                got=f"good for {made.calls}",
                hint="fewer samples of a client (--samples-per-client), secret sharing (engine"
                " mpc), or smaller layers",
            )  # fmt: skip
        taken[max(wider, key=lambda n: steps[n].distance(1))] += 1


def _steps(
    public: Graph, node: Linear | Conv2d, bits: int, rings: tuple[Parameters, ...]
) -> list[Step]:
    """One for each ring that holds the layer. Raises OpNotSupported for none."""
    geometry = replace(Geometry.of(public, node), bound=2 ** (bits - 1))
    found: list[Step] = []
    for ring in rings:
        try:
            _, tile, scaling = search(node.name, geometry, 1, TIER, "latency", (ring,))
        except OpNotSupported as error:
            if ring == rings[-1] and not found:
                raise OpNotSupported(
                    f"{node.name!r} on masks of {bits} bits", got="no ring that holds it",
                    hint="a tighter bound",
                ) from error  # fmt: skip
            continue
        step = Step(node.name, geometry, (Layout(1, ring, tile, scaling),))
        if _sound(step) and (not found or step.distance(1) < found[-1].distance(1)):
            found.append(step)
    if not found:
        raise OpNotSupported(f"{node.name!r} on masks of {bits} bits", got="no sound margins")
    return found


def _sound(step: Step) -> bool:
    """The margins hold with the rounding of r as well, and nothing is dropped upward."""
    layout = step.layout(1)
    layer, ring, scaling = layer_of(step.geometry, layout.tile), layout.ring, layout.scaling
    room, hiding = margin(layer, ring, TIER, scaling)
    room -= (_ROUNDING - 1) * weight_noise(layer, 0) / ring.dropped
    return room > 0 and hiding >= _ROUNDING and scaling.drop_up == 0 and len(ring.primes) > 1


def residues(r: U64, bits: int, ring: Parameters) -> U64:
    """uint64[...] below 2^bits -> uint64[..., primes]: the integer nearest to Q·r/2^bits, modulo
    each prime, exactly and without wide integers.

    2^bits·m = Q·r - [Q·r], [·] the centred residue mod 2^bits, and Q·r is 0 modulo each prime; so
    m = -[Q·r]·2^-bits there.
    """
    whole = math.prod(ring.primes)
    drop = np.uint64(64 - bits)
    least = (r * np.uint64(whole % 2**64)) << drop
    centred = least.view(np.int64) >> np.int64(64 - bits)
    size = np.abs(centred).astype(np.uint64)
    made = np.empty((*r.shape, len(ring.primes)), np.uint64)
    for i, prime in enumerate(ring.primes):
        product = _times(size, pow(2, -bits, prime), prime, bits)
        made[..., i] = np.where((centred > 0) & (product > 0), prime - product, product)
    return made


def _times(values: U64, factor: int, prime: int, bits: int) -> U64:
    """values·factor mod prime, of values below 2^bits, a few bits at a time."""
    step = 63 - prime.bit_length()
    by, keep = np.uint64(step), np.uint64((1 << step) - 1)
    total = np.zeros_like(values)
    for shift in range(step * (-(-bits // step) - 1), -1, -step):
        digit = values >> np.uint64(shift) & keep
        total = ((total << by) + digit * np.uint64(factor)) % np.uint64(prime)
    return total


def rounded(raw: U64, bits: int, prime: int) -> U64:
    """Residues below ``prime`` -> the nearest integer to raw·2^bits/prime, mod 2^bits; by long
    division, an octet at a time: prime < 2^56."""
    rest, made = raw.astype(np.uint64), np.zeros_like(raw, np.uint64)
    left, modulus = bits, np.uint64(prime)
    while left:
        step = np.uint64(min(left, 8))
        rest = rest << step
        made = made << step | rest // modulus
        rest = rest % modulus
        left -= int(step)
    made += (np.uint64(2) * rest >= modulus).astype(np.uint64)
    keep: U64 = made & np.uint64(2**bits - 1)
    return keep
