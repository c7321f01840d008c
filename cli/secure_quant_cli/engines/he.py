"""Homomorphic encryption in the commands."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Coroutine
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

import numpy as np

from secure_quant_cli.engines import Costs, Exact, Way
from secure_quant_cli.inprocess import Executor, Run

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from secure_quant.he.plan import HePlan
    from secure_quant.ir import Graph
    from secure_quant_client import HeClient, InferenceStats

__all__ = ["COMMANDS", "model_of", "start"]


# Peak resident bytes: bench/RESULTS.md.
_SERVER, _CLIENT = 134 * 10**6, 82 * 10**6
"""Of a server's processes and of a client before anything is held."""
_TRANSFORMS = 2**30
"""Of weights' transforms that are kept, at most."""
_BLINDS, _CIPHERTEXTS = 8, 20
"""How often a stock of blinds has the bytes of all answers, and a call's ciphertexts their own."""

_CALL_S = 1.2e-3
"""Of a call, through the front and to its worker and back, on one machine: bench/RESULTS.md."""


def in_process(graph: Graph) -> Executor:
    """Client and server of homomorphic encryption; every node's integers are the client's.

    Raises OpNotSupported.
    """
    from secure_quant.he.bundle import load_client, load_server, split
    from secure_quant_client.he.ckks import CkksKeys
    from secure_quant_client.he.model import walk

    bundles = split(graph)
    server, (public, plan) = load_server(bundles["server"]), load_client(bundles["client"])
    names = [step.node for step in plan.steps]

    def run(q: NDArray[np.int8]) -> Run:
        seconds: defaultdict[str, float] = defaultdict(float)
        client_seconds: defaultdict[str, float] = defaultdict(float)

        class Watched(CkksKeys):
            """The session, with a watch."""

            def encrypt(self, step: int, x: NDArray[np.int64]) -> bytes:
                start = perf_counter()
                try:
                    return super().encrypt(step, x)
                finally:
                    client_seconds[names[step]] += perf_counter() - start

            def decrypt(self, step: int, batch: int, response: bytes) -> NDArray[np.int64]:
                start = perf_counter()
                try:
                    return super().decrypt(step, batch, response)
                finally:
                    client_seconds[names[step]] += perf_counter() - start

        begun = process_time()
        client = walk(public, Watched(public, plan), q.astype(np.int64))  # a fresh key
        trips = sent = 0
        try:
            requests = next(client)
            while True:
                answers = []
                for request in requests:
                    start = perf_counter()
                    answers.append(server.evaluate(*request))
                    seconds[names[request.step]] += perf_counter() - start
                sent += sum(len(request.ciphertexts) for request in requests)
                sent += sum(map(len, answers))
                trips += 1
                requests = client.send(answers)
        except StopIteration as end:
            online = process_time() - begun
            return Run(end.value, trips, sent, dict(seconds), dict(client_seconds), online)

    return run


def costs(graph: Graph) -> Costs:
    """Bytes to the server and back."""
    from secure_quant.he.plan import plan

    made = plan(graph)
    layers = {}
    for step in made.steps:
        cost = step.call(1).cost
        layers[step.node] = {"bytes_up": cost.bytes_up, "bytes_down": cost.bytes_down}
    cost = made.cost()
    return {"bytes_up": cost.bytes_up, "bytes_down": cost.bytes_down}, layers


def way(made: HePlan, batch: int) -> Way:
    """A call a layer, one after the other. Work: coefficients of ciphertexts, those of sums of
    products by what they are estimated to take, and calls."""
    from secure_quant.he.effort import evaluated_ns

    cost, calls = made.cost(batch), [step.call(batch) for step in made.steps]
    moved = products = 0.0
    for call in calls:
        primes = call.ring.primes
        moved += (call.ciphertexts_up + call.ciphertexts_down) * call.ring.degree * len(primes)
        products += evaluated_ns(call.packing, primes)
    sent = cost.bytes_up + cost.bytes_down
    return Way(len(calls), sent, len(calls) * _CALL_S, (products, moved, len(calls)))


def memory(made: HePlan, batch: int) -> dict[str, int]:
    """Of a server with one worker: its processes, weights as bytes and as transforms, blinds, and
    the largest call's ciphertexts."""
    from secure_quant.he.effort import prefers_taps, transforms_bytes
    from secure_quant.he.evaluate import STOCK_MEMORY
    from secure_quant_cli.sizes import parameter_count

    calls = [step.call(batch) for step in made.steps]
    transforms = sum(
        transforms_bytes(call.packing, call.ring.primes)
        for call in calls
        if not prefers_taps(call.packing, call.ring.primes)
    )
    blinds = min(STOCK_MEMORY, _BLINDS * sum(call.cost.bytes_down for call in calls))
    largest = max(call.cost.bytes_up + call.cost.bytes_down for call in calls)
    weights = sum(parameter_count(node) for node in made.graph.nodes)
    held = min(_TRANSFORMS, transforms) + blinds + _CIPHERTEXTS * largest
    return {"he": _SERVER + 2 * weights + held, "client": _CLIENT + _CIPHERTEXTS * largest}


def bytes_sent(stats: InferenceStats) -> dict[str, dict[str, int]]:
    """Nothing is sent ahead."""
    return {
        "client": {"online": stats.bytes_up, "offline": 0},
        "server": {"online": stats.bytes_down, "offline": 0},
    }


def _trace(client: HeClient, q: NDArray[np.int8]) -> dict[str, NDArray[np.int64]]:
    return dict(client.trace_int8(q))


def start(told: argparse.Namespace) -> Coroutine[Any, Any, None]:
    """What serves the server."""
    from secure_quant_cli.settings import options_of
    from secure_quant_cli.tls_options import tls_from
    from secure_quant_server.he import HeOptions, serve_he

    security = tls_from(told, "he")
    return serve_he(HeOptions(bundles=told.bundle, security=security, **options_of(told)))


def model_of(role: str, data: bytes) -> str:
    """The hash of a bundle's model, leveled or not. Raises MalformedModel and its kin."""
    from secure_quant.he import bundle
    from secure_quant.he.leveled import bundle as leveled

    if leveled.is_server(data):
        return leveled.load_server(data).model_hash
    return bundle.load_server(data).model_hash


COMMANDS = Exact(
    in_process=in_process,
    costs=costs,
    way=way,
    memory=memory,
    summary=("ciphertexts_up", "ciphertexts_down", "bytes_up", "bytes_down"),
    columns={"sent": ("bytes_up", "bytes_down"), "time": ("ms", "client_ms")},
    traffic={"bytes_up": "to the server", "bytes_down": "back"},
    times={"client_ms": "client: encrypt, decrypt", "ms": "server"},
    bytes_sent=bytes_sent,
    trace=_trace,
    key_bytes=0,
)
