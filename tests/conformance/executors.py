"""Every executor behind one small face: ``prepare(graph)`` and then ``run(q)``. ``engine``: of
which one it is, by the name of its row.

``run`` returns the integers that can be compared, by node name, and always those at the Output.
It also checks what was promised: that rounds and bytes are those of ``plan.cost``.
"""

from __future__ import annotations

import secrets
from typing import Protocol

import numpy as np

from secure_quant import reference
from secure_quant.ir import Graph

Integers = dict[str, np.ndarray]


class Prepared(Protocol):
    def run(self, q: np.ndarray) -> Integers: ...


class Reference:
    """The plaintext reference."""

    engine = "reference"
    may_refuse: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return "reference"

    def prepare(self, graph: Graph) -> Prepared:
        return _Reference(graph)


class _Reference:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def run(self, q: np.ndarray) -> Integers:
        values = reference.trace(self.graph, q)
        assert np.array_equal(reference.run_int(self.graph, q), values[self.graph.output.name])
        return values


class Mpc:
    """Dealer and both parties in one process, one round at a time."""

    engine = "mpc"
    may_refuse = frozenset({"DynamicScale", "DynamicQuantize"})

    def __init__(self, objective: str) -> None:
        self.objective = objective

    def __repr__(self) -> str:
        return f"mpc-{self.objective}"

    def prepare(self, graph: Graph) -> Prepared:
        return _Mpc(graph, self.objective)


class _Mpc:
    def __init__(self, graph: Graph, objective: str) -> None:
        from secure_quant.mpc.protocol import bundle

        bundles = bundle.split(graph, objective)
        self.parties = [bundle.load_party(bundles[f"party{i}"]) for i in range(2)]
        self.dealer = bundle.load_dealer(bundles["dealer"])
        self.public, self.plan = bundle.load_client(bundles["client"])
        assert self.public.is_public or not graph.parameters
        for part in (*self.parties, self.dealer):
            assert part.model_hash == graph.hash

    def run(self, q: np.ndarray) -> Integers:
        from secure_quant.mpc.protocol.material import Item

        batch, cost = len(q), self.plan.cost(len(q))
        dealt = [self.dealer.deal() for _ in range(batch)]
        first = [Item(0, item.seed0, b"") for item in dealt]
        second = [Item(1, item.seed1, item.corrections) for item in dealt]
        assert cost.offline_bytes_party0 == sum(len(item.seed0) for item in dealt)
        assert cost.offline_bytes_party1 == sum(
            len(item.seed1) + len(item.corrections) for item in dealt
        )
        mask = np.frombuffer(secrets.token_bytes(q.size), np.uint8).reshape(q.shape)
        shares = mask, q.view(np.uint8) ^ mask
        runs = [
            party.run(share, items)
            for party, share, items in zip(self.parties, shares, (first, second), strict=True)
        ]
        outputs, rounds, sent = _lockstep(runs)
        assert (rounds, sent) == (cost.rounds, cost.online_bytes_per_direction)
        opened = (outputs[0] + outputs[1]).view(np.int64)
        return {self.public.output.name: opened}


def _lockstep(runs) -> tuple[list[np.ndarray], int, int]:
    """Both generators to their end: (output shares, rounds, bytes per direction)."""
    rounds, sent = 0, 0
    payloads: list[bytes | None] = [None, None]
    outputs: list[np.ndarray | None] = [None, None]
    while True:
        made = []
        for i, run in enumerate(runs):
            try:
                made.append(run.send(payloads[1 - i]))
            except StopIteration as stop:
                outputs[i] = stop.value
        if not made:
            return outputs, rounds, sent
        assert len(made) == 2, "one party stopped before the other"
        assert len(made[0]) == len(made[1])
        payloads, rounds, sent = [bytes(p) for p in made], rounds + 1, sent + len(made[0])


class He:
    """Client and server of the homomorphic engine in one process."""

    engine = "he"
    may_refuse = frozenset({"Embedding"})

    def __init__(self, objective: str, tier: str = "T1") -> None:
        self.objective, self.tier = objective, tier

    def __repr__(self) -> str:
        return f"he-{self.objective}-{self.tier}"

    def prepare(self, graph: Graph) -> Prepared:
        return _He(graph, self.objective, self.tier)


