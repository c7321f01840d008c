"""One host without a dealer, in the commands."""

from __future__ import annotations

import argparse
from collections.abc import Coroutine
from time import process_time
from typing import TYPE_CHECKING, Any

from secure_quant.errors import MalformedMessage
from secure_quant_cli.engines import Costs, Exact, Way
from secure_quant_cli.inprocess import Executor, Run, work_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from secure_quant.ir import Graph
    from secure_quant.onehost.exchange import Exchange, Joint
    from secure_quant.onehost.plan import OneHostPlan
    from secure_quant_client import InferenceStats

__all__ = ["COMMANDS", "model_of", "start"]


_SERVER, _CLIENT, _A_COT, _A_COT_LEFT = 249 * 10**6, 244 * 10**6, 60, 6
"""Bytes of a host, of a client, of a correlated OT, and of what items made of one: RESULTS.md."""
_TRANSFORMS = 2**30
"""Of weights' transforms that a host keeps, at most."""

_CALL_S, _FLIGHT_S = 9e-4, 3.2e-4
"""Of an inference, and of a flight from one end's computing to the other's, on one machine:
bench/RESULTS.md."""


def in_process(graph: Graph) -> Executor:
    """Client and server over one pairing, an item for every call; only the integers at the Output
    are ever opened. Raises OpNotSupported."""
    from secure_quant.onehost.bundle import load_client, load_server, split
    from secure_quant.onehost.cot import Pairing
    from secure_quant.onehost.plan import KAPPA
    from secure_quant.onehost.program import ClientProgram, Host, HostProgram
    from secure_quant_client.onehost.masks import MaskKeys

    bundles = split(graph)
    plan, (whole, own) = load_client(bundles["client"]), load_server(bundles["server"])
    (one, two), _, _ = _both(Pairing.make(0, KAPPA), Pairing.make(1, KAPPA))
    keys: list[MaskKeys] = []

    def share(name: str, r: NDArray[np.uint64]) -> Joint[NDArray[np.uint64]]:
        return keys[-1].share(name, r)

    client, server = ClientProgram(plan, one, share), HostProgram(own, two, Host(whole, own))

    def run(q: NDArray[np.int8]) -> Run:
        keys[:] = [MaskKeys(plan.masked)]
        (mine, theirs), _, _ = _both(client.prepare(len(q)), server.prepare(len(q)))
        start = process_time()
        (y, _), flights, sent = _both(client.run(mine, q), server.run(theirs))
        return Run({graph.output.name: y}, flights, sent, online=process_time() - start)

    return run


def _both(first: Joint[Any], second: Joint[Any]) -> tuple[list[Any], int, int]:
    """Both ends to their end: (results, exchanges, bytes sent by both)."""
    messages: list[bytes | None] = [None, None]
    exchanges = sent = 0
    while True:
        made: list[Exchange] = []
        results: list[Any] = []
        for run, message in zip((first, second), messages, strict=True):
            try:
                made.append(next(run) if message is None else run.send(message))
            except StopIteration as end:
                results.append(end.value)
        if len(results) == 2:
            return results, exchanges, sent
        if results:
            raise MalformedMessage("one end stopped before the other")
        messages = [made[1].sent, made[0].sent]
        exchanges, sent = exchanges + 1, sent + sum(len(each.sent) for each in made)


def costs(graph: Graph) -> Costs:
    """Bytes online and ahead of time, both ways, of everything that is sent for a node."""
    from secure_quant.onehost.plan import plan

    made = plan(graph)
    cost = made.cost()
    return (
        {"online_bytes": cost.bytes_up + cost.bytes_down,
         "ahead_bytes": cost.offline_bytes_up + cost.offline_bytes_down},
        {name: {"online_bytes": sum(online), "ahead_bytes": sum(ahead)}
         for name, (online, ahead) in made.layers().items()},
    )  # fmt: skip


def way(made: OneHostPlan, batch: int) -> Way:
    """Flights one after the other; two are a round trip."""
    cost = made.cost(batch)
    sent = cost.bytes_up + cost.bytes_down
    hops = _CALL_S + cost.flights * _FLIGHT_S
    return Way(cost.flights / 2, sent, hops, work_of(made.graph, batch))


def memory(made: OneHostPlan, batch: int) -> dict[str, int]:
    """Of both ends while an item is made beside a stock of two: by the correlated OTs of its
    largest group of gates, what items made of all, and what Ferret holds. Of the host also weights
    as bytes and as transforms, of which a layer's are made beside those that are kept."""
    from secure_quant.he.effort import transforms_bytes
    from secure_quant_cli.sizes import parameter_count

    calls = [step.call(batch) for step in made.masked.he.steps]
    transforms = [transforms_bytes(call.packing, call.ring.primes) for call in calls]
    kept = min(_TRANSFORMS, sum(transforms)) + max(transforms, default=0)
    weights = sum(parameter_count(node) for node in made.graph.nodes)
    cost = made.cost(batch)
    items = _A_COT * max(map(sum, cost.taken)) + _A_COT_LEFT * sum(cost.cots)
    items += made.lpn.held_bytes if made.lpn else 0
    return {"onehost": _SERVER + 2 * weights + kept + items, "client": _CLIENT + items}


def held(made: OneHostPlan) -> dict[str, int]:
    """Of a pairing: as many at the host as its client has it make."""
    from secure_quant_client.onehost.client import STOCK

    return {"onehost": STOCK, "client": STOCK}


def budget(made: OneHostPlan) -> dict[str, int]:
    """Samples of one client, over all pairings and restarts: told to it, and what rings hold."""
    return {"planned": made.calls, "good": made.masked.calls}


def bytes_sent(stats: InferenceStats) -> dict[str, dict[str, int]]:
    """By client and server."""
    return {
        "client": {"online": stats.bytes_up, "offline": stats.offline_bytes_up or 0},
        "server": {"online": stats.bytes_down, "offline": stats.offline_bytes_down or 0},
    }


def start(told: argparse.Namespace) -> Coroutine[Any, Any, None]:
    """What serves the host."""
    from secure_quant_cli.settings import options_of
    from secure_quant_cli.tls_options import tls_from
    from secure_quant_server.onehost import OneHostOptions, serve_onehost

    security = tls_from(told, "onehost")
    return serve_onehost(OneHostOptions(bundles=told.bundle, security=security, **options_of(told)))


def model_of(role: str, data: bytes) -> str:
    """The hash of a bundle's model. Raises MalformedModel and its kin."""
    from secure_quant.onehost.bundle import load_server

    return load_server(data)[0].hash


COMMANDS = Exact(
    in_process=in_process,
    costs=costs,
    way=way,
    memory=memory,
    summary=(
        "flights",
        "bytes_up",
        "bytes_down",
        "seconds_lan",
        "seconds_20_ms",
        "seconds_50_ms",
        "offline_bytes_up",
        "offline_bytes_down",
        "ahead_seconds_100_mbit",
    ),
    columns={"online": ("online_bytes",), "ahead": ("ahead_bytes",)},
    traffic={"online_bytes": "online, both ways", "ahead_bytes": "made ahead, both ways"},
    times={},
    bytes_sent=bytes_sent,
    held=held,
    budget=budget,
)
