"""Both ends of a graph in one process, and inputs for them."""

from __future__ import annotations

from typing import Any

import numpy as np

from secure_quant.ir import Graph
from secure_quant.onehost.cot import Pairing
from secure_quant.onehost.plan import plan
from secure_quant.onehost.program import ClientProgram, Host, HostProgram
from secure_quant_client.onehost.masks import MaskKeys
from tests.unit.onehost.drive import drive


class Ends:
    """A client and a server of one graph."""

    def __init__(
        self, graph: Graph, pairs: list[Pairing], calls: int = 1000, objective: Any = "latency"
    ) -> None:
        self.graph, self.plan = graph, plan(graph.public(), calls, objective)
        self.pairs = pairs
        self.host = Host(graph, self.plan)
        self.server = HostProgram(self.plan, pairs[1], self.host)
        self.client = ClientProgram(self.plan, pairs[0], self._share)

    def _share(self, name: str, r: Any) -> Any:
        return MaskKeys(self.plan.masked).share(name, r)

    def prepare(self, batch: int) -> Any:
        """(client's item, server's item, bytes of all but the extensions, by end)."""
        wanted = self.plan.cost(batch).taken
        filled = self.pairs[0].fill_bytes(wanted)
        assert filled == self.pairs[1].fill_bytes(wanted)
        one, two, sent = drive(self.client.prepare(batch), self.server.prepare(batch))
        whole = [sum(side) for side in zip(*sent, strict=True)]
        return one, two, [a - b for a, b in zip(whole, filled, strict=True)]

    def infer(self, q: Any) -> Any:
        one, two, offline = self.prepare(len(q))
        got, nothing, sent = drive(self.client.run(one, q), self.server.run(two))
        assert nothing is None
        cost = self.plan.cost(len(q))
        assert offline == [cost.material_up, cost.material_down]
        assert [sum(side) for side in zip(*sent, strict=True)] == [cost.online_up, cost.online_down]
        return got


def inputs(graph: Graph, batch: int, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    q = rng.integers(-128, 128, (batch, *graph.input.shape))
    q[0] = 127
    return q.astype(np.int8)
