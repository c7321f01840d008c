"""What the commands need of it."""

from __future__ import annotations

import argparse
from collections.abc import Coroutine
from time import perf_counter
from typing import TYPE_CHECKING, Any

from google.protobuf.wrappers_pb2 import BytesValue

from plain_insecure.model import PlainPlan, PlainServer, load_client, plan, split
from secure_quant_cli.engines import Costs, Exact, Way
from secure_quant_cli.inprocess import Executor, Run
from secure_quant_client.driver import Deadline

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from secure_quant.ir import Graph
    from secure_quant_client import InferenceStats

__all__ = ["COMMANDS", "model_of", "start"]


def in_process(graph: Graph) -> Executor:
    """Client and server, from their bundles."""
    bundles = split(graph)
    server, model = PlainServer.load(bundles["server"]), load_client(bundles["client"])

    def run(q: NDArray[np.int8]) -> Run:
        program = model.infer(q, Deadline(3600.0))
        seconds, answers = 0.0, None
        while True:
            try:
                calls = next(program) if answers is None else program.send(answers)
            except StopIteration as done:
                y, stats = done.value
                sent = stats.bytes_up + stats.bytes_down
                name = graph.output.name
                return Run({name: y}, stats.rounds, sent, {name: seconds})
            start = perf_counter()
            answers = [BytesValue(value=server.answer(call.request.value)) for call in calls]
            seconds += perf_counter() - start

    return run


def costs(graph: Graph) -> Costs:
    """All that is sent is the input's and the Output's."""
    cost = plan(graph).cost()
    up, down = {"bytes_up": cost.bytes_up}, {"bytes_down": cost.bytes_down}
    return up | down, {graph.input.name: up, graph.output.name: down}


def way(made: PlainPlan, batch: int) -> Way:
    """One call."""
    cost = made.cost(batch)
    return Way(1, cost.bytes_up + cost.bytes_down, 1e-3, (0.0, 0.0, 1.0))


def memory(made: PlainPlan, batch: int) -> dict[str, int]:
    """A process each, and what is sent."""
    cost = made.cost(batch)
    return dict.fromkeys(("plain-insecure", "client"), 10**8 + cost.bytes_up + cost.bytes_down)


def bytes_sent(stats: InferenceStats) -> dict[str, dict[str, int]]:
    """Nothing is sent ahead."""
    return {
        "client": {"online": stats.bytes_up, "offline": 0},
        "server": {"online": stats.bytes_down, "offline": 0},
    }


def start(told: argparse.Namespace) -> Coroutine[Any, Any, None]:
    """What serves the server."""
    from plain_insecure.server import PlainOptions, serve_plain
    from secure_quant_cli.settings import options_of
    from secure_quant_cli.tls_options import tls_from

    security = tls_from(told, "plain-insecure")
    return serve_plain(PlainOptions(bundles=told.bundle, security=security, **options_of(told)))


def model_of(role: str, data: bytes) -> str:
    """The hash of a bundle's model. Raises MalformedModel and its kin."""
    return PlainServer.load(data).model_hash


COMMANDS = Exact(
    in_process=in_process,
    costs=costs,
    way=way,
    memory=memory,
    summary=("rounds", "bytes_up", "bytes_down"),
    columns={"sent": ("bytes_up", "bytes_down"), "time": ("ms",)},
    traffic={"bytes_up": "to the server", "bytes_down": "back"},
    times={"ms": "server"},
    bytes_sent=bytes_sent,
)