class _He:
    def __init__(self, graph: Graph, objective: str, tier: str) -> None:
        from secure_quant.he import bundle

        bundles = bundle.split(graph, objective, tier)
        self.server = bundle.load_server(bundles["server"])
        self.public, self.plan = bundle.load_client(bundles["client"])
        assert self.server.model_hash == self.public.hash == graph.hash

    def run(self, q: np.ndarray) -> Integers:
        from secure_quant_client.he.ckks import CkksKeys

        batch, cost = len(q), self.plan.cost(len(q))
        session = CkksKeys(self.public, self.plan)
        step_of = {step.node: place for place, step in enumerate(self.plan.steps)}
        values: Integers = {self.public.input.name: q.astype(np.int64)}
        up = down = 0
        for node in self.public.nodes[1:]:
            inputs = [values[name] for name in node.inputs]
            if node.name not in step_of:
                values[node.name] = reference.evaluate(self.public, node, inputs)
                continue
            step = step_of[node.name]
            centred = inputs[0] - self.public.values[node.inputs[0]].zero_point
            request = session.encrypt(step, centred)
            response = self.server.evaluate(step, batch, request)
            values[node.name] = session.decrypt(step, batch, response)
            up, down = up + len(request), down + len(response)
        assert (up, down) == (cost.bytes_up, cost.bytes_down)
        return values


class OneHost:
    """A client and one host, without a dealer, in one process: one pairing for all cases."""

    engine = "onehost"
    may_refuse = frozenset({"DynamicScale", "DynamicQuantize", "Embedding", "TopK"})

    def __init__(self) -> None:
        self._pairs: list = []

    def __repr__(self) -> str:
        return "onehost"

    def prepare(self, graph: Graph) -> Prepared:
        from secure_quant.onehost.cot import Pairing

        if not self._pairs:
            self._pairs = _exchanged([Pairing.make(i) for i in range(2)])[0]
        return _OneHost(graph, self._pairs)


class _OneHost:
    def __init__(self, graph: Graph, pairs: list) -> None:
        from secure_quant.onehost.plan import plan
        from secure_quant.onehost.program import ClientProgram, Host, HostProgram
        from secure_quant_client.onehost.masks import MaskKeys

        self.plan = plan(graph.public())
        masked = self.plan.masked
        self.client = ClientProgram(
            self.plan, pairs[0], lambda name, r: MaskKeys(masked).share(name, r)
        )
        self.server = HostProgram(self.plan, pairs[1], Host(graph, self.plan))

    def run(self, q: np.ndarray) -> Integers:
        cost = self.plan.cost(len(q))
        ends = (self.client, self.server)
        filled = self.client.pairing.fill_bytes(cost.taken)
        items, sent = _exchanged([end.prepare(len(q)) for end in ends])
        assert [a - b for a, b in zip(sent, filled, strict=True)] == [
            cost.material_up, cost.material_down
        ]  # fmt: skip
        made, sent = _exchanged(
            [self.client.run(items[0], q.astype(np.int8)), self.server.run(items[1])]
        )
        assert sent == [cost.online_up, cost.online_down]
        return {self.plan.graph.output.name: made[0]}


class PlainInsecure:
    """Client and server of the engine that protects nothing."""

    engine = "plain-insecure"
    may_refuse: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return "plain-insecure"

    def prepare(self, graph: Graph) -> Prepared:
        return _PlainInsecure(graph)


class _PlainInsecure:
    def __init__(self, graph: Graph) -> None:
        from plain_insecure.commands import in_process
        from plain_insecure.model import plan

        self.graph, self.plan, self.execute = graph, plan(graph), in_process(graph)

    def run(self, q: np.ndarray) -> Integers:
        cost, made = self.plan.cost(len(q)), self.execute(q)
        assert (made.rounds, made.sent) == (cost.rounds, cost.bytes_up + cost.bytes_down)
        return made.values


def _exchanged(runs) -> tuple[list, list[int]]:
    """Both ends of a joint protocol to their end: (results, bytes that each sent)."""
    messages: list[bytes | None] = [None, None]
    results: list = [None, None]
    sent = [0, 0]
    while True:
        made = []
        for i, run in enumerate(runs):
            try:
                made.append(run.send(messages[i]))
            except StopIteration as stop:
                results[i] = stop.value
        if not made:
            return results, sent
        assert len(made) == 2, "one end stopped before the other"
        assert len(made[0].sent) == made[1].expected
        assert len(made[1].sent) == made[0].expected
        messages = [made[1].sent, made[0].sent]
        sent = [total + len(each.sent) for total, each in zip(sent, made, strict=True)]


EXECUTORS = (
    Reference(),
    Mpc("latency"),
    Mpc("balanced"),
    Mpc("traffic"),
    He("latency"),
    He("traffic"),
    He("latency", "T1-strict"),
    OneHost(),
    PlainInsecure(),
)
