"""The same inferences with a slower network between all roles, so that rounds are seen to matter.

    python bench/network.py --model lenet --rtt 0 20 50

Every connection (client, link of the parties, dealer, servers) goes through a relay that holds each
byte back for half of the round-trip time; bandwidth is not limited. What can be made ahead is there
before the clock starts. Prints one JSON object per engine, objective and round-trip time, with what
`secure-quant inspect --seconds` predicts of the plan that an engine makes if it is told nothing.
Loopback, mutual TLS, real processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import statistics
import tempfile
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from arguments import parser, positive, run

from secure_quant import reference
from secure_quant.engines import find, resolved
from secure_quant.errors import ValueOutOfRange
from secure_quant.ir import Graph
from secure_quant_cli.cluster import free_ports
from secure_quant_cli.models import NAMES, bench_model
from secure_quant_cli.prediction import Network, measured, predicted
from secure_quant_cli.service import serving, timed

CONFIGURATIONS = (
    ("mpc", None),
    ("mpc", "latency"),
    ("mpc", "traffic"),
    ("he", None),
    ("onehost", None),
)


class Relays:
    """Relays in a process of their own; ``dial`` makes one more and returns its address."""

    def __init__(self, delay_s: float) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_relays, args=(theirs, delay_s), daemon=True)
        self._process.start()

    def dial(self, target: str) -> str:
        """The address of a relay to ``target`` (host:port)."""
        (port,) = free_ports(1)
        self._pipe.send((port, target))
        self._pipe.recv()
        return f"127.0.0.1:{port}"

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()


def _relays(pipe: Connection, delay_s: float) -> None:
    async def serve() -> None:
        loop = asyncio.get_running_loop()
        while True:
            port, target = await loop.run_in_executor(None, pipe.recv)

            async def connect(
                reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: str = target
            ) -> None:
                host, _, number = target.rpartition(":")
                try:
                    far_reader, far_writer = await asyncio.open_connection(host, int(number))
                except OSError:
                    writer.close()
                    return
                await asyncio.gather(
                    _hold_back(reader, far_writer, delay_s), _hold_back(far_reader, writer, delay_s)
                )

            await asyncio.start_server(connect, "127.0.0.1", port)
            pipe.send(port)

    asyncio.run(serve())


async def _hold_back(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float
) -> None:
    """Copy one direction, every chunk ``delay_s`` after it came."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def deliver() -> None:
        while True:
            due, data = await queue.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            if not data:
                break
            writer.write(data)
            await writer.drain()
        writer.close()

    delivery = asyncio.create_task(deliver())
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(2**18):
            queue.put_nowait((loop.time() + delay_s, data))
    queue.put_nowait((loop.time() + delay_s, b""))
    with contextlib.suppress(ConnectionError):
        await delivery


def measure(
    model: str, engines: list[str], batch: int, rtt_ms: float, runs: int
) -> Iterator[dict[str, Any]]:
    """One object of figures per configuration."""
    graph = bench_model(model)
    rng = np.random.default_rng(0)
    for engine, objective in CONFIGURATIONS:
        if engine not in engines:
            continue
        relays = Relays(rtt_ms / 2000)
        with (
            contextlib.closing(relays),
            tempfile.TemporaryDirectory() as work,
            serving(
                graph, Path(work), engines=(engine,), objective=objective, dial=relays.dial
            ) as service,
        ):
            client = service.clients[engine]
            predicted_ms = None if objective else _predicted_ms(engine, graph, batch, rtt_ms)
            times, wrong = [], 0
            for turn in range(runs + 2):
                q = rng.integers(-128, 128, (batch, *graph.input.shape), np.int8)
                if hasattr(client, "prepare"):
                    client.prepare(batch)
                (made, stats), took = timed(client.infer_int8_with_stats, q)
                wrong += int((made != reference.run_int(graph, q)).sum())
                times += [took] if turn >= 2 else []
            yield {
                "engine": engine, "objective": objective, "model": model, "batch": batch,
                "rtt_ms": rtt_ms, "latency_ms_median": statistics.median(times),
                "predicted_ms": predicted_ms, "rounds": stats.rounds, "mismatches": wrong,
            }  # fmt: skip


def _predicted_ms(engine: str, graph: Graph, batch: int, rtt_ms: float) -> float:
    network = {"": Network(rtt_ms / 1000, bits=1e11)}
    plan = resolved(find(engine).plan)(graph.public())
    return 1e3 * predicted(engine, plan, batch, measured(engine), network)[""]


def main() -> int:
    line = parser(__doc__)
    line.add_argument("--model", default="lenet", help=", ".join(NAMES))
    named = sorted({engine for engine, _ in CONFIGURATIONS})
    line.add_argument("--engine", choices=named, nargs="+", default=named)
    line.add_argument("--batch", type=positive, default=1)
    line.add_argument("--rtt", type=float, nargs="+", default=[0, 20, 50], metavar="MS")
    line.add_argument("--runs", type=positive, default=11)
    arguments = line.parse_args()
    if not all(0 <= rtt_ms <= 10_000 for rtt_ms in arguments.rtt):
        raise ValueOutOfRange("--rtt", got=arguments.rtt, expected="0 to 10000 ms")
    wrong = 0
    for rtt_ms in arguments.rtt:
        told = arguments.model, arguments.engine, arguments.batch, rtt_ms, arguments.runs
        for figures in measure(*told):
            print(json.dumps(figures), flush=True)
            wrong += figures["mismatches"]
    return 0 if wrong == 0 else 1


if __name__ == "__main__":
    run(main)
